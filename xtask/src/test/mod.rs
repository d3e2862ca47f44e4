//! Running every test, and telling what was not tested and why.

mod binaries;
pub(crate) mod database;
mod junit;
pub(crate) mod libtest;
mod nextest;
mod recordings;
pub(crate) mod report;

use std::{
    io::{self, BufRead, BufReader},
    process::{Command, ExitStatus},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use crate::{
    EVERYTHING, command,
    peers::{self, Effort},
};
use binaries::Binaries;
use database::Database;
use report::Report;

/// A backend that somebody else might write, in a workspace of its own.
pub(crate) const STRANGER: &str = "tests/stranger/Cargo.toml";

/// Prepares the peers and runs every test, or only those that the arguments choose.
pub(crate) fn run(plain: bool, arguments: &[String]) -> Result<Report, String> {
    peers::prepare(Effort::Usual)?;
    run_prepared(plain, arguments)
}

/// Runs every test, or only those that the arguments choose, and nothing but `cargo test` with `plain`.
pub(crate) fn run_prepared(plain: bool, arguments: &[String]) -> Result<Report, String> {
    let everything = ["--workspace", "--features", EVERYTHING].map(str::to_owned);
    let chosen = if arguments.is_empty() { &everything } else { arguments };
    let binaries = if arguments.is_empty() { Binaries::build()? } else { Binaries::default() };
    let recordings = recordings::folder()?;
    let database = Database::start();
    let mut report = match !plain && command::has_subcommand("nextest") {
        true => nextest::run(chosen, &recordings, &database, &binaries)?,
        false => {
            let mut tests = command::cargo(&["test", "--no-fail-fast"]);
            // Without a choice of targets, Cargo would run the doc-tests too, which come by themselves.
            let targets: &[&str] = if arguments.is_empty() { &["--tests"] } else { &[] };
            tests.args(targets).args(chosen).env(recordings::VARIABLE, &recordings);
            binaries.tell(database.tell(&mut tests));
            cargo_test(tests)?
        }
    };
    report.add(recordings::validate(&recordings, arguments.is_empty())?);
    if arguments.is_empty() {
        report.add(cargo_test(command::cargo(&["test", "--doc", "--workspace", "--no-fail-fast"]))?);
        let mut stranger = command::outside(&["test", "--no-fail-fast", "--manifest-path", STRANGER]);
        stranger.arg("--tests");
        report.add(cargo_test(stranger)?);
    }
    Ok(report)
}

/// Runs `cargo test` and counts from what it prints.
fn cargo_test(mut command: Command) -> Result<Report, String> {
    let shown = command::shown(&command);
    command.env("CARGO_TERM_COLOR", "never");
    let (status, output) = stream(command).map_err(|error| format!("{shown}: {error}"))?;
    let mut report = libtest::read(&output);
    report.heed(status, &shown);
    Ok(report)
}

/// Runs a command, showing what it prints to either stream; that, as one text.
fn stream(mut command: Command) -> io::Result<(ExitStatus, String)> {
    // Between two lines of a test run that still goes on.
    const MOMENT: Duration = Duration::from_millis(200);
    let (reader, writer) = io::pipe()?;
    let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
    // Our ends of the pipe, without which it never ends.
    drop(command);
    let (sender, lines) = mpsc::sync_channel(64);
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut output = String::new();
    let mut ended = false;
    loop {
        match lines.recv_timeout(MOMENT) {
            Ok(line) => {
                println!("{line}");
                output.push_str(&line);
                output.push('\n');
            }
            // A process that a test left behind may hold the pipe open for as long as it likes.
            Err(RecvTimeoutError::Timeout) if ended => break,
            Err(RecvTimeoutError::Timeout) => ended = child.try_wait()?.is_some(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok((child.wait()?, output))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_process_left_behind_holds_nothing_up() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 20 & echo one; echo $! >&2; exit 3"]);
        let started = Instant::now();
        let (status, output) = stream(command).unwrap();
        let elapsed = started.elapsed();
        let left_behind = output.lines().last().unwrap();
        assert!(Command::new("kill").arg(left_behind).status().unwrap().success(), "it holds the pipe until now");
        assert_eq!((status.code(), output.as_str()), (Some(3), format!("one\n{left_behind}\n").as_str()));
        assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
    }
}
