//! What a site runs, and what it is run with.

use std::{collections::BTreeMap, path::Path};

use crate::site::{Mount, Site};

/// What is wanted of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    Run(Program),
    Stopped,
    Gone,
}

/// What a site runs. Whatever differs is started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program {
    image: String,
    command: String,
    /// The machines that it runs on.
    plan: String,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) mounts: Vec<Mount>,
    restarts: u64,
}

impl Wanted {
    pub(crate) fn of(site: &Site) -> Self {
        if !site.enabled {
            return Self::Stopped;
        }
        Self::Run(Program {
            image: site.config_text("linuxFxVersion").to_owned(),
            command: site.config_text("appCommandLine").to_owned(),
            plan: site.plan.to_lowercase(),
            settings: site.settings.clone(),
            mounts: site.mounts.values().cloned().collect(),
            restarts: site.restarts,
        })
    }
}

impl Program {
    /// Whether there is an image of that name. None is pulled: a name tells.
    pub(crate) fn has_image(&self) -> bool {
        !self.image.contains("missing")
    }

    /// The words of its command; those of what runs by default, where it names none.
    pub(crate) fn words(&self, default: Option<&Path>) -> Vec<String> {
        let words = words(&self.command);
        match default {
            Some(path) if words.is_empty() => vec![path.to_string_lossy().into_owned()],
            _ => words,
        }
    }

    /// A text as a product is to see it: a path of a mount leads to the folder of the share.
    pub(crate) fn placed(&self, text: &str, folder_of: impl Fn(&str) -> std::path::PathBuf) -> String {
        let below = |mount: &Mount| {
            let rest = text.strip_prefix(mount.path.trim_end_matches('/'))?;
            let is_below = rest.is_empty() || rest.starts_with('/');
            is_below.then(|| format!("{}{rest}", folder_of(&mount.share).display()))
        };
        self.mounts.iter().find_map(below).unwrap_or_else(|| text.to_owned())
    }
}

/// Splits a command. Quotes of either kind keep what is between them together.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in command.chars() {
        match quote {
            Some(end) if c == end => quote = None,
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_split_where_no_quote_keeps_it_together() {
        let words_of = |command| words(command).join("|");
        assert_eq!(words_of("  a 'b c' \"d's\" e\"f g\"h '' "), "a|b c|d's|ef gh|");
        assert_eq!(words(""), [""; 0]);
    }

    #[test]
    fn a_path_of_a_mount_leads_to_the_folder_of_its_share() {
        let mount = Mount {
            kind: String::new(),
            account: String::new(),
            share: "s".to_owned(),
            key: String::new(),
            path: "/data".to_owned(),
        };
        let program = Program {
            image: String::new(),
            command: String::new(),
            plan: String::new(),
            settings: BTreeMap::new(),
            mounts: vec![mount],
            restarts: 0,
        };
        let placed = |text: &str| program.placed(text, |share| format!("/x/{share}").into());
        assert_eq!(["/data", "/data/a", "/database", "a/data"].map(placed), ["/x/s", "/x/s/a", "/database", "a/data"]);
    }
}
