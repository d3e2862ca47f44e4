//! What may not be compiled into what.

use crate::command;

const HTTP_CLIENTS: &[&str] = &["reqwest", "hyper", "hyper-util", "ureq", "curl", "isahc"];
const CLOUD_SDKS: &[&str] = &["aws-*", "azure_*", "google-cloud-*", "kube", "kube-*", "k8s-openapi"];
const BACKENDS: &[&str] = &["backend-*"];
const SQLITE: &[&str] = &["rusqlite", "libsqlite3-sys"];

const RULES: &[Rule] = &[
    Rule {
        name: "provisioner-core contains no HTTP client and no cloud SDK, with every feature",
        chosen: &["--package", "provisioner-core", "--all-features"],
        forbidden: &[HTTP_CLIENTS, CLOUD_SDKS],
    },
    Rule {
        name: "provisioner-core contains no SQLite without its default features",
        chosen: &["--package", "provisioner-core", "--no-default-features"],
        forbidden: &[SQLITE],
    },
    Rule {
        name: "provisioner-contract contains no backend and no SQLite",
        chosen: &["--package", "provisioner-contract"],
        forbidden: &[BACKENDS, SQLITE, HTTP_CLIENTS, CLOUD_SDKS],
    },
    Rule {
        // Without `--workspace`: what `cargo build` builds for somebody who just came.
        name: "a build with default features contains no cloud SDK",
        chosen: &[],
        forbidden: &[CLOUD_SDKS],
    },
];

/// A choice of packages and features, and the packages that it may not contain.
#[derive(Debug)]
struct Rule {
    name: &'static str,
    chosen: &'static [&'static str],
    /// Names of packages; with `*` at the end, beginnings of names.
    forbidden: &'static [&'static [&'static str]],
}

pub(crate) fn check() -> Result<(), String> {
    for rule in RULES {
        let tree = ["tree", "--quiet", "--edges", "normal,build", "--prefix", "none"];
        let tree = command::read(command::cargo(&tree).args(rule.chosen))?;
        let found = rule.broken_by(&tree);
        if !found.is_empty() {
            return Err(format!("{}, but: {}", rule.name, found.join(", ")));
        }
        println!("{}", rule.name);
    }
    Ok(())
}

impl Rule {
    /// Packages of the tree that may not be there.
    fn broken_by<'a>(&self, tree: &'a str) -> Vec<&'a str> {
        let names = tree.lines().filter_map(|line| line.split(' ').next());
        let mut found: Vec<_> = names.filter(|name| self.forbids(name)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn forbids(&self, name: &str) -> bool {
        self.forbidden.iter().copied().flatten().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == *pattern,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `cargo tree`, cut.
    const RECORDED: &str = include_str!("../recorded/tree.txt");

    fn rule(forbidden: &'static [&'static [&'static str]]) -> Rule {
        Rule { name: "", chosen: &[], forbidden }
    }

    #[test]
    fn a_forbidden_package_is_found_once() {
        assert_eq!(rule(&[SQLITE]).broken_by(RECORDED), ["libsqlite3-sys", "rusqlite"]);
        assert_eq!(rule(&[HTTP_CLIENTS, CLOUD_SDKS]).broken_by(RECORDED), [""; 0]);
    }

    #[test]
    fn names_are_whole_and_beginnings_are_marked() {
        assert_eq!(rule(&[&["serde"]]).broken_by(RECORDED), ["serde"]);
        assert_eq!(rule(&[&["serde*"]]).broken_by(RECORDED), ["serde", "serde_core", "serde_derive"]);
    }
}
