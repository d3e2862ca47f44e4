//! Whether `rust-version` is true of what the workspace depends on. Only one toolchain is at hand, so nothing is built
//! with an older one: the packages say what they need.

use serde_json::Value;

use crate::command;

pub(crate) fn check() -> Result<(), String> {
    let metadata = command::read(&mut command::cargo(&["metadata", "--format-version", "1"]))?;
    let text = judge(&metadata)?;
    println!("{text}");
    Ok(())
}

/// What is asked and by whom, when it is not more than what the workspace promises.
fn judge(metadata: &str) -> Result<String, String> {
    let metadata: Value = serde_json::from_str(metadata).map_err(|error| format!("cargo metadata: {error}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    // Our own packages come from no source.
    let (ours, theirs): (Vec<_>, Vec<_>) = packages.iter().partition(|package| package["source"].is_null());
    let promised = ours.iter().map(|package| {
        let version = package["rust_version"].as_str().and_then(version);
        version.ok_or_else(|| format!("{} names no rust-version", text(package, "name")))
    });
    let promised = promised.collect::<Result<Vec<_>, _>>()?.into_iter().min();
    let promised = promised.ok_or("the workspace has no packages")?;
    let asked = theirs.iter().filter_map(|package| Some((version(package["rust_version"].as_str()?)?, package)));
    let asked: Vec<_> = asked.collect();
    let Some(highest) = asked.iter().map(|(version, _)| *version).max() else {
        return Ok("no dependency asks for a version of Rust".to_owned());
    };
    let who = asked.iter().filter(|(version, _)| *version == highest);
    let who: Vec<_> =
        who.map(|(_, package)| format!("{} {}", text(package, "name"), text(package, "version"))).collect();
    let (asked, promised_text) = (shown(highest), shown(promised));
    match highest <= promised {
        true => Ok(format!("rust-version is {promised_text}; the most is asked by {}: {asked}", who.join(", "))),
        false => Err(format!("rust-version is {promised_text}, but {} asks for {asked}", who.join(", "))),
    }
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or("?")
}

/// `1.89` and `1.89.0` are the same.
fn version(text: &str) -> Option<[u64; 3]> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let mut next = || parts.next().unwrap_or(Some(0));
    Some([next()?, next()?, next()?])
}

fn shown([major, minor, patch]: [u64; 3]) -> String {
    if patch == 0 { format!("{major}.{minor}") } else { format!("{major}.{minor}.{patch}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `cargo metadata`, cut down to what is read.
    const RECORDED: &str = include_str!("../recorded/metadata.json");

    #[test]
    fn as_much_as_the_highest_is_enough() {
        let text = judge(RECORDED).unwrap();
        assert_eq!(text, "rust-version is 1.89; the most is asked by rusqlite 0.43.0: 1.89");
    }

    #[test]
    fn less_than_the_highest_names_who_asks() {
        let error = judge(&RECORDED.replace("\"1.89\"", "\"1.88.5\"")).unwrap_err();
        assert_eq!(error, "rust-version is 1.88.5, but rusqlite 0.43.0 asks for 1.89");
    }

    #[test]
    fn a_package_of_ours_without_a_promise_is_refused() {
        let error = judge(&RECORDED.replace("\"1.89\"", "null")).unwrap_err();
        assert!(error.ends_with("names no rust-version"), "{error}");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("1.89"), Some([1, 89, 0]));
        assert!(version("1.100.0") > version("1.89.2"));
        assert_eq!(version("1.x"), None);
    }
}
