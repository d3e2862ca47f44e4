//! Software that nobody here wrote and that tests talk to.

mod python;

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use self::python::Environment;
use crate::command;

/// Every peer that a test wants. A test whose peer is missing shows as ignored, with the reason.
const PEERS: &[Peer] = &[
    Peer {
        name: "chromium",
        programs: &["chromium", "chromedriver"],
        packages: &["chromium", "chromium-driver"],
        environment: None,
        wanted_by: &["examples, target browser: the page of the signup service in a real browser"],
    },
    Peer {
        name: "user-mode-linux",
        programs: &["linux.uml", "mkfs.ext4", "systemctl"],
        packages: &["user-mode-linux", "e2fsprogs", "systemd"],
        environment: None,
        wanted_by: &["tests, target machine: the process backend under real systemd, through restarts and power cuts"],
    },
    Peer {
        name: "datasette",
        programs: &["python3"],
        packages: &["python3", "python3-venv"],
        environment: Some(Environment {
            name: "datasette",
            requirements: include_str!("../../tests/peers/datasette.txt"),
        }),
        wanted_by: &["tests, target products: a product from PyPI as an instance, by its spec alone"],
    },
    Peer {
        name: "radicale",
        programs: &["python3"],
        packages: &["python3", "python3-venv"],
        environment: Some(Environment {
            name: "radicale",
            requirements: include_str!("../../tests/peers/radicale.txt"),
        }),
        wanted_by: &["tests, target products: the same"],
    },
];

/// Something to have before the tests run.
#[derive(Debug)]
struct Peer {
    /// As in the variable `REQUIRED_PEERS`.
    name: &'static str,
    /// What has to be on PATH, in `/usr/bin` or in `/usr/sbin`.
    programs: &'static [&'static str],
    /// The Debian packages that bring them.
    packages: &'static [&'static str],
    /// What it is installed into, where that is no Debian package.
    environment: Option<Environment>,
    wanted_by: &'static [&'static str],
}

impl Peer {
    /// Programs that are not here.
    fn missing(&self) -> Vec<&'static str> {
        let mut missing = self.missing_programs();
        missing.extend(self.environment.as_ref().filter(|environment| !environment.is_here()).map(|it| it.name));
        missing
    }

    /// Programs that packages bring and that are not here.
    fn missing_programs(&self) -> Vec<&'static str> {
        self.programs.iter().copied().filter(|name| command::program(name).is_none()).collect()
    }
}

/// What may be done about peers that are missing.
#[derive(Debug, Clone, Copy)]
struct Machine {
    has_apt: bool,
    is_root: bool,
}

