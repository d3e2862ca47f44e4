//! From the words of the project to a process and back. Pure.

use std::{ffi::OsString, fmt, sync::Arc, time::Duration};

use hyper::Uri;
use provisioner_core::{
    secret::{ExposeSecret, SecretString},
    types::{
        Capabilities, DataSource, Generation, Incarnation, InstanceSpec, Observed, Phase, Present, Reason, Target,
        VariableName,
    },
};

use crate::{
    error::{Problem, Result},
    health::Seen,
    instance::View,
    log_tail::Values,
    process::Life,
    records::{Intended, Record},
};

/// The variables that this backend sets itself.
const PORT: &str = "PORT";
const DATA_PATH: &str = "DATA_PATH";
const PATH: &str = "PATH";

const AGAIN_MIN: Duration = Duration::from_millis(5);
const AGAIN_MAX: Duration = Duration::from_millis(500);

/// What to start: a target with its secrets resolved.
#[derive(Clone)]
pub(crate) struct Order {
    pub(crate) tenant: String,
    pub(crate) generation: Generation,
    pub(crate) spec: Arc<InstanceSpec>,
    pub(crate) data: DataSource,
    pub(crate) secrets: Vec<(VariableName, SecretString)>,
}

/// Names what must not be told by their types alone.
impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("generation", &self.generation).field("data", &self.data).finish_non_exhaustive()
    }
}

impl Order {
    pub(crate) fn new(target: &Target, secrets: Vec<(VariableName, SecretString)>) -> Self {
        Self {
            tenant: target.tenant.digest(),
            generation: target.generation,
            spec: Arc::clone(&target.spec),
            data: target.data.clone(),
            secrets,
        }
    }

    /// The program. Not empty: see [`check`].
    pub(crate) fn program(&self) -> &str {
        self.spec.workload.command.first().map_or("", String::as_str)
    }

    pub(crate) fn arguments(&self) -> &[String] {
        self.spec.workload.command.get(1..).unwrap_or_default()
    }

    /// `PATH` as the process gets it.
    pub(crate) fn path<'a>(&'a self, default: &'a str) -> &'a str {
        let own = self.spec.environment.iter().find(|(name, _)| name.as_str() == PATH);
        own.map_or(default, |(_, value)| value.as_str())
    }

    /// The whole environment. Nothing of the control plane's own is in it.
    pub(crate) fn environment(&self, port: u16, data_path: &str, path: &str) -> Vec<(String, OsString)> {
        let ours = [(PATH, path.to_owned()), (PORT, port.to_string()), (DATA_PATH, data_path.to_owned())];
        let spec = self.spec.environment.iter().map(|(name, value)| (name.to_string(), value.into()));
        let secrets = self.secrets.iter().map(|(name, value)| (name.to_string(), value.expose_secret().into()));
        // A later one wins: the spec may set PATH, and the other two are refused in specs.
        ours.into_iter().map(|(name, value)| (name.to_owned(), value.into())).chain(spec).chain(secrets).collect()
    }

    /// What must be struck out of what the process prints.
    pub(crate) fn values(&self) -> Values {
        let mut values = Values::default();
        self.spec.environment.values().for_each(|value| values.add(value));
        self.secrets.iter().for_each(|(_, value)| values.add_secret(value));
        values
    }
}

/// Checks what this backend needs of a spec.
pub(crate) fn check(spec: &InstanceSpec, capabilities: &Capabilities) -> Result<()> {
    spec.check_against(capabilities)?;
    let Some(program) = spec.workload.command.first() else {
        return Err(Problem::spec("workload.command", "empty: expected the program to run and its arguments"));
    };
    // Instances run in their data folder, so what such a path names would be the customer's to choose.
    if program.contains('/') && !program.starts_with('/') {
        let problem = "expected an absolute path, or a name without '/' that is found in PATH";
        return Err(Problem::spec("workload.command[0]", problem));
    }
    for (part, names) in
        [("environment", spec.environment.keys().collect::<Vec<_>>()), ("secrets", spec.secrets.keys().collect())]
    {
        if let Some(name) = names.iter().find(|name| [PORT, DATA_PATH].contains(&name.as_str())) {
            let problem = "set by this cell itself: expected another name";
            return Err(Problem::spec(format!("{part}.{name}"), problem));
        }
    }
    // It goes into a request line.
    match spec.workload.health_path.parse::<Uri>() {
        Ok(uri) if uri.scheme().is_none() && uri.authority().is_none() => Ok(()),
        _ => Err(Problem::spec("workload.health_path", "expected the path of a URL, with special characters escaped")),
    }
}

/// What `create` and `resume` have to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// It is as it should be, or on its way.
    Report,
    /// Nothing runs: start.
    Start,
    /// Something runs that should not: stop it, then start.
    Replace,
    /// A stop is in progress: start after it.
    StartAfter,
}

