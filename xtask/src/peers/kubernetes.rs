//! A Kubernetes cluster: one that answers, or one that is made. `tests/peers/kubernetes/README.md` says which.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
};

use test_peers::kubernetes::{Cluster, Image, KIND_NAME, Origin, folder, is_named, own_kubeconfig, script};

use super::Machine;
use crate::command;

pub(super) const NAME: &str = "kubernetes";

/// How a cluster can be made here.
#[derive(Debug, Clone, Copy)]
struct Means {
    /// By `KUBECONFIG`, so tests take no other.
    is_named: bool,
    /// With Docker, which answers.
    has_kind: bool,
    machine: Machine,
}

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    Kind,
    Scripts,
    Tell(String),
}

/// The cluster that answers; otherwise the reason why none does.
pub(super) fn found() -> Result<Origin, String> {
    Cluster::find().map(|cluster| cluster.origin())
}

/// Makes a cluster, unless one answers.
pub(super) fn prepare() -> Result<(), String> {
    let means = Means {
        is_named: is_named()?,
        has_kind: command::program("kind").is_some() && succeeds("docker", &["info"]),
        machine: Machine::this(),
    };
    match plan(found(), means) {
        Plan::Nothing => Ok(()),
        Plan::Kind => make_with_kind(),
        Plan::Scripts => run(script("up")?.arg("--node")),
        Plan::Tell(text) => Err(text),
    }
}

/// Makes an image of a program and brings it onto the cluster.
pub(crate) fn load(image: &str, program: &Path) -> Result<(), String> {
    let cluster = Cluster::find()?;
    cluster.load(&Image::new(image, program))?;
    println!("{image} is on the cluster {}", cluster.origin());
    Ok(())
}

/// Stops the clusters that were made here. That of `KUBECONFIG` is left alone.
pub(crate) fn stop() -> Result<(), String> {
    let mut stopped = false;
    if kind_has_it() {
        run(Command::new("kind")
            .args(["delete", "cluster", "--name", KIND_NAME, "--kubeconfig"])
            .arg(own_kubeconfig()?))?;
        stopped = true;
    }
    // What the scripts started, each a file.
    let started = fs::read_dir(folder()?.join("pids")).is_ok_and(|mut files| files.next().is_some());
    if started {
        run(&mut script("down")?)?;
        stopped = true;
    }
    if !stopped {
        println!("nothing that was made here runs");
    }
    Ok(())
}

fn plan(found: Result<Origin, String>, means: Means) -> Plan {
    match (found, means) {
        // Of these servers some may have ended. It starts only those that do not run.
        (Ok(Origin::Scripts), Means { machine: Machine { has_apt: true, is_root: true }, .. }) => Plan::Scripts,
        (Ok(_), _) => Plan::Nothing,
        // Another one would help nobody: tests take the one that is named.
        (Err(reason), Means { is_named: true, .. }) => Plan::Tell(reason),
        (Err(_), Means { has_kind: true, .. }) => Plan::Kind,
        (Err(_), Means { machine: Machine { has_apt: true, is_root: true }, .. }) => Plan::Scripts,
        (Err(_), Means { machine: Machine { has_apt, .. }, .. }) => {
            let debian = if has_apt { ", or run this as root" } else { "" };
            Plan::Tell(format!(
                "For a Kubernetes cluster, set KUBECONFIG, or install kind and Docker so that `docker info` succeeds{debian}"
            ))
        }
    }
}

fn make_with_kind() -> Result<(), String> {
    let own = own_kubeconfig()?;
    let problem = |error| format!("{} cannot be made: {error}", own.display());
    fs::create_dir_all(folder()?).map_err(problem)?;
    // kind adds to a file that is there, which may tell of another cluster.
    match fs::remove_file(&own) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(problem(error)),
        _ => {}
    }
    if kind_has_it() {
        // Only its file may have been missing.
        run(Command::new("kind").args(["export", "kubeconfig", "--name", KIND_NAME, "--kubeconfig"]).arg(&own))?;
        if found().is_ok() {
            return Ok(());
        }
        run(Command::new("kind").args(["delete", "cluster", "--name", KIND_NAME, "--kubeconfig"]).arg(&own))?;
    }
    run(Command::new("kind").args(["create", "cluster", "--name", KIND_NAME, "--wait", "3m", "--kubeconfig"]).arg(&own))
}

fn kind_has_it() -> bool {
    let listed = Command::new("kind").args(["get", "clusters"]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|name| name.trim() == KIND_NAME))
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn run(command: &mut Command) -> Result<(), String> {
    println!("{}", command::shown(command));
    command::run(command.stdin(Stdio::null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Machine = Machine { has_apt: true, is_root: true };
    const USER: Machine = Machine { has_apt: true, is_root: false };
    const ELSEWHERE: Machine = Machine { has_apt: false, is_root: true };

    fn none() -> Result<Origin, String> {
        Err("none answers".to_owned())
    }

    #[test]
    fn a_cluster_that_answers_is_taken() {
        for machine in [ROOT, USER, ELSEWHERE] {
            let means = Means { is_named: true, has_kind: true, machine };
            assert_eq!(plan(Ok(Origin::Named), means), Plan::Nothing);
            assert_eq!(plan(Ok(Origin::Kind), means), Plan::Nothing);
        }
    }

    #[test]
    fn of_the_scripts_cluster_the_servers_that_ended_are_started() {
        let plan = |machine| plan(Ok(Origin::Scripts), Means { is_named: false, has_kind: true, machine });
        assert_eq!(plan(ROOT), Plan::Scripts);
        assert_eq!(plan(USER), Plan::Nothing);
    }

    #[test]
    fn a_named_cluster_that_does_not_answer_is_told_and_not_replaced() {
        let means = Means { is_named: true, has_kind: true, machine: ROOT };
        assert_eq!(plan(none(), means), Plan::Tell("none answers".to_owned()));
    }

    #[test]
    fn one_is_made_with_kind_before_debian_s_packages() {
        for machine in [ROOT, USER, ELSEWHERE] {
            assert_eq!(plan(none(), Means { is_named: false, has_kind: true, machine }), Plan::Kind);
        }
        assert_eq!(plan(none(), Means { is_named: false, has_kind: false, machine: ROOT }), Plan::Scripts);
    }

    #[test]
    fn anybody_else_is_told_what_to_install() {
        let told = |machine| match plan(none(), Means { is_named: false, has_kind: false, machine }) {
            Plan::Tell(text) => text,
            other => panic!("{other:?}"),
        };
        assert!(told(USER).contains("kind and Docker") && told(USER).contains("as root"));
        assert!(told(ELSEWHERE).contains("kind and Docker") && !told(ELSEWHERE).contains("as root"));
    }
}
