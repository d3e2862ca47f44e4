//! What is known of instances in memory: of those that run or move, and of no other.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    ops::RangeInclusive,
    os::unix::ffi::OsStrExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use provisioner_core::{
    ErrorKind,
    types::{Bound, ControlPlaneId, DataDisposition, DataId, Generation, InstanceId, Isolation, Reason, Usage},
};
use tokio::sync::{OwnedMutexGuard, broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cgroup::{Groups, Incidents, UsedUp},
    config::ProcessConfig,
    convert::Order,
    data::Owner,
    error::{Problem, Result},
    health::Seen,
    layout::{InstanceFolder, Key, Layout, Patience},
    listener::{self, Listener, Whose},
    log_tail::{self, LogStart, Values},
    process::{self, Exit, Life, Process, Signs},
    records::{self, Intended, Record, read_outcome, write_outcome},
    stop::blocking,
    survival, users,
};

/// How many changes a slow reader of a watch may be behind before it loses some.
const CHANGES_KEPT: usize = 4096;

/// What all handles of a backend share.
pub(crate) struct Shared {
    pub(crate) config: ProcessConfig,
    pub(crate) layout: Layout,
    pub(crate) groups: Groups,
    /// The users that instances run as, where this process may give them away.
    pub(crate) users: Option<RangeInclusive<u32>>,
    pub(crate) survives_control_plane: bool,
    /// Tells the groups of this root from those of another one.
    mark: String,
    pub(crate) tasks: TaskTracker,
    pub(crate) cancel: CancellationToken,
    pub(crate) changes: broadcast::Sender<(ControlPlaneId, InstanceId)>,
    instances: Mutex<BTreeMap<Key, Weak<Instance>>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

/// One instance that somebody is looking at, acting on or watching.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) key: Key,
    pub(crate) folder: InstanceFolder,
    /// Held by a verb while it looks and acts.
    turn: Arc<tokio::sync::Mutex<()>>,
    live: Mutex<Live>,
    shared: Weak<Shared>,
}

/// What is in memory of an instance. All of it can be lost.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) motion: Option<Motion>,
    pub(crate) watched: Option<Watched>,
    /// Why the last background work did not get to its end.
    pub(crate) blocked: Option<String>,
}

/// A stop in progress, and what comes after it. What the instance is meant to be is in its record.
#[derive(Debug, Default)]
pub(crate) struct Motion {
    /// What to start once everything is gone, if the record still says running.
    pub(crate) order: Option<Order>,
    /// What to do with which data, if the record says destroying or there is none.
    pub(crate) removal: Option<Removal>,
    pub(crate) blocked: Option<String>,
}

/// What becomes of the data of an instance that is being removed.
#[derive(Debug, Clone)]
pub(crate) struct Removal {
    pub(crate) data: DataId,
    pub(crate) disposition: DataDisposition,
    /// Whether the record says so too. Not where there was no room to write it.
    pub(crate) recorded: bool,
}

/// A process whose exit is awaited.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) process: Process,
    pub(crate) seen: watch::Sender<Seen>,
    /// What must not be told of its log; `None` when another control plane started it and nothing may be told.
    pub(crate) values: Option<Values>,
    /// Where in the log this start begins.
    pub(crate) log_start: LogStart,
}

/// One look at an instance: files, processes and memory together.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) record: Option<Record>,
    pub(crate) life: Life,
    pub(crate) outcome: Option<Reason>,
    pub(crate) moving: Option<Moving>,
    /// What was last seen at its health path; `None` when its process is not watched.
    pub(crate) seen: Option<Seen>,
    pub(crate) blocked: Option<String>,
    /// What it uses; only while it lives.
    pub(crate) usage: Option<Usage>,
}

/// A motion, as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moving {
    /// The generation that starts when it is done.
    pub(crate) restarts: Option<Generation>,
    pub(crate) blocked: Option<String>,
}

