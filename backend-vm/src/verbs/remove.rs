//! Removing an instance, and data that nobody uses.

use std::{
    sync::{Arc, LazyLock, PoisonError, Weak},
    time::Duration,
};

use provisioner_core::{
    ErrorKind, OpContext, Priority, Result, Retry,
    types::{DataDisposition, DataId, Incarnation, Observed},
};
use tokio::time::Instant;

use super::Work;
use crate::{
    backend::Shared,
    calls::by_tag,
    digest::{Machine, Volume},
    error::During,
    names,
    seen::Seen,
    writes::Write,
};

/// Longer than a machine takes to end.
const FOLLOWED_FOR: Duration = Duration::from_secs(600);

impl Work<'_> {
    pub(crate) async fn destroy(&self, data: DataDisposition) -> Result<Observed> {
        let mut seen = self.look().await?;
        self.shared.removes(self.incarnation());
        seen.is_removed = true;
        let volumes = self.volumes_to_mark(&seen).await?;
        if data == DataDisposition::Delete {
            self.delete_left_behind(&volumes).await?;
        }
        // First what is to become of the data: when the machine is gone nothing else would tell.
        let mut volumes: Vec<_> = volumes.into_iter().filter(|volume| self.is_own(volume)).collect();
        for volume in &mut volumes {
            // A disk that its machine booted from is of no use to anybody else. What an operator has attached somewhere else may be
            // the only copy.
            let is_root =
                !volume.is_data && seen.machines.iter().any(|machine| volume.machine == Some(machine.id.clone()));
            match (is_root, volume.goes_with_machine) {
                (true, true) => {}
                (true, false) => self.mark(volume, DataDisposition::Delete).await?,
                (false, _) => self.mark(volume, data).await?,
            }
        }
        seen.volumes = volumes;
        for machine in seen.machines.clone().iter().filter(|machine| machine.is_living()) {
            self.end(&mut seen, machine).await?;
        }
        self.shared.places.forget(self.incarnation());
        let ending: Vec<_> = seen.volumes.iter().filter(|volume| volume.is_ending()).cloned().collect();
        if seen.leaving().is_none() {
            for volume in &ending {
                self.delete(&mut seen, volume).await?;
            }
        }
        if seen.volumes.iter().any(Volume::is_ending) {
            self.follow();
        }
        self.answer(&seen).await
    }

    /// Volumes can be deleted when their machine is gone and has let go of them, and nothing but a look would tell.
    fn follow(&self) {
        let mut followed = self.shared.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if followed.insert(self.incarnation()) {
            let mut cx = OpContext::new(self.cx.control_plane.clone()).with_timeout(FOLLOWED_FOR);
            (cx.priority, cx.replicas) = (Priority::Background, self.cx.replicas);
            tokio::spawn(follow(Arc::downgrade(self.shared), cx, self.incarnation()));
        }
    }

    fn is_own(&self, volume: &Volume) -> bool {
        volume.owner.incarnation == self.incarnation()
    }

    /// The volumes with the data, among them those that the making was the last to use. That of a machine which was made a moment
    /// ago may not be shown yet, and would be left.
    async fn volumes_to_mark(&self, seen: &Seen) -> Result<Vec<Volume>> {
        let settling = self.shared.config.settling;
        let until = Instant::now() + settling.saturating_sub(self.cx.since_last_call.unwrap_or(settling));
        if seen.living().is_none() {
            return Ok(seen.volumes.clone());
        }
        loop {
            let volumes = self.volumes().await?;
            let is_shown = |volume: &Volume| volume.is_data && self.is_own(volume);
            if volumes.iter().any(is_shown) || Instant::now() >= until {
                return Ok(volumes);
            }
            self.pause().await?;
        }
    }

    /// Deletes the same data that earlier makings of the instance left: by a call that came late, or that was cut before the volume
    /// was taken up. Nothing would look for it any more when this making is gone.
    async fn delete_left_behind(&self, volumes: &[Volume]) -> Result<()> {
        for volume in volumes {
            let owner = &volume.owner;
            let is_older = owner.instance == self.target.id && owner.incarnation.number() < self.incarnation().number();
            if is_older && volume.machine.is_none() && *owner.tenant == *self.target.tenant.digest() {
                self.delete(&mut Seen::default(), volume).await?;
            }
        }
        Ok(())
    }

    /// What was to be deleted is not retained any more: it may be half gone.
    async fn mark(&self, volume: &mut Volume, data: DataDisposition) -> Result<()> {
        if volume.is_ending() || (data == DataDisposition::Retain && volume.is_released()) {
            return Ok(());
        }
        let (key, mark) = match data {
            DataDisposition::Delete => (names::ENDING, &mut volume.ending),
            DataDisposition::Retain => (names::RELEASED, &mut volume.released),
        };
        let tags = [(key.to_owned(), self.incarnation().to_string())].into();
        let done = self.shared.fleet.during(self.cx).tag(&volume.id, &tags).await;
        done.map_err(|failure| self.writing(failure))?;
        *mark = Some(self.incarnation());
        self.wrote(Write::Marked(volume.id.clone()));
        Ok(())
    }

    /// Deletes a volume that no machine has.
    pub(super) async fn delete(&self, seen: &mut Seen, volume: &Volume) -> Result<()> {
        match self.shared.fleet.during(self.cx).delete_volume(&volume.id).await {
            Err(failure) if failure.kind == ErrorKind::NotFound => {}
            // Its machine is gone, and has not let go of it yet.
            Err(failure) if failure.kind == ErrorKind::Conflict => {
                tracing::debug!(volume = &*volume.id, ?failure, "a volume is not deleted yet");
                return Ok(());
            }
            done => done.map_err(|failure| self.writing(failure))?,
        }
        self.wrote(Write::Gone(volume.id.clone()));
        seen.volumes.retain(|other| other.id != volume.id);
        Ok(())
    }
}

