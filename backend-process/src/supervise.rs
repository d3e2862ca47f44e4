//! Watches processes: notices at once when one exits, and when it becomes ready or does not in time.

use std::{fs, io, net::SocketAddr, sync::Arc, time::Duration};

use provisioner_core::types::{ControlPlaneId, DataId, Reason};
use tokio::{sync::watch, time::Instant};

use crate::{
    error::{Problem, Result},
    health::{self, Seen},
    instance::{Instance, Motion, Shared, View, Watched},
    layout::{Key, Names, Patience},
    listener::Listener,
    log_tail::{LogStart, Values},
    process::{Life, Process},
    records::{Intended, Record, write_outcome},
    spawn,
    stop::{self, blocking},
    turn_over,
};

/// Between two probes: a part of the time that it has taken so far, so that a quick start is noticed quickly and a slow one costs
/// little.
const PROBE_DELAY_PART: u32 = 4;
const PROBE_DELAY_MIN: Duration = Duration::from_millis(2);
const PROBE_DELAY_MAX: Duration = Duration::from_millis(100);
/// For a product that was ready and has fallen silent: it is waited for without end.
const SILENT_DELAY_MAX: Duration = Duration::from_secs(2);
/// How long one probe may take.
const PROBE_TIME_MAX: Duration = Duration::from_secs(1);
/// How long an adopted process is given at least to show that it is ready.
const ADOPTION_TIME_MIN: Duration = Duration::from_secs(2);
/// How soon what is to be noted of a ready process is tried again.
const NOTE_DELAY_MIN: Duration = Duration::from_millis(50);
const NOTE_DELAY_MAX: Duration = Duration::from_secs(10);
/// How often a process is looked at that cannot be waited for.
const POLL_DELAY: Duration = Duration::from_millis(200);

/// Watches a process from now on. `started`: this control plane has just started it, and knows which values must not be
/// told and where its log begins; otherwise it is adopted. Does nothing when it is watched already.
pub(crate) fn watch(
    shared: &Arc<Shared>,
    instance: &Arc<Instance>,
    process: Process,
    record: &Record,
    started: Option<(Values, u64)>,
) {
    let adopted = started.is_none();
    let (values, log_start) = started.map_or((None, 0), |(values, log_start)| (Some(values), log_start));
    let (seen, _) = watch::channel(Seen::Nothing);
    let log_start = LogStart::after(log_start);
    {
        let mut live = instance.live();
        if live.watched.as_ref().is_some_and(|watched| watched.process == process) {
            return;
        }
        live.watched = Some(Watched { process, seen: seen.clone(), values, log_start });
    }
    let watcher = Watcher {
        shared: Arc::clone(shared),
        instance: Arc::clone(instance),
        process,
        seen,
        health_path: record.health_path.clone(),
        port: record.port,
        data: record.data.clone(),
        cpu_millis: record.cpu_millis,
        start_timeout: record.start_timeout(),
        adopted,
    };
    let cancel = shared.cancel.clone();
    shared.tasks.spawn(async move {
        cancel.run_until_cancelled(watcher.run()).await;
    });
}

/// Adopts the process in the view, if it should run and nobody watches it. Call it inside the runtime.
pub(crate) fn adopt(shared: &Arc<Shared>, instance: &Arc<Instance>, view: &View) -> Option<watch::Receiver<Seen>> {
    let record = view.record.as_ref()?;
    let process = match view.life {
        Life::Alive(process) => process,
        Life::Leftovers(_) if view.moving.is_none() => {
            let (of, own) = (Arc::clone(shared), Arc::clone(instance));
            shared.tasks.spawn(async move { end_leftovers(&of, &own).await });
            return None;
        }
        _ => return None,
    };
    if view.seen.is_some() || view.moving.is_some() || view.outcome.is_some() || record.intended != Intended::Running {
        return None;
    }
    watch(shared, instance, process, record, None);
    instance.live().watched.as_ref().map(|watched| watched.seen.subscribe())
}

struct Watcher {
    shared: Arc<Shared>,
    instance: Arc<Instance>,
    process: Process,
    seen: watch::Sender<Seen>,
    health_path: String,
    port: u16,
    data: DataId,
    /// 0: not held to any.
    cpu_millis: u32,
    start_timeout: Duration,
    adopted: bool,
}