impl Shared {
    pub(crate) fn new(config: ProcessConfig) -> Arc<Self> {
        let groups = config.cgroup.as_deref().map(Groups::find).unwrap_or_default();
        Arc::new(Self {
            layout: Layout::new(config.root.clone()),
            survives_control_plane: survival::of_instances(&groups, config.service_spares_children),
            groups,
            users: users::usable(config.users.as_ref()),
            mark: records::hex(config.root.as_os_str().as_bytes())[..8].to_owned(),
            config,
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            changes: broadcast::channel(CHANGES_KEPT).0,
            instances: Mutex::default(),
        })
    }

    /// The one entry of an instance, for as long as somebody holds it.
    pub(crate) fn instance(self: &Arc<Self>, key: &Key) -> Arc<Instance> {
        let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(instance) = instances.get(key).and_then(Weak::upgrade) {
            return instance;
        }
        let instance = Arc::new(Instance {
            folder: self.layout.instance(key),
            key: key.clone(),
            turn: Arc::default(),
            live: Mutex::default(),
            shared: Arc::downgrade(self),
        });
        instances.insert(key.clone(), Arc::downgrade(&instance));
        instance
    }

    /// The name of an instance's control group.
    pub(crate) fn group(&self, key: &Key) -> String {
        format!("{}.{}.{}", self.mark, key.control_plane, key.folder_name())
    }

    /// Reads a group's name back: the instance of this root that it is of.
    pub(crate) fn of_group(&self, name: &str) -> Option<Key> {
        let mut parts = name.splitn(3, '.');
        let (mark, control_plane, folder) = (parts.next()?, parts.next()?, parts.next()?);
        let control_plane = ControlPlaneId::new(control_plane).ok()?;
        (mark == self.mark).then(|| Key::from_folder_name(&control_plane, folder)).flatten()
    }

    /// What keeps instances from each other here.
    pub(crate) fn isolation(&self) -> Isolation {
        let bound = |by_group: bool, otherwise| if by_group { Bound::Instance } else { otherwise };
        let users = self.users.is_some();
        Isolation {
            users,
            memory: bound(self.groups.bounds_memory(), Bound::Process),
            cpu: bound(self.groups.bounds_cpu(), Bound::None),
            // The number of processes of a user that one instance has alone.
            processes: bound(self.groups.bounds_processes() || users, Bound::None),
        }
    }

    /// Whether the process of an instance is watched.
    pub(crate) fn watches(&self, key: &Key) -> bool {
        let instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
        let instance = instances.get(key).and_then(Weak::upgrade);
        drop(instances);
        instance.is_some_and(|instance| instance.live().watched.is_some())
    }

    /// Tells those who watch.
    pub(crate) fn changed(&self, key: &Key) {
        // Nobody listening is no error.
        let _ = self.changes.send((key.control_plane.clone(), key.id.clone()));
    }

    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.config.address, port)
    }

    /// The user that nothing but this instance with this data runs as, or nobody where no instance is named and none uses
    /// the data. `None`: there is no such.
    pub(crate) fn user(
        &self,
        control_plane: &ControlPlaneId,
        data: &DataId,
        instance: Option<&Key>,
    ) -> Result<Option<u32>> {
        // What had the data once must not be taken for what has it now.
        let owner = Owner::read(&self.layout.data(control_plane, data))?
            .filter(|owner| instance.is_none_or(|instance| owner.is(instance)));
        let Some(user) = owner.and_then(|owner| owner.user).filter(|user| {
            // Of a range that is ours to give: anything else that a file says is nobody to be killed.
            self.users.as_ref().is_some_and(|users| users.contains(user))
        }) else {
            return Ok(None);
        };
        Ok(users::is_given(&self.layout, control_plane, data, user)?.then_some(user))
    }

    /// Every living process of an instance, `leader` the one that was started last.
    pub(crate) fn members(
        &self,
        instance: &Instance,
        leader: Option<Process>,
        record: Option<&Record>,
    ) -> Result<Vec<Process>> {
        let data_path = record.map(|record| self.data_path(record));
        let user = record
            .map(|record| self.user(&record.control_plane, &record.data, Some(&instance.key)))
            .transpose()?
            .flatten();
        let grouped = self.groups.members(&self.group(&instance.key));
        process::members(&instance.folder, leader, &Signs { data_path: data_path.as_deref(), user, grouped })
    }

    /// The `DATA_PATH` of an instance with this record.
    pub(crate) fn data_path(&self, record: &Record) -> String {
        self.layout.data(&record.control_plane, &record.data).files().to_string_lossy().into_owned()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        let mut instances = shared.instances.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have made a new entry since the last holder let go of this one.
        if instances.get(&self.key).is_some_and(|entry| entry.strong_count() == 0) {
            instances.remove(&self.key);
        }
    }
}

