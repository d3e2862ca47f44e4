//! Every check that a change has to pass.

use std::time::{Duration, Instant};

use crate::{
    EVERYTHING,
    command::{self, cargo},
    dependencies, msrv,
    peers::{self, Effort},
    sim,
    test::{
        self,
        report::{Ignored, Report},
    },
};

/// The checks before the tests, in order.
const STEPS: &[Step] = &[
    Step { name: "format", run: || cargo_run(&["fmt", "--all", "--check"]) },
    Step {
        name: "clippy, every target",
        run: || {
            cargo_run(&["clippy", "--workspace", "--all-targets", "--features", EVERYTHING, "--", "-D", "warnings"])
        },
    },
    Step {
        name: "clippy, provisioner-core without default features",
        run: || {
            let chosen = ["clippy", "--package", "provisioner-core", "--no-default-features", "--all-targets"];
            cargo_run(&[&chosen[..], &["--", "-D", "warnings"]].concat())
        },
    },
    Step {
        name: "format and clippy, outside the workspace",
        run: || {
            cargo_run(&["fmt", "--manifest-path", test::STRANGER, "--check"])?;
            let clippy = ["clippy", "--manifest-path", test::STRANGER, "--all-targets", "--", "-D", "warnings"];
            command::run(&mut command::outside(&clippy)).map(|()| None)
        },
    },
    Step { name: "format and lock file of rivals", run: rivals },
    Step { name: "documentation", run: documentation },
    Step { name: "who depends on what", run: || dependencies::check().map(|()| None) },
    Step { name: "oldest Rust", run: || msrv::check().map(|()| None) },
    Step { name: "licences, sources, duplicates", run: deny },
    Step { name: "peers", run: || peers::prepare(Effort::Usual).map(|()| None) },
];

/// What the benchmarks are compared with, each in a workspace of its own.
const RIVALS: [&str; 2] = ["benches/rivals/apalis/Cargo.toml", "benches/rivals/postgres/Cargo.toml"];

struct Step {
    name: &'static str,
    run: fn() -> Result<Skipped, String>,
}

/// A check that could not be made here.
type Skipped = Option<Ignored>;

/// Makes every check, up to the first that fails, and then runs every test. A cluster that was made for them is stopped.
pub(crate) fn run() -> Result<Report, String> {
    let began = Began(Instant::now());
    let had_cluster = peers::has_cluster();
    let report = checked(&began);
    if !had_cluster && peers::has_cluster() {
        began.timed("stopping the cluster", peers::stop)?;
    }
    report
}

fn checked(began: &Began) -> Result<Report, String> {
    let mut skipped = Vec::new();
    for step in STEPS {
        skipped.extend(began.timed(step.name, step.run)?);
    }
    let mut report = began.timed("tests", || test::run_prepared(false, &[]))?;
    report.add(began.timed("simulation: each planted bug is found", sim::planted)?);
    began.timed("simulation: new seeds", sim::new_seeds)?;
    report.ignored.append(&mut skipped);
    Ok(report)
}

/// When the whole run began. Each step tells the time since then too: who has only the end of what was printed sees where it went.
struct Began(Instant);

impl Began {
    fn timed<T>(&self, name: &str, run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        println!("\n=== {name}");
        let started = Instant::now();
        let done = run();
        let (time, whole) = (shown(started.elapsed()), shown(self.0.elapsed()));
        match &done {
            Ok(_) => println!("=== {name}: took {time}, {whole} in all"),
            Err(_) => println!("=== {name}: FAILED after {time}, {whole} in all"),
        }
        done.map_err(|error| format!("{name}: {error}"))
    }
}

fn shown(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

fn cargo_run(arguments: &[&str]) -> Result<Skipped, String> {
    command::run(&mut cargo(arguments)).map(|()| None)
}

/// Not compiled here: that is another SQLite and hundreds of packages that nothing else needs.
fn rivals() -> Result<Skipped, String> {
    for manifest in RIVALS {
        cargo_run(&["fmt", "--manifest-path", manifest, "--check"])?;
        // Fails where Cargo.lock would have to change.
        command::read(&mut cargo(&["metadata", "--locked", "--format-version", "1", "--manifest-path", manifest]))?;
    }
    Ok(None)
}

fn documentation() -> Result<Skipped, String> {
    command::run(
        cargo(&["doc", "--workspace", "--no-deps", "--features", EVERYTHING]).env("RUSTDOCFLAGS", "-D warnings"),
    )
    .map(|()| None)
}

fn deny() -> Result<Skipped, String> {
    if command::has_subcommand("deny") {
        // Advisories are a database that changes by itself: a change must not fail for what was published meanwhile.
        return cargo_run(&["deny", "check", "licenses", "bans", "sources"]);
    }
    let reason = "cargo-deny is not installed (cargo install cargo-deny --locked)".to_owned();
    println!("skipped: {reason}");
    Ok(Some(Ignored { place: "check".to_owned(), name: "cargo deny".to_owned(), reason }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_seconds_up_to_a_minute() {
        assert_eq!(shown(Duration::from_millis(59_940)), "59.9 s");
        assert_eq!(shown(Duration::from_secs(60)), "1 min 0 s");
        assert_eq!(shown(Duration::from_secs(754)), "12 min 34 s");
    }
}
