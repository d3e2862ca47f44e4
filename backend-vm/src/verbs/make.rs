//! Making a machine, on fresh data or on a volume that is there.

use provisioner_core::{
    Error, ErrorKind, Result, Retry,
    types::{DataSource, InvalidSpec},
};
use tokio::time::Instant;

use super::Work;
use crate::{
    boot::{self, Disk},
    digest::{Machine, State, Volume},
    launch::{self, Launch},
    names,
    seen::Seen,
    writes::{MADE, Write},
};

/// How many makings of one name in a row may have ended by the time that their token is used.
const TOKENS_MAX: usize = 4;

impl Work<'_> {
    pub(super) async fn make(&self, seen: &mut Seen) -> Result<()> {
        let (target, config) = (self.target, &self.shared.config);
        // What a removal was cut at.
        for volume in seen.volumes.clone().iter().filter(|volume| volume.is_ending()) {
            self.delete(seen, volume).await?;
        }
        let volume = self.volume_to_take_up(Some(&seen.volumes)).await?;
        if volume.is_none() && matches!(target.data, DataSource::Existing(_)) {
            return Err(self.data_missing());
        }
        let user_data = self.user_data(volume.as_ref().map(|volume| &*volume.id))?;
        let calls = self.shared.fleet.during(self.cx);
        let named = target.spec.workload.vm_image.as_deref().unwrap_or_default();
        let image = self.shared.images.resolve(self.cx, named).await.map_err(|failure| self.reading(failure))?;
        let zone = volume.as_ref().map(|volume| &*volume.zone);
        if seen.ended().and_then(Machine::failed_launch).is_some_and(|failed| failed.is_full) {
            // It has ended, and its token with it, so this may go elsewhere.
            self.shared.places.refused(config, self.incarnation(), target.spec.size, zone);
        }
        let Some((place, kind)) = self.shared.places.choose(config, self.incarnation(), target.spec.size, zone) else {
            let Some(zone) = zone.filter(|_| config.types_for(target.spec.size).next().is_some()) else {
                return Err(self.no_kind());
            };
            return Err(self.no_place(zone));
        };
        if let Some(volume) = &volume {
            self.take_up(volume).await?;
        }
        let mut tags = launch::owner_tags(&self.cx.control_plane, target);
        tags.extend(launch::spec_tags(target, &config.region));
        let mut launch = Launch {
            token: self.token(seen.ended()),
            image,
            kind,
            place,
            user_data,
            tags,
            volume_gib: volume.is_none().then(|| launch::volume_gib(&target.spec)),
            config: config.clone(),
        };
        for _ in 0..TOKENS_MAX {
            let made = match calls.run(&launch).await {
                Ok(made) => made,
                Err(failure) => {
                    let is_full = failure.kind == ErrorKind::CapacityExhausted && !failure.may_have_acted;
                    // That the data was taken up is known: of this call there is no effect.
                    let error = match is_full {
                        true => failure.during(self.during(), true),
                        false => self.writing(failure),
                    };
                    if is_full && self.shared.places.refused(config, self.incarnation(), target.spec.size, zone) {
                        return Err(error.with_retry(Retry::Anew));
                    }
                    return Err(error);
                }
            };
            let made =
                Machine::of(&made).ok_or_else(|| self.error(ErrorKind::Internal).with_message("it has no tags"))?;
            if made.state != State::Terminated {
                self.wrote(Write::State(made.id.clone(), MADE));
                self.shared.removes_no_more(self.incarnation());
                seen.is_removed = false;
                seen.machines.push(made);
                return Ok(());
            }
            // The token was used before, and what it made has ended.
            launch.token = self.token(Some(&made));
        }
        Err(self.error(ErrorKind::Internal).with_retry(Retry::Backoff).with_message("what its tokens made has ended"))
    }

    fn token(&self, after: Option<&Machine>) -> String {
        let after = after.map(|ended| &*ended.id);
        names::client_token(&self.cx.control_plane, &self.target.id, self.incarnation(), after)
    }

    /// The volume with the target's data, if there is one that it may have. `seen`: what was seen of it, where there is no machine
    /// yet; else its own machine may have it.
    pub(super) async fn volume_to_take_up(&self, seen: Option<&[Volume]>) -> Result<Option<Volume>> {
        let may_be_own = seen.is_none();
        let mut volumes = self.data_volumes(seen).await?;
        volumes.retain(|volume| !volume.is_ending());
        if volumes.iter().any(|volume| volume.machine.is_some()) {
            volumes.retain(|volume| volume.machine.is_some());
        }
        // Which of them the customer wrote to nobody here can tell, and a wrong one would be a blank start.
        if let [one, other, ..] = &volumes[..] {
            let message =
                format!("the volumes {} and {} both hold it: the wrong one has to be deleted", one.id, other.id);
            return Err(self.conflict("data", message));
        }
        let Some(volume) = volumes.into_iter().next() else { return Ok(None) };
        if *volume.owner.tenant != *self.target.tenant.digest() {
            return Err(self.conflict("data", "it is another tenant's"));
        }
        let Some(user) = volume.machine.as_deref() else {
            return if self.is_awaited(&volume).await? { Err(self.in_use()) } else { Ok(Some(volume)) };
        };
        let user = self.shared.fleet.machine(self.cx, user).await.map_err(|failure| self.reading(failure))?;
        match user {
            Some(user) if user.owner.incarnation == self.incarnation() => match may_be_own {
                true => Ok(Some(volume)),
                false => Err(self.too_early("its machine is not shown yet")),
            },
            Some(user) if user.is_living() => Err(self.in_use()),
            _ => Err(self.too_early(format!("the machine that had the volume {} has not let go of it yet", volume.id))),
        }
    }

    fn in_use(&self) -> Error {
        self.conflict("data", "another instance uses it")
    }

    /// Whether a machine of another making, which took the volume up, is about to get it.
    async fn is_awaited(&self, volume: &Volume) -> Result<bool> {
        let user = volume.owner.incarnation;
        if user == self.incarnation() || volume.is_released() {
            return Ok(false);
        }
        let machines = self.shared.fleet.machines(self.cx, user).await.map_err(|failure| self.reading(failure))?;
        Ok(machines.iter().any(Machine::is_living))
    }

    /// The volumes with the target's data. When there have to be some, they may not be shown yet.
    async fn data_volumes(&self, seen: Option<&[Volume]>) -> Result<Vec<Volume>> {
        let settling = self.shared.config.settling;
        let since = self.cx.since_last_call.unwrap_or(settling);
        let until = Instant::now() + settling.saturating_sub(since);
        let must_be_there = seen.is_none() || matches!(self.target.data, DataSource::Existing(_));
        let mut seen = seen.map(<[Volume]>::to_vec);
        loop {
            let mut volumes = match seen.take() {
                Some(seen) => seen,
                None => self.volumes().await?,
            };
            volumes.retain(|volume| volume.is_data);
            if !volumes.is_empty() || !must_be_there || Instant::now() >= until {
                return Ok(volumes);
            }
            self.pause().await?;
        }
    }

    /// From here on the volume is this making's: whoever destroys it comes back for the volume.
    async fn take_up(&self, volume: &Volume) -> Result<()> {
        if volume.owner.incarnation == self.incarnation() && !volume.is_released() {
            return Ok(());
        }
        let calls = self.shared.fleet.during(self.cx);
        calls.tag(&volume.id, &self.owner_of_volume()).await.map_err(|failure| self.writing(failure))?;
        self.wrote(Write::TakenUp(volume.id.clone()));
        if volume.released == Some(self.incarnation()) {
            let marks = vec![names::RELEASED.to_owned()];
            calls.untag(&volume.id, marks).await.map_err(|failure| self.writing(failure))?;
        }
        Ok(())
    }

    /// What the machine does at its boot. Fresh data may be formatted by whichever machine is the first to come to that.
    pub(super) fn user_data(&self, volume: Option<&str>) -> Result<Vec<u8>> {
        let disk = Disk { may_format: matches!(self.target.data, DataSource::Fresh(_)), id: volume };
        boot::user_data(&self.target.spec, &self.shared.config.region, disk).map_err(|invalid| self.invalid(invalid))
    }

    pub(super) fn data_missing(&self) -> Error {
        let message = format!("no volume holds the data {}", self.target.data.id());
        self.error(ErrorKind::DataMissing).with_field("data").with_message(message)
    }

    pub(super) fn invalid(&self, invalid: InvalidSpec) -> Error {
        let error = Error::from(invalid);
        let (field, message) = (error.field().unwrap_or_default().to_owned(), error.to_string());
        self.error(ErrorKind::InvalidSpec).with_field(field).with_message(message)
    }

    pub(super) fn no_kind(&self) -> Error {
        self.error(ErrorKind::InvalidSpec).with_field("size").with_message("no type of machine has room for it")
    }
}
