//! Builds binaries with Cargo and asks Cargo where they are.

use std::{ffi::OsString, path::PathBuf, process::Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::process::Command;

/// What Cargo tells of something that it built.
#[derive(Debug, Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// Runs `cargo build` with these arguments in this project; the binaries built, by name. Progress and compiler errors go
/// to stderr.
///
/// # Cancellation
/// Dropping the future ends the build.
pub(crate) async fn build(arguments: &[&str]) -> anyhow::Result<Vec<(String, PathBuf)>> {
    // Cargo says which Cargo it is to what it runs.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(&cargo)
        .arg("build")
        .args(["--message-format", "json-render-diagnostics", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{} does not start", cargo.display()))?;
    if !output.status.success() {
        bail!("cargo build {} failed: {}", arguments.join(" "), output.status);
    }
    Ok(binaries(&String::from_utf8_lossy(&output.stdout)))
}

fn binaries(messages: &str) -> Vec<(String, PathBuf)> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter_map(|message| Some((message.target?.name, message.executable?)))
        .collect()
}