impl Watcher {
    async fn run(self) {
        let gone = exit(self.process);
        tokio::pin!(gone);
        tokio::select! {
            biased;
            () = &mut gone => {}
            () = self.tend() => {}
        }
        // Once more: it may have printed a lot since the last time.
        self.bound_log().await;
        let instance = Arc::clone(&self.instance);
        let noted = blocking(move || {
            let record = Record::read(&instance.folder, &instance.key)?;
            instance.note_exit(record.as_ref());
            Ok(())
        });
        if let Err(problem) = noted.await {
            tracing::warn!(instance = %self.instance.key.id, %problem, "the end of a process was not written down");
        }
        end_leftovers(&self.shared, &self.instance).await;
        self.shared.changed(&self.instance.key);
    }

    /// Sees to a process for as long as it lives.
    async fn tend(&self) {
        tokio::join!(self.until_ready(), self.bound_logs());
    }

    /// From the first moment: also what never gets ready prints.
    async fn bound_logs(&self) {
        loop {
            self.bound_log().await;
            tokio::time::sleep(turn_over::INTERVAL).await;
        }
    }

    async fn bound_log(&self) {
        let (instance, bytes_max) = (Arc::clone(&self.instance), u64::from(self.shared.config.log_mib_max) << 20);
        let bounded = blocking(move || {
            if let Some(turned) = turn_over::turn_over(&instance.folder, bytes_max)?
                && let Some(watched) = &mut instance.live().watched
            {
                watched.log_start = watched.log_start.turned(turned);
            }
            Ok(())
        });
        if let Err(problem) = bounded.await {
            tracing::warn!(instance = %self.instance.key.id, %problem, "a log was not bounded");
        }
    }

    async fn until_ready(&self) {
        let was_ready = self.adopted && self.was_ready();
        let left = self.start_timeout.saturating_sub(self.process.age());
        let deadline = Instant::now() + if self.adopted { left.max(ADOPTION_TIME_MIN) } else { left };
        let began = Instant::now();
        let address = self.shared.address(self.port);
        loop {
            let mut seen = health::probe(address, &self.health_path, PROBE_TIME_MAX).await;
            if seen == Seen::Ready {
                seen = self.whose_answer(address).await;
            }
            self.seen.send_replace(seen.clone());
            let late = Instant::now() >= deadline;
            match seen {
                Seen::Ready => {
                    self.until_noted().await;
                    return;
                }
                // Its traffic would go there, and it cannot have the port any more.
                Seen::Stranger(_) => {
                    self.give_up(Reason::new("port-taken", seen.to_string())).await;
                    return;
                }
                seen if late && !was_ready => {
                    let message = format!("not ready after {} s: {seen}", self.start_timeout.as_secs());
                    self.give_up(Reason::new("start-up-timeout", message)).await;
                    return;
                }
                _ => {}
            }
            let delay_max = if late { SILENT_DELAY_MAX } else { PROBE_DELAY_MAX };
            let delay = (began.elapsed() / PROBE_DELAY_PART).clamp(PROBE_DELAY_MIN, delay_max);
            let wait = if late { delay } else { delay.min(deadline - Instant::now()) };
            tokio::time::sleep(wait).await;
        }
    }

    /// Readiness, unless it was somebody else who answered: another process can take the port before the product does.
    async fn whose_answer(&self, address: SocketAddr) -> Seen {
        let (shared, instance, data) = (Arc::clone(&self.shared), Arc::clone(&self.instance), self.data.clone());
        let (process, port) = (self.process, self.port);
        match blocking(move || instance.listener(&shared, process, port, &data)).await {
            Ok(Listener::Own) => Seen::Ready,
            Ok(Listener::Stranger) => Seen::Stranger(address),
            Ok(Listener::Nobody) => Seen::Refused(address),
            Err(problem) => Seen::Unclear(problem.to_string()),
        }
    }

    /// Whether this very process has been ready before. Such a one may be slow for a while without being stopped for it.
    fn was_ready(&self) -> bool {
        fs::read_to_string(self.instance.folder.ready()).is_ok_and(|text| text == self.process.to_string())
    }

    /// Does what is to be done once it is ready, and tells. What fails is tried again for as long as it lives: else it would never be
    /// held to its CPU time, and be stopped by the next control plane if it is slow then.
    async fn until_noted(&self) {
        let mut delay = NOTE_DELAY_MIN;
        let mut noted = self.note_ready().await;
        self.shared.changed(&self.instance.key);
        while let Err(problem) = noted {
            tracing::warn!(instance = %self.instance.key.id, %problem, ?delay, "readiness was not noted; tried again");
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(NOTE_DELAY_MAX);
            noted = self.note_ready().await;
        }
    }

