//! The binaries that tests start. They are built beforehand with the features of the tests, so that little is compiled for them alone
//! and no test waits for a compiler.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

use crate::{EVERYTHING, command};

/// Which they are, by the names of their targets, and the variables that tell the tests where. Tests that are told of none build
/// their own: `binaries` of `examples/tests/support`.
const TOLD: [(&str, &str); 2] = [("signup", "SIGNUP_BINARY"), ("product", "PRODUCT_BINARY")];

/// Where they are.
#[derive(Debug, Default)]
pub(super) struct Binaries(Vec<(&'static str, PathBuf)>);

impl Binaries {
    /// Builds them.
    pub(super) fn build() -> Result<Self, String> {
        let chosen = ["build", "--workspace", "--features", EVERYTHING, "--bin", "product", "--example", "signup"];
        let messages = ["--message-format", "json-render-diagnostics"];
        let built = command::read(command::cargo(&chosen).args(messages))?;
        Self::among(&built)
    }

    fn among(messages: &str) -> Result<Self, String> {
        let messages: Vec<Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let found = TOLD.map(|(target, variable)| {
            let of_target = messages.iter().filter(|message| message["target"]["name"] == target);
            let executable = of_target.filter_map(|message| message["executable"].as_str()).next_back();
            executable.map(|path| (variable, PathBuf::from(path))).ok_or_else(|| format!("cargo built no {target}"))
        });
        found.into_iter().collect::<Result<_, _>>().map(Self)
    }

    /// Tells a command where they are.
    pub(super) fn tell<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.0.iter().map(|(variable, path)| (variable, path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_among_what_cargo_tells() {
        let built = |target: &str, executable: &str| {
            format!(r#"{{"reason":"compiler-artifact","target":{{"name":"{target}"}},"executable":{executable}}}"#)
        };
        let signup = built("signup", r#""/target/examples/signup""#);
        let all = [built("product", "null"), signup.clone(), built("product", r#""/target/product""#)].join("\n");
        let mut command = Command::new("true");
        Binaries::among(&all).unwrap().tell(&mut command);
        let told: Vec<_> = command.get_envs().map(|(name, path)| (name, path.unwrap())).collect();
        let expected = [("PRODUCT_BINARY", "/target/product"), ("SIGNUP_BINARY", "/target/examples/signup")];
        assert_eq!(told, expected.map(|(name, path)| (name.as_ref(), path.as_ref())));
        assert!(Binaries::among(&signup).unwrap_err().contains("product"));
    }
}
