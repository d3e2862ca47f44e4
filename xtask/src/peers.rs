//! Software that nobody here wrote and that tests talk to.

mod kubernetes;
mod made;
mod node;
mod python;

use std::{
    env, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use test_peers::postgres;

pub(crate) use self::kubernetes::{load, stop};

use self::{node::Packages, python::Environment};
use crate::command;

/// Every peer that a test wants. A test whose peer is missing shows as ignored, with the reason.
const PEERS: &[Peer] = &[
    Peer {
        name: "chromium",
        programs: &["chromium", "chromedriver"],
        find: command::program,
        packages: &["chromium", "chromium-driver"],
        made: None,
        wanted_by: &["examples, target browser: the page of the signup service in a real browser"],
    },
    Peer {
        name: "user-mode-linux",
        programs: &["linux.uml", "mkfs.ext4", "systemctl"],
        find: command::program,
        packages: &["user-mode-linux", "e2fsprogs", "systemd"],
        made: None,
        wanted_by: &["tests, target machine: the process backend under real systemd, through restarts and power cuts"],
    },
    Peer {
        name: "datasette",
        programs: &["python3"],
        find: command::program,
        packages: &["python3", "python3-venv"],
        made: Some(Made::Environment(Environment {
            name: "datasette",
            requirements: include_str!("../../tests/peers/datasette.txt"),
        })),
        wanted_by: &["tests, target products: a product from PyPI as an instance, by its spec alone"],
    },
    Peer {
        name: "radicale",
        programs: &["python3"],
        find: command::program,
        packages: &["python3", "python3-venv"],
        made: Some(Made::Environment(Environment {
            name: "radicale",
            requirements: include_str!("../../tests/peers/radicale.txt"),
        })),
        wanted_by: &["tests, target products: the same"],
    },
    Peer {
        name: "moto",
        programs: &["python3"],
        find: command::program,
        packages: &["python3", "python3-venv"],
        made: Some(Made::Environment(Environment {
            name: "moto",
            requirements: include_str!("../../tests/peers/moto.txt"),
        })),
        wanted_by: &[
            "backend-vm, targets account and contract; examples, target ec2; test-ec2, target stand: an EC2 API server",
        ],
    },
    Peer {
        name: "azure-clients",
        programs: &["python3"],
        find: command::program,
        packages: &["python3", "python3-venv"],
        made: Some(Made::Environment(Environment {
            name: "azure-clients",
            requirements: include_str!("../../tests/peers/azure.txt"),
        })),
        wanted_by: &["test-azure, target official: Microsoft's Python client, through the life of a site"],
    },
    Peer {
        name: "oav",
        programs: &["node", "npm"],
        find: command::program,
        packages: &["nodejs", "npm"],
        made: Some(Made::Packages(Packages {
            name: "oav",
            manifest: include_str!("../../tests/peers/azure-js/package.json"),
            lock: include_str!("../../tests/peers/azure-js/package-lock.json"),
        })),
        wanted_by: &[
            "test-azure, target official: Microsoft's JavaScript client, and its validator of every call that was recorded",
        ],
    },
    Peer {
        name: postgres::NAME,
        programs: &["initdb", "postgres"],
        find: of_postgres,
        packages: &["postgresql"],
        made: None,
        wanted_by: &[
            "provisioner-core, target store_contract; test-replicas, target replicas; test-peers, target postgres; benches: a PostgreSQL server",
        ],
    },
    Peer {
        name: "psycopg",
        programs: &["python3"],
        find: command::program,
        packages: &["python3", "python3-venv"],
        made: Some(Made::Environment(Environment {
            name: "psycopg",
            requirements: include_str!("../../tests/peers/psycopg.txt"),
        })),
        wanted_by: &["test-replicas, target replicas: a customer that a program in Python signs up, with the instance"],
    },
    Peer {
        name: kubernetes::NAME,
        programs: &["kubectl"],
        find: command::program,
        packages: &["kubernetes-client"],
        made: Some(Made::Cluster),
        wanted_by: &["backend-k8s, targets contract, quota and restart; examples, target k8s: instances as real pods"],
    },
];

/// Something to have before the tests run.
#[derive(Debug)]
struct Peer {
    /// As in the variable `REQUIRED_PEERS`.
    name: &'static str,
    /// What packages bring.
    programs: &'static [&'static str],
    /// Looks for one of them as the tests do: most on PATH, in `/usr/bin` and in `/usr/sbin`.
    find: fn(&str) -> Option<PathBuf>,
    /// The Debian packages that bring them.
    packages: &'static [&'static str],
    /// What no package brings.
    made: Option<Made>,
    wanted_by: &'static [&'static str],
}

/// What is made here.
#[derive(Debug)]
enum Made {
    Environment(Environment),
    Packages(Packages),
    /// A Kubernetes cluster. Nobody makes another one where one is at hand.
    Cluster,
}

/// How far to go for a peer that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// Everything that is possible here.
    Full,
    /// Nothing that takes minutes and stays running, unless it is required.
    Usual,
}