    async fn note_ready(&self) -> Result<()> {
        let (path, text) = (self.instance.folder.ready(), self.process.to_string());
        let (shared, group, cpu_millis) =
            (Arc::clone(&self.shared), self.shared.group(&self.instance.key), self.cpu_millis);
        blocking(move || {
            let held = if cpu_millis > 0 { shared.groups.hold_cpu(&group, cpu_millis) } else { Ok(()) };
            // A hint for whoever adopts it: not worth a sync, and losing it costs nothing while it answers.
            let written = fs::write(&path, text).map_err(|error| Problem::io("write", &path, error));
            held.and(written)
        })
        .await
    }

    /// Releases the compute and says why. Whether to try again is for the engine to say.
    async fn give_up(&self, reason: Reason) {
        let turn = self.instance.turn().await;
        let (shared, instance, process) = (Arc::clone(&self.shared), Arc::clone(&self.instance), self.process);
        let given_up = blocking(move || {
            let (_turn, Some(_folder_turn)) = (turn, instance.folder.turn(Patience::from_now())?) else {
                return Ok(());
            };
            let Some(view) = instance.look(&shared)? else {
                return Ok(());
            };
            let Some(record) = view.record.as_ref().filter(|record| record.intended == Intended::Running) else {
                return Ok(());
            };
            if view.life == Life::Alive(process) && view.moving.is_none() {
                write_outcome(&instance.folder, &reason)?;
                stop::begin(&shared, &instance, Some(record), Motion::default());
            }
            Ok(())
        });
        if let Err(problem) = given_up.await {
            tracing::warn!(instance = %self.instance.key.id, %problem, "a process that is not ready was not stopped");
        }
        self.shared.changed(&self.instance.key);
    }
}

/// Stops what a process that should run has left behind: nobody watches it, or bounds its log.
async fn end_leftovers(shared: &Arc<Shared>, instance: &Arc<Instance>) {
    let turn = instance.turn().await;
    let (of, own) = (Arc::clone(shared), Arc::clone(instance));
    let stopped = blocking(move || {
        let (_turn, Some(_folder_turn)) = (turn, own.folder.turn(Patience::from_now())?) else {
            return Ok(());
        };
        if let Some(view) = own.look(&of)?
            && let (Life::Leftovers(_), None, Some(record)) = (view.life, &view.moving, &view.record)
        {
            stop::begin(&of, &own, Some(record), Motion::default());
        }
        Ok(())
    });
    if let Err(problem) = stopped.await {
        tracing::warn!(instance = %instance.key.id, %problem, "what a process left behind was not stopped");
    }
}

/// Returns when the process has exited, as soon as the kernel tells.
pub(crate) async fn exit(process: Process) {
    let waited = async {
        let Some(pidfd) = process.pidfd()? else {
            return Ok(());
        };
        let pidfd = spawn::register(pidfd)?;
        pidfd.readable().await.map(|_| ())
    };
    let waited: io::Result<()> = waited.await;
    if let Err(error) = waited {
        // Out of descriptors, or a kernel without them.
        tracing::warn!(pid = process.pid(), %error, "a process cannot be waited for; it is looked at from time to time");
        while process.is_alive() {
            tokio::time::sleep(POLL_DELAY).await;
        }
    }
}

/// Adopts all that runs: after a restart of the control plane nobody else would notice its exits.
pub(crate) async fn adopt_all(shared: &Arc<Shared>, control_plane: &ControlPlaneId) -> Result<()> {
    let mut names = Names::new(shared.layout.instances(control_plane));
    loop {
        let (page, of) = (Arc::clone(shared), control_plane.clone());
        let (started, more) = blocking(move || {
            let found = names.page()?;
            let more = !found.is_empty();
            let keys = found.iter().filter_map(|name| Key::from_folder_name(&of, name));
            // What sleeps has no such file: this costs one look at each.
            let started: Vec<_> = keys.filter(|key| page.layout.instance(key).pid().exists()).collect();
            Ok((started, more.then_some(names)))
        })
        .await?;
        for key in started {
            let instance = shared.instance(&key);
            match instance.look_in_turn(shared, None).await {
                Ok(Some(view)) if adopt(shared, &instance, &view).is_some() => {}
                // It ended, or was being stopped, while nobody looked.
                Ok(Some(view)) if view.seen.is_none() => shared.changed(&key),
                Ok(_) => {}
                Err(problem) => {
                    tracing::warn!(instance = %key.id, %problem, "not adopted");
                    shared.changed(&key);
                }
            }
        }
        let Some(rest) = more else {
            return Ok(());
        };
        names = rest;
    }
}
