//! How a machine that runs does: by the service's status checks, and by what the product answers where it can be asked.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use provisioner_core::{
    OpContext,
    types::{Reason, Timestamp},
};

use crate::{
    digest::Machine,
    error::Failure,
    fleet::{CheckState, Fleet},
    seen::Health,
};

/// A product that takes longer is as good as none.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// How long before the service ends a machine another one takes its place.
const ENDED_BEFORE: Duration = Duration::from_secs(24 * 3600);
/// Who was asked so long ago is asked as if for the first time.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// What is told of a machine whose spec is forgotten.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Who asks products.
#[derive(Debug)]
pub(crate) struct Prober {
    http: reqwest::Client,
    /// How long after the last call something counts as on its way.
    moving_for: Duration,
    /// How long machines may take until their product is started.
    boot_time: Duration,
    /// What was heard last of machines.
    heard: Mutex<BTreeMap<Box<str>, Heard>>,
}

/// What was heard last of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// It answered then.
    Answered(Timestamp),
    /// It has been silent since.
    Silent(Timestamp),
}

impl Heard {
    fn at(self) -> Timestamp {
        let (Self::Answered(at) | Self::Silent(at)) = self;
        at
    }
}

impl Prober {
    pub(crate) fn new(moving_for: Duration, boot_time: Duration) -> Self {
        let http = reqwest::Client::builder().timeout(ANSWERS_WITHIN).redirect(reqwest::redirect::Policy::none());
        // Instances are in the same network, whatever the environment says of others.
        let http = http.no_proxy().build().expect("a client without TLS settings");
        Self { http, moving_for, boot_time, heard: Mutex::default() }
    }

    async fn ask(&self, machine: &Machine) -> Result<(), String> {
        let (Some(address), Some(product)) = (&machine.address, &machine.product) else {
            return Err("it has no address yet".into());
        };
        let url = format!("http://{address}:{}{}", product.port, product.health_path);
        match self.http.get(&url).send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("{} answers {}", product.health_path, answer.status())),
            Err(error) if error.is_timeout() => Err(format!("{} does not answer in time", product.health_path)),
            Err(_) => Err(format!("nobody answers at port {}", product.port)),
        }
    }

    /// A machine that was rebooted has its time again.
    pub(crate) fn begin_again(&self, machine: &Machine, now: Timestamp) {
        self.hear(&machine.id, Heard::Silent(now));
    }

    /// How long a machine has been silent since it was started, or was first asked in vain after it had answered.
    fn silent_for(&self, machine: &Machine, now: Timestamp) -> Duration {
        let started_at = Timestamp::from_unix_ms(machine.started_at);
        let last = {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.retain(|_, last| now.since(last.at()) < FORGOTTEN_AFTER);
            heard.get(&machine.id).copied()
        };
        let since = match last {
            Some(Heard::Silent(since)) => since.max(started_at),
            // Since its last start: it may be restarting by itself.
            Some(Heard::Answered(at)) if at >= started_at => now,
            // Of one that was started long ago nobody here knows when it stopped to answer: now.
            _ if now.since(started_at) >= (start_timeout(machine) + self.boot_time) * 2 => now,
            _ => started_at,
        };
        self.hear(&machine.id, Heard::Silent(since));
        now.since(since)
    }

    fn answers(&self, machine: &Machine, now: Timestamp) {
        self.hear(&machine.id, Heard::Answered(now));
    }

    fn hear(&self, machine: &str, what: Heard) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(machine.into(), what);
    }
}

fn start_timeout(machine: &Machine) -> Duration {
    let seconds = machine.product.as_ref().map(|product| product.start_timeout_seconds);
    seconds.map_or(START_TIMEOUT, |seconds| Duration::from_secs(seconds.into()))
}

