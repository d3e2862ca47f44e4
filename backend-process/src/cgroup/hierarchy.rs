//! One tree of control groups, of either version.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::Access;

use super::{Limits, UsedUp};
use crate::error::{Problem, Result};

/// Microseconds over which CPU time is counted out.
const CPU_PERIOD_US: u64 = 100_000;
/// The least that the kernel takes.
const CPU_QUOTA_US_MIN: u64 = 1_000;
/// A little more than the most that is asked for at a time, in bytes, when the lack of it kills.
const CHARGE_MAX: u64 = 128 << 10;

/// What a hierarchy can bound or count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Cpu,
    /// The counting alone, which is a controller of its own in version 1.
    CpuAccount,
    Pids,
}

impl Controller {
    const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::CpuAccount, Self::Pids];

    fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::CpuAccount => "cpuacct",
            Self::Pids => "pids",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// One tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    version: Version,
    mount: Mount,
    /// The group below which all of ours are.
    base: PathBuf,
    controllers: Vec<Controller>,
}

/// A mounted hierarchy, and what it was mounted with.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The group that is seen at its top: in a container often not the one at the very top.
    root: PathBuf,
    path: PathBuf,
    options: Vec<String>,
}

/// A group that a service manager ends with all that is below it when it stops the unit that this process is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    /// Which hierarchy it is in: `name=systemd`, or nothing for version 2.
    hierarchy: String,
    group: PathBuf,
}

/// The hierarchies of this machine that may be written and are of use: those that bound or count something, and those that
/// a service manager watches.
pub(super) fn find(name: &str) -> Vec<Hierarchy> {
    mounts().into_iter().filter_map(|mount| Hierarchy::below(mount, name)).collect()
}

/// The units of a service manager that this process is in: none, or the same one in each hierarchy that is looked at to
/// stop it.
pub(super) fn own_units() -> Vec<Unit> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    units(&own, std::env::var_os("INVOCATION_ID").is_some())
}

/// Reads `/proc/self/cgroup`. `invoked`: systemd has told this process, or whoever started it, that it is in a unit.
fn units(own: &str, invoked: bool) -> Vec<Unit> {
    // `ID:CONTROLLERS:PATH`; systemd keeps its units in the hierarchy without controllers, of either version.
    let watched = |line: &&str| matches!(line.split(':').nth(1), Some("" | "name=systemd"));
    let place = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    let places: Vec<(String, String)> = own.lines().filter(watched).filter_map(place).collect();
    let units: Vec<Unit> = places
        .iter()
        .filter_map(|(hierarchy, path)| Some(Unit { hierarchy: hierarchy.clone(), group: unit_of(path)? }))
        .collect();
    if !units.is_empty() || !invoked {
        return units;
    }
    // A unit with a namespace of its own: its group is the top of all that is seen from within.
    let tops = places.into_iter().filter(|(_, path)| path == "/");
    tops.map(|(hierarchy, path)| Unit { hierarchy, group: path.into() }).collect()
}

/// The group of the unit that a group is in: the outermost, as it is ended with all that is below. But a manager of a
/// user's own services is not ended with one of them.
fn unit_of(path: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = path.split('/').collect();
    let is_unit = |part: &&str| part.ends_with(".service") || part.ends_with(".scope");
    let manages = |at: usize| parts[at].starts_with("user@") && parts[at + 1..].iter().any(is_unit);
    let at = (0..parts.len()).find(|at| is_unit(&parts[*at]) && !manages(*at))?;
    Some(parts[..=at].join("/").into())
}

fn mounts() -> Vec<Mount> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Reads `/proc/self/mountinfo`: see `proc_pid_mountinfo(5)`.
fn parse_mounts(text: &str) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (mut before, mut after) = (before.split(' ').skip(3), after.split(' '));
        let (Some(root), Some(path)) = (before.next(), before.next()) else { continue };
        let version = match after.next() {
            Some("cgroup") => Version::One,
            Some("cgroup2") => Version::Two,
            _ => continue,
        };
        let options: Vec<String> = after.nth(1).unwrap_or_default().split(',').map(str::to_owned).collect();
        // Mounted twice is one all the same.
        let twin = |mount: &Mount| mount.version == version && (version == Version::Two || mount.options == options);
        if !mounts.iter().any(twin) {
            mounts.push(Mount { version, root: root.into(), path: path.into(), options });
        }
    }
    mounts
}