impl Peer {
    /// What is not here, each in words.
    fn missing(&self) -> Vec<String> {
        let mut missing: Vec<_> = self.missing_programs().into_iter().map(str::to_owned).collect();
        match &self.made {
            Some(Made::Environment(environment)) if !environment.is_here() => missing.push(environment.name.to_owned()),
            Some(Made::Packages(packages)) if !packages.is_here() => missing.push(packages.name.to_owned()),
            // It is asked with that program.
            Some(Made::Cluster) if missing.is_empty() => missing.extend(kubernetes::found().err()),
            _ => {}
        }
        missing
    }

    /// Those of the programs that are not here.
    fn missing_programs(&self) -> Vec<&'static str> {
        self.programs.iter().copied().filter(|name| (self.find)(name).is_none()).collect()
    }

    /// Makes what no package brings, unless it is here.
    fn make(&self) -> Result<(), String> {
        match &self.made {
            None => Ok(()),
            Some(Made::Environment(environment)) => environment.prepare(),
            Some(Made::Packages(packages)) => packages.prepare(),
            Some(Made::Cluster) => kubernetes::prepare(),
        }
    }

    /// Whether it is made without being required.
    const fn is_usual(&self) -> bool {
        !matches!(self.made, Some(Made::Cluster))
    }
}

/// A program of PostgreSQL, which distributions keep away from PATH.
fn of_postgres(name: &str) -> Option<PathBuf> {
    postgres::Programs::find().ok().map(|programs| programs.folder().join(name))
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

/// Whether a peer is here.
pub(crate) fn is_here(name: &str) -> bool {
    PEERS.iter().any(|peer| peer.name == name && peer.missing().is_empty())
}

/// Whether there is a Kubernetes cluster that answers.
pub(crate) fn has_cluster() -> bool {
    kubernetes::found().is_ok()
}

/// Installs and makes what is missing where that is possible, and says what to install where it is not.
///
/// # Errors
/// When a peer that `REQUIRED_PEERS` names is missing afterwards, or is none of ours.
pub(crate) fn prepare(effort: Effort) -> Result<(), String> {
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
    let is_required = |peer: &Peer| required.iter().any(|required| required.name == peer.name);
    for peer in PEERS.iter().filter(|peer| effort == Effort::Full || peer.is_usual() || is_required(peer)) {
        if let Err(error) = peer.make() {
            println!("{error}; the tests that want {} are ignored", peer.name);
        }
    }
    print!("{}", list());
    required.iter().try_for_each(|peer| match peer.missing().first() {
        Some(missing) => Err(absent(peer, missing)),
        None => Ok(()),
    })
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
        if !is_required && !wanted.contains(&peer.name) {
            continue;
        }
        match peer.missing().first() {
            Some(missing) if is_required => return Err(absent(peer, missing)),
            Some(missing) => println!("{}: missing: {missing}; the rules that want it are ignored", peer.name),
            None => {}
        }
    }
    Ok(())
}

fn absent(peer: &Peer, missing: &str) -> String {
    format!("{} is required, but missing: {missing}", peer.name)
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

fn described(peer: &Peer, missing: &[String]) -> String {
    let state = match (missing, &peer.made) {
        ([], None) if peer.name == postgres::NAME => {
            postgres::Programs::find().map_or("here".to_owned(), |programs| format!("here: {programs}"))
        }
        ([], Some(Made::Cluster)) => kubernetes::found().map_or("here".to_owned(), |origin| format!("here: {origin}")),
        ([], _) => "here".to_owned(),
        (missing, _) => format!("missing: {}", missing.join(", ")),
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
    fn every_package_from_pypi_has_one_version() {
        for peer in PEERS {
            let Some(Made::Environment(environment)) = &peer.made else { continue };
            let packages: Vec<_> = environment.requirements.lines().filter(|line| !line.starts_with('#')).collect();
            assert!(!packages.is_empty(), "{}", peer.name);
            for package in packages {
                let is_pinned =
                    |(name, version): (&str, &str)| !name.is_empty() && version.starts_with(char::is_numeric);
                assert!(package.split_once("==").is_some_and(is_pinned), "{}: {package}", peer.name);
            }
        }
    }

    #[test]
    fn what_is_made_is_called_as_its_peer() {
        for peer in PEERS {
            match &peer.made {
                Some(Made::Environment(environment)) => assert_eq!(environment.name, peer.name),
                Some(Made::Packages(packages)) => assert_eq!(packages.name, peer.name),
                Some(Made::Cluster) | None => {}
            }
        }
    }

    #[test]
    fn only_what_stays_running_has_to_be_asked_for() {
        let unusual = PEERS.iter().filter(|peer| !peer.is_usual()).map(|peer| peer.name);
        assert_eq!(unusual.collect::<Vec<_>>(), ["kubernetes"]);
    }

    #[test]
    fn the_list_names_what_is_missing_and_who_wants_it() {
        let text = described(&PEERS[0], &["chromedriver".to_owned()]);
        assert!(text.starts_with("chromium: missing: chromedriver\n  wanted by examples"), "{text}");
        assert!(described(&PEERS[0], &[]).starts_with("chromium: here\n"));
    }
}
