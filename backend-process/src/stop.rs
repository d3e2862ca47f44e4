//! Stops an instance in the background, and does what comes after.

use std::{sync::Arc, time::Duration};

use provisioner_core::{ErrorKind, types::Reason};
use tokio::time::Instant;

use crate::{
    error::{Problem, Result},
    instance::{Instance, Motion, Shared, View},
    layout::{Patience, remove_file},
    process::{self, Life, Process},
    records::{Intended, Record, write_outcome},
    remove, start, supervise,
};

const LOOK_DELAY_MIN: Duration = Duration::from_millis(2);
const LOOK_DELAY_MAX: Duration = Duration::from_millis(50);
/// How long after the kill something may still be there before it is said to be blocked. It is waited for none the less.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Puts an instance to rest, as far as can be done at once. `false`: there is no such instance. Call in its turn.
pub(crate) fn rest(
    shared: &Arc<Shared>,
    instance: &Arc<Instance>,
    intended: Intended,
    patience: Patience,
) -> Result<bool> {
    // None: its folder is gone, and something of it may run all the same.
    let turn = instance.folder.turn(patience)?;
    let Some(view) = instance.look(shared)? else {
        return Ok(false);
    };
    if let Some(record) = view.record.as_ref().filter(|_| turn.is_some()) {
        if matches!(record.intended, Intended::Destroying(_)) {
            return Ok(true);
        }
        if record.intended != intended {
            // First of all: from here on an exit is no failure, and a motion starts nothing.
            record.with_intended(intended).write(&instance.folder)?;
        }
    }
    if view.life == Life::Dead && view.moving.is_none() {
        if turn.is_some() {
            forget_process(shared, instance, &view)?;
        }
    } else {
        begin(shared, instance, view.record.as_ref(), Motion::default());
    }
    Ok(true)
}

/// Removes what names a process that is gone, so that no later owner of its number is ever looked at.
fn forget_process(shared: &Shared, instance: &Instance, view: &View) -> Result<()> {
    if view.life == Life::Dead {
        shared.groups.end(&shared.group(&instance.key))?;
        remove_file(&instance.folder.pid())?;
        remove_file(&instance.folder.ready())?;
    }
    Ok(())
}

/// Starts a stop, or tells the one in progress what comes after it now. Call in the instance's turn.
pub(crate) fn begin(shared: &Arc<Shared>, instance: &Arc<Instance>, record: Option<&Record>, motion: Motion) {
    {
        let mut live = instance.live();
        live.blocked = None;
        if let Some(current) = &mut live.motion {
            *current = Motion { blocked: current.blocked.take(), ..motion };
            return;
        }
        live.motion = Some(motion);
    }
    let grace = record.map_or(Duration::ZERO, Record::stop_grace);
    let stop = Stop { shared: Arc::clone(shared), instance: Arc::clone(instance), record: record.cloned(), grace };
    let cancel = shared.cancel.clone();
    shared.tasks.spawn(async move {
        // A cut stop is continued by the next verb, of this control plane or the one after it.
        cancel.run_until_cancelled(stop.drive()).await;
    });
}

struct Stop {
    shared: Arc<Shared>,
    instance: Arc<Instance>,
    record: Option<Record>,
    grace: Duration,
}

impl Stop {
    async fn drive(self) {
        loop {
            let finished = match self.until_gone().await {
                Ok(()) => self.finish().await,
                Err(problem) => Err(problem),
            };
            match finished {
                Ok(true) => break,
                // Something was started between the last look and our turn.
                Ok(false) => {}
                Err(problem) => {
                    tracing::warn!(instance = %self.instance.key.id, %problem, "a stop did not get to its end");
                    let mut live = self.instance.live();
                    live.motion = None;
                    live.blocked = Some(problem.to_string());
                    break;
                }
            }
        }
        self.shared.changed(&self.instance.key);
    }