impl Machine {
    fn this() -> Self {
        let is_debian = Path::new("/etc/debian_version").exists();
        Self {
            has_apt: is_debian && command::program("apt-get").is_some(),
            // A process owns its own entry there.
            is_root: fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    Install(Vec<&'static str>),
    Tell(String),
}

/// Each peer, whether it is here, and which tests want it.
pub(crate) fn list() -> String {
    PEERS.iter().map(|peer| described(peer, &peer.missing())).collect()
}

/// Installs what is missing where that is possible, and says what to install where it is not.
///
/// # Errors
/// When a peer that `REQUIRED_PEERS` names is missing afterwards, or is none of ours.
pub(crate) fn prepare() -> Result<(), String> {
    let required = env::var("REQUIRED_PEERS").unwrap_or_default();
    let required = required_peers(&required)?;
    let missing: Vec<_> = PEERS.iter().filter(|peer| !peer.missing_programs().is_empty()).collect();
    match plan(&missing, Machine::this()) {
        Plan::Nothing => {}
        Plan::Tell(text) => println!("{text}"),
        Plan::Install(packages) => {
            if let Err(error) = install(&packages) {
                println!("{error}; the tests that want {} are ignored", packages.join(" "));
            }
        }
    }
    for environment in PEERS.iter().filter_map(|peer| peer.environment.as_ref()) {
        if let Err(error) = environment.prepare() {
            println!("{error}; the tests that want {} are ignored", environment.name);
        }
    }
    print!("{}", list());
    let absent = required.iter().find_map(|peer| peer.missing().first().map(|program| (peer.name, *program)));
    absent.map_or(Ok(()), |(peer, program)| Err(format!("{peer} is required, and {program} is missing")))
}

/// Whether every peer that `REQUIRED_PEERS` names is here, and so is what is wanted anyway. Nothing is installed.
///
/// # Errors
/// When one is missing, or is none of ours.
pub(crate) fn check(wanted: &[&str]) -> Result<(), String> {
    let names = env::var("REQUIRED_PEERS").unwrap_or_default();
    let required = required_peers(&names)?;
    for peer in PEERS {
        let is_required = required.iter().any(|required| required.name == peer.name);
        if let (true, Some(program)) = (is_required, peer.missing().first()) {
            return Err(format!("{} is required, and {program} is missing", peer.name));
        }
        if let (true, Some(program)) = (wanted.contains(&peer.name), peer.missing().first()) {
            println!("{}: {program} is missing; the rules that want it are ignored", peer.name);
        }
    }
    Ok(())
}

fn required_peers(names: &str) -> Result<Vec<&'static Peer>, String> {
    let find = |name: &str| {
        let known = PEERS.iter().find(|peer| peer.name == name);
        known.ok_or_else(|| {
            let names: Vec<_> = PEERS.iter().map(|peer| peer.name).collect();
            format!("REQUIRED_PEERS names {name:?}; the peers are {}", names.join(", "))
        })
    };
    names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(find).collect()
}

fn plan(missing: &[&Peer], machine: Machine) -> Plan {
    let mut packages: Vec<_> = missing.iter().flat_map(|peer| peer.packages).copied().collect();
    packages.dedup();
    let shown = packages.join(" ");
    match machine {
        _ if missing.is_empty() => Plan::Nothing,
        Machine { has_apt: true, is_root: true } => Plan::Install(packages),
        Machine { has_apt: true, is_root: false } => {
            Plan::Tell(format!("To install, as root: apt-get install {shown}"))
        }
        Machine { has_apt: false, .. } => {
            let mut programs: Vec<_> = missing.iter().flat_map(|peer| peer.programs).copied().collect();
            programs.dedup();
            let programs = programs.join(", ");
            Plan::Tell(format!("To install, so that they are on PATH: {programs} (on Debian: the packages {shown})"))
        }
    }
}

fn install(packages: &[&str]) -> Result<(), String> {
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("--quiet=2").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        println!("{}", command::shown(&command));
        command::run(&mut command)
    };
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"], packages].concat())
}

fn described(peer: &Peer, missing: &[&str]) -> String {
    let state = match missing {
        [] => "here".to_owned(),
        missing => format!("missing: {}", missing.join(", ")),
    };
    let wanted: String = peer.wanted_by.iter().map(|tests| format!("  wanted by {tests}\n")).collect();
    format!("{}: {state}\n{wanted}", peer.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> Vec<&'static Peer> {
        vec![&PEERS[0]]
    }

    #[test]
    fn root_on_debian_installs_every_package_at_once() {
        let machine = Machine { has_apt: true, is_root: true };
        assert_eq!(plan(&missing(), machine), Plan::Install(vec!["chromium", "chromium-driver"]));
        assert_eq!(plan(&[], machine), Plan::Nothing);
    }

    #[test]
    fn anybody_else_is_told_what_to_install() {
        let plan = |has_apt, is_root| match plan(&missing(), Machine { has_apt, is_root }) {
            Plan::Tell(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(plan(true, false), "To install, as root: apt-get install chromium chromium-driver");
        for is_root in [true, false] {
            let text = plan(false, is_root);
            assert!(text.contains("chromium, chromedriver"), "{text}");
        }
    }

    #[test]
    fn required_peers_are_peers_that_there_are() {
        let names = |text| required_peers(text).map(|peers| peers.iter().map(|peer| peer.name).collect::<Vec<_>>());
        assert_eq!(names(""), Ok(vec![]));
        assert_eq!(names(" chromium ,"), Ok(vec!["chromium"]));
        assert_eq!(names("user-mode-linux,chromium"), Ok(vec!["user-mode-linux", "chromium"]));
        let error = names("chromium,chrome").unwrap_err();
        assert!(error.contains("\"chrome\""), "{error}");
    }

    #[test]
    fn the_list_names_what_is_missing_and_who_wants_it() {
        let text = described(&PEERS[0], &["chromedriver"]);
        assert!(text.starts_with("chromium: missing: chromedriver\n  wanted by examples"), "{text}");
        assert!(described(&PEERS[0], &[]).starts_with("chromium: here\n"));
    }
}
