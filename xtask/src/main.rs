//! Developer commands: `cargo xtask --help` lists them.

mod ci;
mod command;
mod contract;
mod dependencies;
mod msrv;
mod peers;
mod sim;
mod test;

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgGroup, Parser, Subcommand};
use peers::Effort;
use test::report::Report;

/// The features by which the signup service has every backend and store, and those have all that they can do: what is not on by
/// default because its client libraries take minutes to compile.
const EVERYTHING: &str =
    "examples/k8s,examples/vm,examples/appservice,examples/postgres,backend-k8s/aks,provisioner-core/postgres";

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands of this workspace")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Prepare the programs that tests talk to, or say what to install
    ///
    /// Fails only for a peer that the variable REQUIRED_PEERS names (with commas between names).
    #[command(args_conflicts_with_subcommands = true)]
    Peers {
        /// Only show each peer, whether it is here, and which tests want it
        #[arg(long)]
        list: bool,
        /// Stop what was made here and runs: the Kubernetes cluster, unless it is that of KUBECONFIG
        #[arg(long, conflicts_with = "list")]
        stop: bool,
        #[command(subcommand)]
        action: Option<PeersAction>,
    },
    /// Prepare the peers, run every test, and say what was ignored and why
    Test {
        /// Use `cargo test` even where cargo-nextest is installed
        #[arg(long)]
        plain: bool,
        /// What to test instead of everything, as the runner takes it: `-- -p examples`. With nextest, no doc-tests
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Try every rule of the contract on a backend, by itself and behind every wrapper, or on a store, and print the table
    ///
    /// Fails for a rule that is broken, and for a missing peer that the variable REQUIRED_PEERS names.
    #[command(group(ArgGroup::new("chosen").args(["list", "backend", "store"]).required(true)))]
    Contract {
        /// Only show the backends and the stores that there are
        #[arg(long)]
        list: bool,
        /// Which backend
        #[arg(long)]
        backend: Option<String>,
        /// Which store
        #[arg(long)]
        store: Option<String>,
    },
    /// Run the real engine on a virtual clock, with everything going wrong: `--seeds N --instances M --first-seed S`
    ///
    /// A seed that finds something is told with the command that runs it again. `--help` lists all options;
    /// `--planted BUG` builds the engine with a bug and looks for it.
    #[command(disable_help_flag = true)]
    Sim {
        /// As the simulation takes them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run every check that a change has to pass, up to the first that fails
    Ci,
}

#[derive(Debug, Subcommand)]
enum PeersAction {
    /// Make an image of a program, with the shared libraries it needs, and bring it onto the Kubernetes cluster for tests
    ///
    /// Not onto that of KUBECONFIG, whose nodes only its owner can reach.
    Image {
        /// What to call it: localhost/NAME:TAG. Pods use it with imagePullPolicy: Never
        name: String,
        /// The program that it starts
        program: PathBuf,
    },
}

fn main() -> ExitCode {
    let passed = match Arguments::parse().task {
        Task::Peers { action: Some(PeersAction::Image { name, program }), .. } => told(peers::load(&name, &program)),
        Task::Peers { list: true, .. } => {
            print!("{}", peers::list());
            true
        }
        Task::Peers { stop: true, .. } => told(peers::stop()),
        Task::Peers { .. } => told(peers::prepare(Effort::Full)),
        Task::Test { plain, arguments } => reported(test::run(plain, &arguments)),
        Task::Contract { backend: Some(backend), .. } => reported_plainly(contract::run_backend(&backend)),
        Task::Contract { store: Some(store), .. } => reported_plainly(contract::run_store(&store)),
        Task::Contract { .. } => {
            print!("{}", contract::list());
            true
        }
        Task::Sim { arguments } => told(sim::run(&arguments)),
        Task::Ci => reported(ci::run()),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says what went wrong; whether nothing did.
fn told(done: Result<(), String>) -> bool {
    done.inspect_err(|error| eprintln!("error: {error}")).is_ok()
}

/// Ends with the sum, also of what ended early; whether everything passed.
fn reported(report: Result<Report, String>) -> bool {
    report.unwrap_or_else(Report::broken).finish()
}

/// The same for what was printed as a table before: only the sum follows.
fn reported_plainly(report: Result<Report, String>) -> bool {
    let report = report.unwrap_or_else(|error| {
        println!("\nerror: {error}");
        Report::broken(error)
    });
    println!("\n{}", report.sum());
    report.failed.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contract_is_that_of_one_backend_or_of_one_store() {
        let parsed =
            |arguments: &[&str]| Arguments::try_parse_from([&["xtask", "contract"], arguments].concat()).is_ok();
        assert!(parsed(&["--list"]) && parsed(&["--backend", "memory"]) && parsed(&["--store", "memory"]));
        for refused in [&[][..], &["--backend", "memory", "--store", "memory"], &["--list", "--store", "memory"]] {
            assert!(!parsed(refused), "{refused:?}");
        }
    }
}