    /// Asks, waits, kills, until nothing is left.
    async fn until_gone(&self) -> Result<()> {
        let deadline = Instant::now() + self.grace;
        let mut asked = false;
        let mut delay = LOOK_DELAY_MIN;
        loop {
            let life = self.look().await?;
            let now = Instant::now();
            let late = now >= deadline;
            match life {
                Life::Dead => return Ok(()),
                // It has no pid yet that could be told anything.
                Life::Starting => {}
                Life::Alive(process) if !late => {
                    if !asked {
                        process.terminate();
                        asked = true;
                    }
                    let _ = tokio::time::timeout_at(deadline, supervise::exit(process)).await;
                    continue;
                }
                // Descendants got the signal with their leader, unless they have lost it before: then nobody asks them.
                Life::Leftovers(_) if asked && !late => {}
                Life::Alive(process) => self.kill(Some(process)).await?,
                Life::Leftovers(leader) => self.kill(leader).await?,
            }
            if now > deadline + KILL_WAIT {
                self.set_blocked();
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LOOK_DELAY_MAX);
        }
    }

    async fn look(&self) -> Result<Life> {
        let (shared, instance) = (Arc::clone(&self.shared), Arc::clone(&self.instance));
        blocking(move || {
            let record = Record::read(&instance.folder, &instance.key)?;
            instance.life(&shared, record.as_ref())
        })
        .await
    }

    async fn kill(&self, leader: Option<Process>) -> Result<()> {
        let (shared, instance) = (Arc::clone(&self.shared), Arc::clone(&self.instance));
        let record = self.record.clone();
        blocking(move || {
            for member in shared.members(&instance, leader, record.as_ref())? {
                member.kill();
            }
            // Also when the folder is gone and there is nothing to find others by.
            leader.into_iter().for_each(Process::kill);
            Ok(())
        })
        .await
    }

    fn set_blocked(&self) {
        let holders = process::holders(&self.instance.folder);
        if let Some(motion) = &mut self.instance.live().motion {
            motion.blocked = Some(format!("its processes do not end, although killed; {holders:?} hold its lock"));
        }
    }

    /// Does what comes after. `false`: something lives again.
    async fn finish(&self) -> Result<bool> {
        let turn = self.instance.turn().await;
        let (shared, instance) = (Arc::clone(&self.shared), Arc::clone(&self.instance));
        blocking(move || {
            let _turn = turn;
            finish(&shared, &instance)
        })
        .await
    }
}

fn finish(shared: &Arc<Shared>, instance: &Arc<Instance>) -> Result<bool> {
    let patience = Patience::from_now();
    let folder_turn = instance.folder.turn(patience)?;
    let record = Record::read(&instance.folder, &instance.key)?;
    if instance.life(shared, record.as_ref())? != Life::Dead {
        return Ok(false);
    }
    // It stays until what comes after has begun, so that nobody who looks meanwhile takes a stop for a failure.
    let Some((order, removal)) =
        instance.live().motion.as_ref().map(|motion| (motion.order.clone(), motion.removal.clone()))
    else {
        return Ok(true);
    };
    if let Some(watched) = instance.live().watched.take() {
        watched.process.reap();
    }
    shared.groups.end(&shared.group(&instance.key))?;
    if folder_turn.is_some() {
        remove_file(&instance.folder.pid())?;
        remove_file(&instance.folder.ready())?;
    }
    // Another control plane on the same root may have gone further meanwhile.
    let order = order.filter(|order| record.as_ref().is_none_or(|record| record.generation <= order.generation));
    match (record.as_ref().map(|record| record.intended), order, removal) {
        (Some(Intended::Destroying(_)) | None, _, Some(removal)) => {
            remove::remove(shared, instance, &removal, patience)?
        }
        (Some(_), _, Some(removal)) if !removal.recorded => remove::remove(shared, instance, &removal, patience)?,
        (Some(Intended::Running), Some(order), _) if folder_turn.is_some() => {
            if let Err(problem) = start::start(shared, instance, record, order, patience) {
                tracing::warn!(instance = %instance.key.id, %problem, "not started after a stop");
                write_outcome(&instance.folder, &Reason::new("not-started", problem.to_string()))?;
            }
        }
        (None, Some(order), _) if folder_turn.is_some() => start::start(shared, instance, None, order, patience)?,
        _ => {}
    }
    instance.live().motion = None;
    Ok(true)
}

/// Runs file and process work where blocking is allowed. It is seen through also when the caller stops waiting.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Problem::new(ErrorKind::Internal, "the work was cut short").with_source(error)),
    }
}