/// How a machine does. `prober`: the product is asked too, and what it says is known before the service's own checks are, and
/// better. `impaired_for`: how long its checks must have failed until it is given up.
pub(crate) async fn of(
    cx: &OpContext,
    fleet: &Fleet,
    prober: Option<&Prober>,
    impaired_for: Duration,
    machine: &Machine,
) -> Result<Health, Failure> {
    let answer = match prober {
        Some(prober) => Some((prober, prober.ask(machine).await)),
        None => None,
    };
    if let Some((prober, Ok(()))) = &answer {
        prober.answers(machine, cx.now);
        if cx.since_last_call.is_some_and(|since| since < prober.moving_for) {
            // On its way up: that it answers is all that is waited for.
            return Ok(Health::Answers);
        }
    }
    let checks = fleet.checks(cx, &machine.id).await?;
    // As long as it goes well, it is left alone until shortly before.
    let soon = |at: i64| at - cx.now.unix_ms() <= ENDED_BEFORE.as_millis() as i64;
    if let Some((_, why)) = checks.ends.filter(|(at, _)| soon(*at)) {
        return Ok(Health::Unfit(why));
    }
    Ok(match (answer, checks.state) {
        (Some((_, Ok(()))), _) | (None, CheckState::Passed) => Health::Answers,
        (_, CheckState::Failed(why, since)) => {
            let lasts = since.is_none_or(|since| cx.now.since(Timestamp::from_unix_ms(since)) >= impaired_for);
            if lasts { Health::Unfit(why) } else { Health::Starting(Some(why)) }
        }
        (None, CheckState::Pending) => Health::Starting(None),
        (Some((prober, Err(why))), _) => {
            let why = Reason::new("not-answering", why);
            let is_over = prober.silent_for(machine, cx.now) >= start_timeout(machine) + prober.boot_time;
            if is_over { Health::Silent(why) } else { Health::Starting(Some(why)) }
        }
    })
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{Instance, InstanceState, InstanceStateName, Tag};
    use provisioner_core::types::{DataId, Incarnation};

    use super::*;
    use crate::names;

    /// Started at the beginning; its product has a minute and its boot two.
    fn prober_and_machine() -> (Prober, Machine) {
        let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
        let tags = [
            tag(names::CONTROL_PLANE, "prod"),
            tag(names::INSTANCE, "acme"),
            tag(names::INCARNATION, &Incarnation::new(1, 7).to_string()),
            tag(names::DATA, DataId::from_random(11).as_str()),
            tag(names::TENANT, "a-hash"),
        ];
        let state = InstanceState::builder().name(InstanceStateName::Running).build();
        let shown = Instance::builder().instance_id("i-1").state(state).set_tags(Some(tags.into())).build();
        let machine = Machine::of(&shown).expect("one of ours");
        (Prober::new(Duration::from_secs(5), Duration::from_secs(120)), machine)
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_ms(seconds * 1000)
    }

    #[test]
    fn one_that_never_answered_is_silent_since_its_start() {
        let (prober, machine) = prober_and_machine();
        assert_eq!(prober.silent_for(&machine, at(170)), Duration::from_secs(170));
        assert_eq!(prober.silent_for(&machine, at(200)), Duration::from_secs(200));
    }

    #[test]
    fn one_that_answered_is_silent_since_it_was_asked_in_vain() {
        let (prober, machine) = prober_and_machine();
        prober.answers(&machine, at(100));
        assert_eq!(prober.silent_for(&machine, at(200)), Duration::ZERO, "it may be restarting");
        assert_eq!(prober.silent_for(&machine, at(230)), Duration::from_secs(30));
        prober.answers(&machine, at(240));
        assert_eq!(prober.silent_for(&machine, at(250)), Duration::ZERO);
        // What was heard before its last start counts no more.
        let started = Machine { started_at: 300_000, ..machine };
        assert_eq!(prober.silent_for(&started, at(400)), Duration::from_secs(100));
    }

    #[test]
    fn of_one_that_runs_for_long_nobody_knows_since_when() {
        let (prober, machine) = prober_and_machine();
        assert_eq!(prober.silent_for(&machine, at(5000)), Duration::ZERO);
        prober.begin_again(&machine, at(5300));
        assert_eq!(prober.silent_for(&machine, at(5310)), Duration::from_secs(10));
    }
}