impl Instance {
    /// Waits for its turn among the verbs on this instance.
    pub(crate) async fn turn(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Never held across an await.
    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks in its turn, so that nothing changes between one file and the next. `None`: there is nothing. Without anybody's
    /// patience, its own begins with its turn.
    pub(crate) async fn look_in_turn(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        patience: Option<Patience>,
    ) -> Result<Option<View>> {
        // Awaited, not blocked for: whoever has the turn needs a thread for blocking work too.
        let turn = match patience {
            None => self.turn().await,
            Some(patience) => tokio::time::timeout_at(patience.end().into(), self.turn()).await.map_err(|_| {
                Problem::new(ErrorKind::Unavailable, "something else that is done with this instance takes its time")
            })?,
        };
        let (shared, own) = (Arc::clone(shared), Arc::clone(self));
        blocking(move || {
            let _turn = turn;
            let _folder_turn = own.folder.turn(patience.unwrap_or_else(Patience::from_now))?;
            own.look(&shared)
        })
        .await
    }

    /// Looks. `None`: there is nothing. Call in its turn, where blocking is allowed.
    pub(crate) fn look(&self, shared: &Shared) -> Result<Option<View>> {
        // First: whoever starts something at the end of a stop has its lock before the motion ends, so that a look in
        // between sees one of the two.
        let moving = self.live().motion.as_ref().map(|motion| Moving {
            restarts: motion.order.as_ref().map(|order| order.generation),
            blocked: motion.blocked.clone(),
        });
        let there = self.folder.exists()?;
        let record = if there { Record::read(&self.folder, &self.key)? } else { None };
        let life = self.life(shared, record.as_ref())?;
        if !there && life == Life::Dead && self.live().motion.is_none() && !shared.layout.is_half_removed(&self.key)? {
            return Ok(None);
        }
        // Whatever else still lives of it.
        if matches!(life, Life::Dead | Life::Leftovers(_)) {
            self.note_exit(record.as_ref());
        }
        let outcome = match (if there { read_outcome(&self.folder)? } else { None }, &record) {
            (None, Some(record)) if matches!(life, Life::Dead | Life::Leftovers(_)) => {
                self.missed_end(shared, record)?
            }
            (outcome, _) => outcome,
        };
        let usage = match life {
            Life::Alive(process) => shared.groups.usage(&shared.group(&self.key)).or_else(|| process.usage()),
            Life::Dead | Life::Starting | Life::Leftovers(_) => None,
        };
        let live = self.live();
        Ok(Some(View {
            life,
            outcome,
            moving,
            seen: live.watched.as_ref().map(|watched| watched.seen.borrow().clone()),
            blocked: live.blocked.clone(),
            record,
            usage,
        }))
    }

    /// What lives of it.
    pub(crate) fn life(&self, shared: &Shared, record: Option<&Record>) -> Result<Life> {
        let life = process::life(&self.folder, |leader| shared.members(self, leader, record))?;
        if life != Life::Dead {
            return Ok(life);
        }
        // Somebody has deleted the files. The process is none the less there.
        let watched = self.live().watched.as_ref().map(|watched| watched.process);
        if let Some(process) = watched.filter(|process| process.is_alive()) {
            return Ok(Life::Alive(process));
        }
        // And if nobody watched it, its group is.
        let grouped = shared.groups.members(&shared.group(&self.key)).unwrap_or_default();
        let lives = grouped.into_iter().filter_map(|pid| Process::of(pid.cast_unsigned())).any(Process::is_alive);
        Ok(if lives { Life::Leftovers(None) } else { Life::Dead })
    }

    /// Who answers where this instance should. `leader` is its process, and lives.
    pub(crate) fn listener(&self, shared: &Shared, leader: Process, port: u16, data: &DataId) -> Result<Listener> {
        let folder = shared.layout.data(&self.key.control_plane, data);
        let data_path = folder.files().to_string_lossy().into_owned();
        let user = Owner::read(&folder)?.and_then(|owner| owner.user);
        listener::at(shared.address(port), &Whose { user, leader, data_path: &data_path }, || {
            let grouped = shared.groups.members(&shared.group(&self.key));
            // The user is none, or would have told.
            process::members(&self.folder, Some(leader), &Signs { data_path: Some(&data_path), user: None, grouped })
        })
    }

    /// Why the process that was started last ended while nobody watched it, as far as its control group still tells. Nothing
    /// is written: the group is there until the next start.
    fn missed_end(&self, shared: &Shared, record: &Record) -> Result<Option<Reason>> {
        if record.intended != Intended::Running || self.live().motion.is_some() {
            return Ok(None);
        }
        // The group of an earlier start says nothing of one that did not get to have its own.
        if process::started_last(&self.folder)?.is_none() {
            return Ok(None);
        }
        let incidents = shared.groups.incidents(&shared.group(&self.key));
        Ok(incidents.killed_for_memory.map(|_| exited(Exit::Unknown, incidents, record.memory_mib, "")))
    }

    /// Writes down how the watched process ended, once, if nobody asked it to.
    pub(crate) fn note_exit(&self, record: Option<&Record>) {
        let mut live = self.live();
        let Some(watched) = live.watched.take_if(|watched| !watched.process.is_alive()) else {
            return;
        };
        let exit = watched.process.reap();
        let wanted = record.is_some_and(|record| record.intended == Intended::Running);
        if !wanted || live.motion.is_some() || matches!(read_outcome(&self.folder), Ok(Some(_))) {
            return;
        }
        let tail = watched.values.map(|values| log_tail::read(&self.folder, watched.log_start, &values));
        let incidents = self.shared.upgrade().map(|shared| shared.groups.incidents(&shared.group(&self.key)));
        let memory_mib = record.map_or(0, |record| record.memory_mib);
        let reason = exited(exit, incidents.unwrap_or_default(), memory_mib, tail.as_deref().unwrap_or_default());
        // The lock is kept meanwhile, so that nobody sees the process gone and no word of why.
        if let Err(error) = write_outcome(&self.folder, &reason) {
            tracing::warn!(instance = %self.key.id, %error, "the end of a process was not written down");
        }
    }
}

/// What an exit that nobody asked for is called.
pub(crate) fn exited(exit: Exit, incidents: Incidents, memory_mib: u32, tail: &str) -> Reason {
    let how = match exit {
        Exit::Code(code) => format!("exited with status {code}"),
        Exit::Signal(signal) => format!("was killed by signal {signal}"),
        Exit::Unknown => "is gone; its status is not known".to_owned(),
    };
    let printed = if tail.is_empty() { String::new() } else { format!("; it last printed: {tail}") };
    // What is killed may be a worker, long before its leader ends for another reason: version 1 goes on without it. A shell
    // tells of its command's signal by a status.
    const KILLED: i32 = 9;
    let was_killed = matches!(exit, Exit::Signal(KILLED) | Exit::Unknown) || exit == Exit::Code(128 + KILLED);
    match incidents.killed_for_memory.filter(|_| was_killed) {
        Some(UsedUp::Own) => {
            let message = format!("the process {how}: its {memory_mib} MiB were used up{printed}");
            return Reason::new("out-of-memory", message);
        }
        Some(UsedUp::Above) => {
            let message = format!(
                "the process {how}: the machine had no memory left, or all instances together had not, while its \
                 {memory_mib} MiB were not used up{printed}"
            );
            return Reason::new("machine-out-of-memory", message);
        }
        None => {}
    }
    let refused = match incidents.refused_processes {
        0 => "",
        _ => "; it was refused more processes than it may have",
    };
    Reason::new("exited", format!("the process {how}{refused}{printed}"))
}
