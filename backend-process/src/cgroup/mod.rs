//! Control groups: what bounds an instance as a whole, counts what it uses, and finds every process of it.
//!
//! Each instance has a group of its own, in version 2 or in the hierarchies of version 1, whichever this machine has (often
//! both). They lie below one group at the top: not below the service that the control plane runs in, so that whoever stops
//! that service does not stop the instances.
//!
//! What the files mean: <https://docs.kernel.org/admin-guide/cgroup-v2.html> and
//! <https://docs.kernel.org/admin-guide/cgroup-v1/>.

mod hierarchy;

use std::{
    fs::File,
    time::{Duration, Instant},
};

use provisioner_core::{
    ErrorKind,
    types::{Size, Usage},
};

use rustix::process::{Pid, PidfdFlags, Signal};

use self::hierarchy::{Controller, Hierarchy, Unit};
use crate::error::{Problem, Result};

/// How long a group may take to be empty after its last process was seen gone.
const EMPTY_WAIT: Duration = Duration::from_secs(2);

/// Where the groups of all instances are.
#[derive(Debug, Default)]
pub(crate) struct Groups(Vec<Hierarchy>);

/// What an instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) size: Size,
    pub(crate) processes: u32,
}

/// What the kernel did to an instance for its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Incidents {
    /// Why processes were killed for memory, if any were.
    pub(crate) killed_for_memory: Option<UsedUp>,
    /// Processes that were refused because there were too many.
    pub(crate) refused_processes: u64,
}

/// Whose memory it was that was used up when a process was killed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UsedUp {
    /// The instance's own.
    Own,
    /// That of the machine, or of a group above.
    Above,
}

impl Groups {
    /// Those of this machine under this name, as far as they may be written. Touches nothing.
    pub(crate) fn find(name: &str) -> Self {
        Self(hierarchy::find(name))
    }

    pub(crate) fn bounds_memory(&self) -> bool {
        self.with(Controller::Memory).is_some()
    }

    pub(crate) fn bounds_cpu(&self) -> bool {
        self.with(Controller::Cpu).is_some()
    }

    pub(crate) fn bounds_processes(&self) -> bool {
        self.with(Controller::Pids).is_some()
    }

    /// Whether an instance is out of the reach of a service manager that stops the unit which the control plane is in. True
    /// where it is in none.
    pub(crate) fn are_apart(&self) -> bool {
        self.spared_with(&hierarchy::own_units())
    }

    fn spared_with(&self, units: &[Unit]) -> bool {
        units.iter().all(|unit| self.0.iter().any(|hierarchy| hierarchy.is_apart_from(unit)))
    }

    fn with(&self, controller: Controller) -> Option<&Hierarchy> {
        self.0.iter().find(|hierarchy| hierarchy.has(controller))
    }

    /// Makes an empty group with these limits. Whoever writes `0` to each of the files is in it. CPU time is shared by
    /// weight only, until [`hold_cpu`](Self::hold_cpu).
    ///
    /// # Errors
    /// When it cannot be made, in one hierarchy or in all. It is not done without: the bounds that were promised would not
    /// hold, and nobody would know. Worth another try, as no spec is to blame.
    pub(crate) fn make(&self, group: &str, limits: &Limits) -> Result<Vec<File>> {
        // Counters begin at zero for each start.
        let made = self
            .end(group)
            .and_then(|()| self.0.iter().map(|hierarchy| hierarchy.make(group, limits)).collect::<Result<_>>());
        made.map_err(|problem| {
            if let Err(error) = self.end(group) {
                tracing::debug!(group, %error, "half a group is left, for the next start or removal");
            }
            problem.worth_another_try("it has no control group, and without one nothing would hold it to its size")
        })
    }

    /// Holds a group to its share of CPU time. Not before it is ready: a start takes more than the running product does, and
    /// somebody waits for it.
    pub(crate) fn hold_cpu(&self, group: &str, cpu_millis: u32) -> Result<()> {
        self.with(Controller::Cpu).map_or(Ok(()), |hierarchy| hierarchy.hold_cpu(group, cpu_millis))
    }

    /// The living processes of a group; `None`: there is no such group.
    pub(crate) fn members(&self, group: &str) -> Option<Vec<i32>> {
        let mut members: Option<Vec<i32>> = None;
        for of_one in self.0.iter().filter_map(|hierarchy| hierarchy.members(group)) {
            members.get_or_insert_default().extend(of_one);
        }
        members.iter_mut().for_each(|members| {
            members.sort_unstable();
            members.dedup();
        });
        members
    }

    /// What a group uses; `None` where that is not counted.
    pub(crate) fn usage(&self, group: &str) -> Option<Usage> {
        let memory_bytes = self.with(Controller::Memory)?.memory_used(group)?;
        let cpu = self.0.iter().find_map(|hierarchy| hierarchy.cpu_used(group))?;
        Some(Usage { cpu, memory_bytes })
    }

    pub(crate) fn incidents(&self, group: &str) -> Incidents {
        let memory = self.with(Controller::Memory).and_then(|hierarchy| hierarchy.killed_for_memory(group));
        let pids = self.with(Controller::Pids).and_then(|hierarchy| hierarchy.refused_processes(group));
        Incidents { killed_for_memory: memory, refused_processes: pids.unwrap_or(0) }
    }

    /// Removes a group, and whatever still lives in it: nothing should, but a process may have left everything else that
    /// told whose it is. Removing what is absent succeeds.
    ///
    /// # Errors
    /// When something does not end, although killed.
    pub(crate) fn end(&self, group: &str) -> Result<()> {
        let deadline = Instant::now() + EMPTY_WAIT;
        for hierarchy in &self.0 {
            // A process that was seen gone may be counted for a moment more.
            while !hierarchy.remove(group)? {
                let members = hierarchy.members(group).unwrap_or_default();
                if Instant::now() > deadline {
                    let message = format!("processes {members:?} of its control group do not end, although killed");
                    return Err(Problem::new(ErrorKind::Unavailable, message));
                }
                for pid in members.into_iter().filter_map(Pid::from_raw) {
                    kill_member(hierarchy, group, pid);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// The names of all groups.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.0.iter().flat_map(Hierarchy::names).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Kills a process if it is in a group. Gone or elsewhere meanwhile, it is left alone.
fn kill_member(hierarchy: &Hierarchy, group: &str, pid: Pid) {
    // The descriptor first, then the question: a number that was given to another process by now names one outside.
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty());
    if !hierarchy.members(group).is_some_and(|members| members.contains(&pid.as_raw_pid())) {
        return;
    }
    // It may be gone meanwhile.
    let _ = match process {
        Ok(process) => rustix::process::pidfd_send_signal(&process, Signal::KILL),
        // Out of descriptors, or a kernel without them.
        Err(_) => rustix::process::kill_process(pid, Signal::KILL),
    };
}