/// Decides what it takes to run the target.
pub(crate) fn plan(view: &View, target: &Target) -> Result<Plan> {
    let Some(record) = &view.record else {
        return Ok(match (&view.moving, view.life) {
            (Some(_), _) => Plan::Report,
            (None, Life::Dead) => Plan::Start,
            (None, Life::Starting) => Plan::Report,
            (None, _) => Plan::Replace,
        });
    };
    check_same(record, target)?;
    if matches!(record.intended, Intended::Destroying(_)) {
        return Ok(Plan::Report);
    }
    if let Some(restarts) = view.moving.as_ref().and_then(|moving| moving.restarts)
        && record.intended == Intended::Running
        && restarts >= target.generation
    {
        return if restarts == target.generation { Ok(Plan::Report) } else { Err(older(target, restarts)) };
    }
    let current = record.generation == target.generation && record.intended == Intended::Running;
    Ok(match (&view.moving, view.life) {
        (Some(_), _) => Plan::StartAfter,
        (None, Life::Dead) => Plan::Start,
        // Whoever is starting it holds the same record; the next look tells.
        (None, Life::Starting) => Plan::Report,
        (None, Life::Alive(_)) if current && view.outcome.is_none() => Plan::Report,
        (None, Life::Alive(_) | Life::Leftovers(_)) => Plan::Replace,
    })
}

fn check_same(record: &Record, target: &Target) -> Result<()> {
    if record.tenant != target.tenant.digest() {
        return Err(Problem::conflict("tenant", "it belongs to another tenant"));
    }
    if record.data != *target.data.id() {
        return Err(Problem::conflict("data", format!("it runs on data {}", record.data)));
    }
    if record.generation > target.generation {
        return Err(older(target, record.generation));
    }
    Ok(())
}

fn older(target: &Target, has: Generation) -> Problem {
    Problem::conflict("generation", format!("{} is older than {has}, which it has", target.generation))
}

/// What a look means.
pub(crate) fn observed(view: Option<&View>, incarnation: Incarnation, endpoint: impl Fn(u16) -> String) -> Observed {
    let Some(view) = view else {
        return Observed::Absent;
    };
    let Some(record) = &view.record else {
        let present = |phase| Present::new(phase, Generation(0), incarnation);
        return match &view.moving {
            Some(moving) if moving.restarts.is_some() => in_motion(view, present(Phase::Provisioning), "updating"),
            Some(_) => in_motion(view, present(Phase::Destroying), "stopping"),
            None => {
                let reason = Reason::new("half-made", "its making was cut short, or its record was lost");
                present(Phase::Failed).with_reason(reason).into()
            }
        };
    };
    let present = |phase| Present::new(phase, record.generation, incarnation);
    let lives = view.life != Life::Dead || view.moving.is_some();
    match record.intended {
        Intended::Destroying(_) => in_motion(view, present(Phase::Destroying), "stopping"),
        Intended::Zero | Intended::Suspended if lives => {
            let phase = if view.seen == Some(Seen::Ready) { Phase::Running } else { Phase::Provisioning };
            in_motion(view, present(phase), "stopping")
        }
        Intended::Zero => present(Phase::Zero).into(),
        Intended::Suspended => present(Phase::Suspended).into(),
        Intended::Running => match (&view.moving, &view.outcome) {
            (Some(moving), _) if moving.restarts.is_some() => in_motion(view, present(Phase::Provisioning), "updating"),
            (_, Some(outcome)) => present(Phase::Failed).with_reason(outcome.clone()).into(),
            (Some(_), None) => in_motion(view, present(Phase::Failed), "stopping"),
            (None, None) => running(view, present, || endpoint(record.port)),
        },
    }
}

fn running(view: &View, present: impl Fn(Phase) -> Present, endpoint: impl Fn() -> String) -> Observed {
    match view.life {
        Life::Alive(_) if view.seen == Some(Seen::Ready) => {
            present(Phase::Running).with_endpoint(endpoint()).with_usage(view.usage).into()
        }
        Life::Alive(process) => {
            let seen = view.seen.as_ref().unwrap_or(&Seen::Nothing);
            let again = (process.age() / 5).clamp(AGAIN_MIN, AGAIN_MAX);
            let reason = Reason::new("starting", format!("not ready yet: {seen}"));
            present(Phase::Provisioning).with_reason(reason).look_again(again).with_usage(view.usage).into()
        }
        Life::Starting => present(Phase::Provisioning).look_again(AGAIN_MIN).into(),
        Life::Dead | Life::Leftovers(_) => {
            let message = "there is no process, and nobody saw how it ended";
            present(Phase::Failed).with_reason(Reason::new("exited", message)).into()
        }
    }
}

fn in_motion(view: &View, present: Present, code: &str) -> Observed {
    let blocked = view.moving.as_ref().and_then(|moving| moving.blocked.as_ref()).or(view.blocked.as_ref());
    let (message, again) = match (blocked, &view.moving) {
        (Some(blocked), _) => (blocked.as_str(), AGAIN_MAX),
        (None, Some(_)) => ("waiting for its processes to end", AGAIN_MIN * 4),
        (None, None) => ("begun by a control plane that is gone", AGAIN_MIN),
    };
    present.with_reason(Reason::new(code, message)).look_again(again).into()
}
