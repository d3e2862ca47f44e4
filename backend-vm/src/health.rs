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
    /// Since when machines do not answer that did.
    silent: Mutex<BTreeMap<Box<str>, Timestamp>>,
}

impl Prober {
    pub(crate) fn new(moving_for: Duration, boot_time: Duration) -> Self {
        let http = reqwest::Client::builder().timeout(ANSWERS_WITHIN).redirect(reqwest::redirect::Policy::none());
        // Instances are in the same network, whatever the environment says of others.
        let http = http.no_proxy().build().expect("a client without TLS settings");
        Self { http, moving_for, boot_time, silent: Mutex::default() }
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
        self.silent.lock().unwrap_or_else(PoisonError::into_inner).insert(machine.id.clone(), now);
    }

    /// How long a machine has been silent since it was started, or answered last.
    fn silent_for(&self, machine: &Machine, now: Timestamp) -> Duration {
        let started_at = Timestamp::from_unix_ms(machine.started_at);
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, since| now.since(*since) < Duration::from_secs(24 * 3600));
        // Of one that was started long ago nobody here knows when it stopped to answer: now.
        let is_new = now.since(started_at) < (start_timeout(machine) + self.boot_time) * 2;
        let first = if is_new { started_at } else { now };
        let since = *silent.entry(machine.id.clone()).or_insert(first);
        now.since(since.max(started_at))
    }

    fn answers(&self, machine: &Machine) {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine.id);
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
        prober.answers(machine);
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