impl Hierarchy {
    fn below(mount: Mount, name: &str) -> Option<Self> {
        let base = mount.path.join(name);
        let there = base.ancestors().find(|folder| folder.exists())?.to_owned();
        let writable = |path: &Path| rustix::fs::access(path, Access::WRITE_OK | Access::EXEC_OK).is_ok();
        if !writable(&there) {
            return None;
        }
        let controllers: Vec<Controller> = match mount.version {
            Version::One => {
                let named = |controller: &Controller| mount.options.iter().any(|option| option == controller.as_str());
                Controller::ALL.into_iter().filter(named).collect()
            }
            Version::Two => {
                let offered = read(&there, "cgroup.controllers").unwrap_or_default();
                let handed_down = read(&there, "cgroup.subtree_control").unwrap_or_default();
                // Only a group without processes hands controllers down, but for the one at the very top.
                let hands_down = !there.join("cgroup.type").exists() || there == base;
                let usable = |controller: &Controller| {
                    let has = |list: &str| list.split_ascii_whitespace().any(|name| name == controller.as_str());
                    has(&handed_down) || (has(&offered) && hands_down)
                };
                Controller::ALL.into_iter().filter(usable).collect()
            }
        };
        let is_watched = mount.version == Version::Two || mount.options.iter().any(|option| option == "name=systemd");
        (is_watched || !controllers.is_empty()).then_some(Self { version: mount.version, mount, base, controllers })
    }

    /// Whether who stops this unit by the hierarchy leaves our groups alone.
    pub(super) fn is_apart_from(&self, unit: &Unit) -> bool {
        let is_watched = match self.version {
            Version::One => self.mount.options.contains(&unit.hierarchy),
            Version::Two => unit.hierarchy.is_empty(),
        };
        let base = self.base.strip_prefix(&self.mount.path).unwrap_or(&self.base);
        is_watched && !self.mount.root.join(base).starts_with(&unit.group)
    }

    pub(super) fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    /// Makes an empty group with these limits, and opens the file to join it by.
    pub(super) fn make(&self, group: &str, limits: &Limits) -> Result<File> {
        let folder = self.base.join(group);
        if !self.base.exists() {
            fs::create_dir_all(&self.base).map_err(|error| Problem::io("make", &self.base, error))?;
        }
        if self.version == Version::Two {
            self.hand_down()?;
        }
        fs::create_dir(&folder).map_err(|error| Problem::io("make", &folder, error))?;
        let memory = u64::from(limits.size.memory_mib) << 20;
        for controller in &self.controllers {
            match (self.version, controller) {
                (Version::One, Controller::Memory) => {
                    write(&folder, "memory.limit_in_bytes", memory)?;
                    // Memory and swap together. Not there where swap is not counted.
                    write_if_there(&folder, "memory.memsw.limit_in_bytes", memory)?;
                }
                (Version::Two, Controller::Memory) => {
                    write(&folder, "memory.max", memory)?;
                    write_if_there(&folder, "memory.swap.max", 0_u64)?;
                    // All of it or nothing: what is left after a kill is rarely of use, and nobody would know.
                    write_if_there(&folder, "memory.oom.group", 1_u64)?;
                }
                (Version::One, Controller::Cpu) => write(&folder, "cpu.shares", shares(limits.size.cpu_millis))?,
                (Version::Two, Controller::Cpu) => write(&folder, "cpu.weight", weight(limits.size.cpu_millis))?,
                (_, Controller::Pids) => write(&folder, "pids.max", limits.processes)?,
                (_, Controller::CpuAccount) => {}
            }
        }
        let procs = folder.join("cgroup.procs");
        OpenOptions::new().write(true).open(&procs).map_err(|error| Problem::io("open", &procs, error))
    }

    /// Has the groups between the top and ours hand the controllers down. Asked for at every start, as a service manager may
    /// take them back.
    fn hand_down(&self) -> Result<()> {
        let between: Vec<&Path> = self.base.ancestors().take_while(|folder| *folder != self.mount.path).collect();
        for folder in std::iter::once(self.mount.path.as_path()).chain(between.into_iter().rev()) {
            let handed_down = read(folder, "cgroup.subtree_control").unwrap_or_default();
            for controller in &self.controllers {
                if !handed_down.split_ascii_whitespace().any(|name| name == controller.as_str()) {
                    write(folder, "cgroup.subtree_control", format!("+{}", controller.as_str()))?;
                }
            }
        }
        Ok(())
    }

    /// Bounds the CPU time of a group.
    pub(super) fn hold_cpu(&self, group: &str, cpu_millis: u32) -> Result<()> {
        let folder = self.base.join(group);
        let quota = (u64::from(cpu_millis) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_US_MIN);
        match self.version {
            Version::One => {
                write(&folder, "cpu.cfs_period_us", CPU_PERIOD_US)?;
                write(&folder, "cpu.cfs_quota_us", quota)
            }
            Version::Two => write(&folder, "cpu.max", format!("{quota} {CPU_PERIOD_US}")),
        }
    }