/// Deletes the volumes that are to go with a machine, once it is gone. Where this process ends before, or this takes too long,
/// `destroy` is called again.
async fn follow(shared: Weak<Shared>, cx: OpContext, incarnation: Incarnation) {
    follow_to_the_end(&shared, &cx, incarnation).await;
    if let Some(shared) = shared.upgrade() {
        shared.followed.lock().unwrap_or_else(PoisonError::into_inner).remove(&incarnation);
    }
}

async fn follow_to_the_end(shared: &Weak<Shared>, cx: &OpContext, incarnation: Incarnation) {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

    let until = Instant::now() + FOLLOWED_FOR;
    while Instant::now() < until {
        // At the moments at which others look, too: they share requests.
        let Some(every) = shared.upgrade().map(|shared| shared.config.look_every) else { return };
        let passed = BEGAN.elapsed().as_millis() / every.as_millis();
        tokio::time::sleep_until(*BEGAN + every.saturating_mul(passed as u32 + 1)).await;
        let Some(shared) = shared.upgrade() else { return };
        // What cannot be seen or deleted now is tried again: whoever destroys it is told when it does not come to an end.
        let Ok(seen) = shared.seen(cx, incarnation).await else { continue };
        // Of one that is shown, be it as it was before, volumes are not told.
        if seen.living().is_some() || seen.leaving().is_some() {
            continue;
        }
        let ending: Vec<_> = seen.volumes.iter().filter(|volume| volume.is_ending()).collect();
        if ending.is_empty() {
            return;
        }
        // One that a machine has is refused: somebody took it to look at it.
        for volume in ending.into_iter().filter(|volume| volume.machine.is_none()) {
            if let Err(failure) = shared.fleet.during(cx).delete_volume(&volume.id).await {
                tracing::debug!(volume = &*volume.id, ?failure, "a volume is not deleted yet");
            }
        }
    }
}

/// Deletes retained data.
pub(crate) async fn delete_data(shared: &Shared, cx: &OpContext, data: &DataId) -> Result<()> {
    let during = During { operation: "delete data", instance: None };
    let reading = |failure: crate::error::Failure| failure.during(during, false);
    let volumes = shared.fleet.data(cx, data).await.map_err(reading)?;
    if volumes.is_empty() {
        return Ok(());
    }
    let calls = shared.fleet.during(cx);
    // Also of one that is about to get it.
    let users = calls.all_machines(&by_tag(names::DATA, [data.to_string()])).await.map_err(reading)?;
    let users = users.iter().filter_map(Machine::of);
    let user = users.into_iter().find(|user| user.is_living() && user.owner.control_plane == cx.control_plane);
    if let Some(user) = user {
        let error = during.error(ErrorKind::Conflict).with_field("data");
        return Err(error.with_message(format!("the machine {} uses it", user.id)));
    }
    for volume in volumes.iter().filter(|volume| volume.is_data || volume.machine.is_none()) {
        match calls.delete_volume(&volume.id).await {
            Err(failure) if failure.kind == ErrorKind::NotFound => {}
            Err(failure) if failure.kind == ErrorKind::Conflict => {
                let error = failure.during(during, true).with_field("data");
                return Err(error.with_retry(Retry::Backoff));
            }
            done => done.map_err(|failure| failure.during(during, true))?,
        }
    }
    Ok(())
}
