//! Having an instance run, at its target's generation: what is there is brought to it, step by step, as machines let it.

use std::sync::atomic::Ordering;

use provisioner_core::{ErrorKind, Result, types::Observed};
use tracing::warn;

use super::Work;
use crate::{
    calls::Tags,
    digest::{Intended, Machine, State, Volume},
    launch, names,
    seen::{Health, Seen},
    writes::{STARTED, Write},
};

/// What a verb that wakes may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Make it, where nothing is there.
    Create,
    /// Only what is there.
    Resume,
}

impl Work<'_> {
    pub(crate) async fn run(&self, wake: Wake) -> Result<Observed> {
        let mut seen = self.look().await?;
        match seen.living().cloned() {
            Some(machine) => self.bring(&mut seen, &machine).await?,
            None if wake == Wake::Create && seen.leaving().is_none() => self.make(&mut seen).await?,
            None => {}
        }
        self.answer(&seen).await
    }

    /// Brings a machine to the target, as far as its state lets it be brought.
    async fn bring(&self, seen: &mut Seen, machine: &Machine) -> Result<()> {
        let target = self.target;
        if machine.owner.data != *target.data.id() {
            return Err(self.conflict("data", "a machine keeps the data that it was made with"));
        }
        if machine.generation > target.generation {
            let message = format!("{}: it is at {} already", target.generation, machine.generation);
            return Err(self.conflict("generation", message));
        }
        for extra in seen.clone().beside(machine) {
            self.end(seen, extra).await?;
        }
        if machine.state == State::Stopping {
            return Ok(());
        }
        let is_newer = machine.generation < target.generation;
        if is_newer && *machine.image != *launch::image_digest(&target.spec) {
            self.expect_another().await?;
            // Its data is kept. What takes its place is another incarnation, made when this one is seen to be gone.
            return self.end(seen, machine).await;
        }
        if machine.volume.is_none() && machine.state != State::Pending {
            self.attach(seen, machine).await?;
        }
        let change = Change {
            kind: is_newer && *machine.size != *launch::size(&target.spec),
            boot: is_newer && *machine.boot != *launch::boot_digest(&target.spec, &self.shared.config.region),
            // The same spec once more: the product is to read its secrets anew.
            restart: is_newer && *machine.spec == *launch::spec_digest(&target.spec),
        };
        let grown = if is_newer { self.grow(machine).await } else { Ok(()) };
        if let Err(error) = grown {
            let waits = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::QuotaExceeded);
            if machine.state != State::Stopped || !waits {
                return Err(error);
            }
            // A customer who waits for a wake does not wait for room: it starts as it was, and is asked to grow while it runs.
            return self.start(seen, machine, false, Change::default()).await;
        }
        match machine.state {
            State::Running if change.needs_stop() => {
                self.intend(seen, machine, Intended::Updating).await?;
                self.stop(seen, machine).await
            }
            State::Running => self.run_on(seen, machine, is_newer).await,
            State::Stopped => self.start(seen, machine, is_newer, change).await,
            // It has to come up before it can be stopped.
            State::Pending if change.alters() => Ok(()),
            State::Pending => self.tell(seen, machine, is_newer).await,
            State::Stopping | State::ShuttingDown | State::Terminated => Ok(()),
        }
    }

    /// Before a machine is ended for another one: that can be made, as far as that can be known.
    async fn expect_another(&self) -> Result<()> {
        let spec = &self.target.spec;
        let volumes = self.volumes().await?;
        let zones = volumes.iter().filter(|volume| volume.is_data).map(|volume| &*volume.zone);
        let has_place = |zone: &str| self.shared.config.places.iter().any(|place| place.zone == *zone);
        if let Some(zone) = zones.into_iter().find(|zone| !has_place(zone)) {
            return Err(self.no_place(zone));
        }
        self.user_data(None)?;
        self.shared.config.types_for(spec.size).next().ok_or_else(|| self.no_kind())?;
        let named = spec.workload.vm_image.as_deref().unwrap_or_default();
        self.shared
            .images
            .expect(self.cx, self.shared.fleet.during(self.cx), named)
            .await
            .map_err(|failure| self.reading(failure))
    }

    /// A machine that runs, and may be in trouble.
    async fn run_on(&self, seen: &mut Seen, machine: &Machine, is_newer: bool) -> Result<()> {
        // Asleep it was to be, and is not yet: it stays awake.
        self.tell(seen, machine, is_newer).await?;
        let health = self.shared.health(self.cx, seen).await.map_err(|failure| self.reading(failure))?;
        match health {
            // Its data is kept, and another machine takes its place.
            Some(Health::Unfit(_)) => {
                self.expect_another().await?;
                self.end(seen, machine).await
            }
            Some(Health::Silent(_)) if machine.intended == Intended::Running => {
                let done = self.shared.fleet.during(self.cx).reboot(&machine.id).await;
                done.map_err(|failure| self.writing(failure))?;
                self.acted.store(true, Ordering::Relaxed);
                if let Some(prober) = self.shared.prober() {
                    prober.begin_again(machine, self.cx.now);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn start(&self, seen: &mut Seen, machine: &Machine, is_newer: bool, change: Change) -> Result<()> {
        let calls = self.shared.fleet.during(self.cx);
        if change.alters() && !(machine.boot.is_empty() && machine.size.is_empty()) {
            // From here on nobody knows what it is and does at its boot, and nothing of that can be seen.
            let unknown = [names::BOOT, names::SIZE].map(|key| (key.to_owned(), String::new())).into();
            calls.tag(&machine.id, &unknown).await.map_err(|failure| self.writing(failure))?;
        }
        // Also where it was the same, as far as is known: somebody may have changed it at the console, or it names another volume.
        if is_newer || machine.volume.is_none() {
            let has = seen.machines.iter().find(|other| other.id == machine.id).and_then(|other| other.volume.clone());
            calls
                .set_user_data(&machine.id, self.user_data(has.as_deref())?)
                .await
                .map_err(|failure| self.writing(failure))?;
        }
        // A restart that is cut is not one twice. A sleeper is told to sleep until it was taken to be started.
        let tells_first = change.restart && machine.intended == Intended::Updating;
        if tells_first {
            self.tell(seen, machine, is_newer).await?;
        }
        self.start_with_room(machine).await?;
        self.wrote(Write::State(machine.id.clone(), STARTED));
        seen.change(&machine.id, |machine| machine.state = State::Pending);
        if tells_first { Ok(()) } else { self.tell(seen, machine, is_newer).await }
    }

    /// Starts a stopped machine. Its volume holds it in its zone: where there is no room for its type, the next one is tried.
    async fn start_with_room(&self, machine: &Machine) -> Result<()> {
        let (calls, places, config) = (self.shared.fleet.during(self.cx), &self.shared.places, &self.shared.config);
        let mut has = machine.kind.clone();
        let choose = || places.choose_type(config, &machine.subnet, self.target.spec.size);
        let mut kind = choose();
        loop {
            // Where none has room, the service says so of the one that it has.
            let wanted = kind.as_ref().map_or(&*has, |kind| &kind.name);
            if *wanted != *has {
                calls.set_type(&machine.id, wanted).await.map_err(|failure| self.writing(failure))?;
                has = wanted.into();
            }
            match self.shared.fleet.start(self.cx, &machine.id).await {
                Err(failure) if failure.kind == ErrorKind::CapacityExhausted && !failure.may_have_acted => {
                    places.is_full(&machine.subnet, &has);
                    kind = choose();
                    if kind.is_none() {
                        return Err(self.writing(failure));
                    }
                }
                done => return done.map_err(|failure| self.writing(failure)),
            }
        }
    }

    /// Has the machine say what it is now.
    async fn tell(&self, seen: &mut Seen, machine: &Machine, is_newer: bool) -> Result<()> {
        if !is_newer {
            return self.intend(seen, machine, Intended::Running).await;
        }
        let calls = self.shared.fleet.during(self.cx);
        let tags = launch::spec_tags(self.target, &self.shared.config.region);
        // First those that go: a machine has room for so many.
        let label = |key: &str| format!("{}{key}", names::LABEL);
        let dropped = machine.labels.iter().map(|(key, _)| label(key)).filter(|key| !tags.contains_key(key));
        let dropped: Vec<_> = dropped.collect();
        if !dropped.is_empty() {
            calls.untag(&machine.id, dropped).await.map_err(|failure| self.writing(failure))?;
        }
        calls.tag(&machine.id, &tags).await.map_err(|failure| self.writing(failure))?;
        self.wrote(Write::Generation(machine.id.clone(), self.target.generation));
        self.wrote(Write::Intended(machine.id.clone(), Intended::Running));
        seen.change(&machine.id, |machine| {
            (machine.generation, machine.intended) = (self.target.generation, Intended::Running);
        });
        Ok(())
    }

    /// Gives a machine its volume: one that is taken up is attached when the machine runs.
    async fn attach(&self, seen: &mut Seen, machine: &Machine) -> Result<()> {
        let volume = self.volume_to_take_up(None).await?;
        let Some(volume) = volume else { return Err(self.data_missing()) };
        let attached = volume.id.clone();
        // What the spec asks for since another making had it. A machine does not wait for room that may take hours to come.
        if let Err(error) = self.grow_volume(&volume, launch::volume_gib(&self.target.spec)).await {
            warn!(volume = &*volume.id, %error, "a volume that is taken up does not grow now");
        }
        if volume.machine.as_deref() == Some(&*machine.id) {
            seen.change(&machine.id, |machine| machine.volume = Some(attached));
            return Ok(());
        }
        let done = self.shared.fleet.during(self.cx).attach(&volume.id, &machine.id).await;
        match done {
            Err(failure) if failure.kind == ErrorKind::Conflict => {
                return Err(self.too_early(format!("the volume {} cannot be attached yet", volume.id)));
            }
            done => done.map_err(|failure| self.writing(failure))?,
        }
        self.wrote(Write::Attached(machine.id.clone(), volume.id));
        seen.change(&machine.id, |machine| machine.volume = Some(attached));
        Ok(())
    }

    /// Volumes grow while they are used, and never shrink.
    async fn grow(&self, machine: &Machine) -> Result<()> {
        let wanted = launch::volume_gib(&self.target.spec);
        let volumes = self.volumes().await?;
        match volumes.iter().find(|volume| Some(&volume.id) == machine.volume.as_ref()) {
            Some(volume) => self.grow_volume(volume, wanted).await,
            None => Ok(()),
        }
    }

    async fn grow_volume(&self, volume: &Volume, wanted: i32) -> Result<()> {
        if wanted <= volume.size_gib {
            return Ok(());
        }
        match self.shared.fleet.during(self.cx).grow(&volume.id, wanted).await {
            // It grows already, and shows that late; or it is not done with growing before, which takes hours.
            Err(failure) if failure.kind == ErrorKind::Conflict => {
                Err(self.too_early(format!("the volume {} cannot grow yet", volume.id)))
            }
            done => done.map_err(|failure| self.writing(failure)),
        }
    }

    pub(super) fn owner_of_volume(&self) -> Tags {
        let mut tags = launch::owner_tags(&self.cx.control_plane, self.target);
        for (key, value) in &self.target.spec.labels {
            tags.insert(format!("{}{key}", names::LABEL), value.to_string());
        }
        tags
    }
}

/// What differs that a running machine cannot have changed.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    kind: bool,
    boot: bool,
    restart: bool,
}

impl Change {
    /// Whether the machine becomes another than it was.
    const fn alters(self) -> bool {
        self.kind || self.boot
    }

    const fn needs_stop(self) -> bool {
        self.alters() || self.restart
    }
}