    /// `None`: there is no such group.
    pub(super) fn members(&self, group: &str) -> Option<Vec<i32>> {
        let text = read(&self.base.join(group), "cgroup.procs")?;
        Some(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    pub(super) fn memory_used(&self, group: &str) -> Option<u64> {
        let file = match self.version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        };
        read(&self.base.join(group), file)?.trim().parse().ok()
    }

    pub(super) fn cpu_used(&self, group: &str) -> Option<Duration> {
        let folder = self.base.join(group);
        match self.version {
            Version::One if self.has(Controller::CpuAccount) => {
                Some(Duration::from_nanos(read(&folder, "cpuacct.usage")?.trim().parse().ok()?))
            }
            Version::One => None,
            // Counted in every group, whether its controller is there or not.
            Version::Two => Some(Duration::from_micros(field(&read(&folder, "cpu.stat")?, "usage_usec")?)),
        }
    }

    /// Whose memory was used up when a process of the group was killed for it; `None`: none was.
    pub(super) fn killed_for_memory(&self, group: &str) -> Option<UsedUp> {
        let folder = self.base.join(group);
        let number = |file: &str| read(&folder, file)?.trim().parse::<u64>().ok();
        match self.version {
            Version::One => {
                let most = number("memory.memsw.max_usage_in_bytes").or_else(|| number("memory.max_usage_in_bytes"))?;
                let bound = number("memory.limit_in_bytes")?;
                used_up(
                    field(&read(&folder, "memory.oom_control")?, "oom_kill")?,
                    most.saturating_add(CHARGE_MAX) > bound,
                )
            }
            Version::Two => used_up_in(&read(&folder, "memory.events")?),
        }
    }

    pub(super) fn refused_processes(&self, group: &str) -> Option<u64> {
        field(&read(&self.base.join(group), "pids.events")?, "max")
    }

    /// Removes an empty group. `false`: something lives in it.
    pub(super) fn remove(&self, group: &str) -> Result<bool> {
        let folder = self.base.join(group);
        match fs::remove_dir(&folder) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
            // Where nothing may be written that is told first, whether there is something to remove or not.
            Err(_) if !folder.exists() => Ok(true),
            Err(error) => Err(Problem::io("remove", &folder, error)),
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.base).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|what| what.is_dir()));
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// What `memory.events` tells: `oom_kill` counts the processes of the group that were killed, by whatever shortage; `oom` the
/// shortages of this group itself.
fn used_up_in(events: &str) -> Option<UsedUp> {
    used_up(field(events, "oom_kill")?, field(events, "oom").unwrap_or(0) > 0)
}

/// Version 1 does not count the shortages of a group, and not every time that it meets its bound, but knows the most that it
/// ever used: a group that was never full was killed for others, and one that was is taken to be killed for its own.
fn used_up(killed: u64, was_full: bool) -> Option<UsedUp> {
    (killed > 0).then_some(if was_full { UsedUp::Own } else { UsedUp::Above })
}

/// What version 1 counts a CPU as.
fn shares(cpu_millis: u32) -> u64 {
    (u64::from(cpu_millis) * 1024 / 1000).clamp(2, 262_144)
}

/// The same for version 2, which counts from 1 to 10,000: as container runtimes convert it.
fn weight(cpu_millis: u32) -> u64 {
    1 + (shares(cpu_millis) - 2) * 9_999 / 262_142
}

/// A number in a file of lines `NAME NUMBER`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

fn read(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok()
}

fn write(folder: &Path, file: &str, value: impl ToString) -> Result<()> {
    let path = folder.join(file);
    fs::write(&path, value.to_string()).map_err(|error| Problem::io("write", &path, error))
}

