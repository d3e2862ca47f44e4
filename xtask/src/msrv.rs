//! Whether `rust-version` is true of what the workspace depends on. Only one toolchain is at hand, so nothing is built
//! with an older one: the packages say what they need.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::command;

pub(crate) fn check() -> Result<(), String> {
    let metadata = command::read(&mut command::cargo(&["metadata", "--format-version", "1"]))?;
    let text = judge(&metadata)?;
    println!("{text}");
    Ok(())
}

/// What is asked and by whom, when no package of ours promises less than something asks that it depends on.
fn judge(metadata: &str) -> Result<String, String> {
    let metadata: Value = serde_json::from_str(metadata).map_err(|error| format!("cargo metadata: {error}"))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let packages: BTreeMap<_, _> = packages.iter().map(|package| (text(package, "id"), package)).collect();
    let nodes = metadata["resolve"]["nodes"].as_array().ok_or("cargo metadata does not say who depends on whom")?;
    let depends: BTreeMap<_, _> = nodes.iter().map(|node| (text(node, "id"), &node["dependencies"])).collect();
    // Our own packages come from no source. One line for all that promise the same.
    let mut lines: BTreeMap<Version, (Version, BTreeSet<String>)> = BTreeMap::new();
    for (id, package) in packages.iter().filter(|(_, package)| package["source"].is_null()) {
        let promised = package["rust_version"].as_str().and_then(version);
        let promised = promised.ok_or_else(|| format!("{} names no rust-version", text(package, "name")))?;
        for other in needed_by(id, &depends).into_iter().filter_map(|id| packages.get(id)) {
            let Some(asked) = other["rust_version"].as_str().and_then(version) else { continue };
            let who = format!("{} {}", text(other, "name"), text(other, "version"));
            if asked > promised {
                let (promised, asked) = (shown(promised), shown(asked));
                let name = text(package, "name");
                return Err(format!("rust-version of {name} is {promised}, but {who} asks for {asked}"));
            }
            let (highest, by) = lines.entry(promised).or_insert((asked, BTreeSet::new()));
            if asked > *highest {
                (*highest, *by) = (asked, BTreeSet::new());
            }
            if asked == *highest && !other["source"].is_null() {
                by.insert(who);
            }
        }
    }
    let line = |(promised, (asked, by)): (Version, (Version, BTreeSet<String>))| {
        let by: Vec<_> = by.into_iter().collect();
        format!("rust-version is {}; the most is asked by {}: {}", shown(promised), by.join(", "), shown(asked))
    };
    Ok(lines.into_iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// All that a package depends on, by whatever way.
fn needed_by<'a>(id: &'a str, depends: &BTreeMap<&'a str, &'a Value>) -> BTreeSet<&'a str> {
    let (mut needed, mut open) = (BTreeSet::new(), vec![id]);
    while let Some(next) = open.pop() {
        let direct = depends.get(next).and_then(|direct| direct.as_array()).into_iter().flatten();
        open.extend(direct.filter_map(Value::as_str).filter(|id| needed.insert(*id)));
    }
    needed
}

type Version = [u64; 3];

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or("?")
}

/// `1.89` and `1.89.0` are the same.
fn version(text: &str) -> Option<Version> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let mut next = || parts.next().unwrap_or(Some(0));
    Some([next()?, next()?, next()?])
}

fn shown([major, minor, patch]: Version) -> String {
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
        assert_eq!(error, "rust-version of provisioner-core is 1.88.5, but rusqlite 0.43.0 asks for 1.89");
    }

    #[test]
    fn who_does_not_depend_on_it_may_promise_less() {
        let less = RECORDED.replace(
            "\"id\": \"xtask\",\n   \"rust_version\": \"1.89\"",
            "\"id\": \"xtask\",\n   \"rust_version\": \"1.88\"",
        );
        assert_ne!(less, RECORDED);
        let text = judge(&less).unwrap();
        assert_eq!(
            text,
            "rust-version is 1.88; the most is asked by time 0.3.55: 1.88\n\
             rust-version is 1.89; the most is asked by rusqlite 0.43.0: 1.89"
        );
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
