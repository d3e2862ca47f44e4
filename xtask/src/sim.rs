//! The simulation: some seeds by hand, and what CI runs of it.

use crate::{
    command::{self, cargo},
    test::{self, report::Report},
};

/// What CI runs: many small fleets for some minutes, another seed each time, and one of thousands.
const IN_CI: &[&[&str]] = &[
    &["--seeds", "100000", "--instances", "200", "--minutes", "2"],
    &["--seeds", "1", "--instances", "2000", "--replicas", "1"],
];
/// The option that asks for an engine with a bug.
const PLANTED: &str = "--planted";

/// Runs the simulation with these options.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let planted = arguments.iter().any(|argument| argument.split('=').next() == Some(PLANTED));
    let mut command = cargo(&["run", "--quiet", "--release", "--package", "simulation", "--bin", "simulation"]);
    if planted {
        command.args(["--features", "planted-bugs"]);
    }
    command::run(command.arg("--").args(arguments))
}

/// New seeds, for some minutes.
pub(crate) fn new_seeds() -> Result<(), String> {
    IN_CI.iter().try_for_each(|arguments| {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        run(&arguments)
    })
}

/// The engine with each of the planted bugs, which must be found.
pub(crate) fn planted() -> Result<Report, String> {
    let chosen = ["--release", "--package", "simulation", "--features", "planted-bugs", "--test", "planted"];
    test::run_prepared(false, &chosen.map(str::to_owned))
}