fn write_if_there(folder: &Path, file: &str, value: impl ToString) -> Result<()> {
    if folder.join(file).exists() { write(folder, file, value) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_once_each() {
        let text = "\
24 1 0:21 / /sys rw shared:1 - sysfs sysfs rw
30 24 0:26 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
34 24 0:26 / /elsewhere rw - cgroup cgroup rw,memory
35 24 0:30 /docker/1f /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids
garbage - cgroup
";
        let mounts = parse_mounts(text);
        let paths: Vec<_> = mounts.iter().map(|mount| mount.path.to_str().unwrap()).collect();
        let expected =
            ["memory", "cpu,cpuacct", "systemd", "unified", "pids"].map(|name| format!("/sys/fs/cgroup/{name}"));
        assert_eq!(paths, expected);
        assert_eq!(mounts[3].version, Version::Two);
        assert_eq!((mounts[0].root.to_str(), mounts[4].root.to_str()), (Some("/"), Some("/docker/1f")));
        assert!(mounts[1].options.iter().any(|option| option == "cpuacct"));
    }

    /// Whether groups below `name` are spared when the unit of this process is stopped.
    #[track_caller]
    fn assert_apart(own: &str, invoked: bool, name: &str, expected: bool) {
        let mount = |version, root: &str, path: &str, options: &[&str]| Mount {
            version,
            root: root.into(),
            path: path.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        let root = if own.contains("/docker-1f.scope") { "/system.slice/docker-1f.scope" } else { "/" };
        let mut mounts = vec![mount(Version::Two, root, "/sys/fs/cgroup", &["rw"])];
        if own.contains("name=systemd") {
            mounts = vec![
                mount(Version::One, "/", "/sys/fs/cgroup/memory", &["rw", "memory"]),
                mount(Version::One, "/", "/sys/fs/cgroup/systemd", &["rw", "name=systemd"]),
            ];
        }
        let ours = mounts.into_iter().map(|mount| {
            let (version, base) = (mount.version, mount.path.join(name));
            Hierarchy { version, mount, base, controllers: Vec::new() }
        });
        let groups = super::super::Groups(ours.collect());
        assert_eq!(groups.spared_with(&units(own, invoked)), expected, "{own} {name}");
    }

    #[test]
    fn groups_are_apart_only_outside_of_the_unit() {
        // Under systemd, as a service and by hand in a session or a scope of its own.
        for own in [
            "0::/system.slice/provisioner.service\n",
            "0::/system.slice/provisioner.service/main\n",
            "0::/user.slice/user-1000.slice/session-3.scope\n",
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/provisioner.service\n",
            "4:memory:/\n1:name=systemd:/system.slice/provisioner.service\n",
        ] {
            assert_apart(own, true, "provisioner", true);
        }
        assert_apart("0::/system.slice/a.service\n", true, "system.slice/a.service/instances", false);
        assert_apart("0::/system.slice/a.service/main\n", true, "system.slice/a.service/instances", false);
        assert_apart("0::/system.slice/a.service\n", true, "system.slice/b.service/instances", true);
        assert_apart("0::/user.slice/session-3.scope\n", false, "user.slice/session-3.scope/instances", false);
        let of_user = "user.slice/user-1000.slice/user@1000.service";
        let own = format!("0::/{of_user}/app.slice/a.service\n");
        assert_apart(&own, true, &format!("{of_user}/instances"), true);
        assert_apart(&own, true, &format!("{of_user}/app.slice/a.service/instances"), false);
        // All that is seen is below the unit.
        assert_apart("0::/system.slice/docker-1f.scope\n", false, "provisioner", false);
        assert_apart("0::/\n", true, "provisioner", false);
        // No unit at all.
        assert_apart("0::/\n", false, "provisioner", true);
        assert_apart("9:name=systemd:/\n4:memory:/elsewhere\n0::/\n", false, "provisioner", true);
    }

    #[test]
    fn without_groups_where_a_service_manager_looks_nothing_is_apart() {
        let none = super::super::Groups::default();
        assert!(!none.spared_with(&units("0::/system.slice/a.service\n", true)));
        assert!(!none.spared_with(&units("0::/user.slice/session-3.scope\n", false)));
        assert!(none.spared_with(&units("0::/\n", false)), "there is nobody who looks");
    }

    #[test]
    fn a_share_of_the_cpu_in_either_version() {
        for (millis, expected) in [(0, (2, 1)), (250, (256, 10)), (1000, (1024, 39)), (u32::MAX, (262_144, 10_000))] {
            assert_eq!((shares(millis), weight(millis)), expected, "{millis}");
        }
    }

    #[test]
    fn a_kill_for_memory_is_told_by_whose_it_was() {
        // Of version 2: a group at its own bound, one at that of the group above, and one that was only held back.
        let events = |max, oom, kills| {
            format!("low 0\nhigh 0\nmax {max}\noom {oom}\noom_kill {kills}\noom_group_kill {kills}\nsock_throttled 0\n")
        };
        assert_eq!(used_up_in(&events(25, 1, 2)), Some(UsedUp::Own));
        assert_eq!(used_up_in(&events(0, 0, 1)), Some(UsedUp::Above));
        assert_eq!(used_up_in(&events(25, 0, 1)), Some(UsedUp::Above), "memory was found at its own bound");
        assert_eq!(used_up_in(&events(25, 0, 0)), None);
        assert_eq!(used_up_in(""), None);
        // Of version 1.
        let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n";
        assert_eq!(used_up(field(control, "oom_kill").unwrap(), true), Some(UsedUp::Own));
        assert_eq!(used_up(field(control, "oom_kill").unwrap(), false), Some(UsedUp::Above));
    }

    #[test]
    fn a_number_is_found_by_its_whole_name() {
        let text = "low 0\noom_kill_x 7\noom_kill 3\noom_group_kill 1\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "max"), None);
        assert_eq!(field("max many", "max"), None);
    }
}
