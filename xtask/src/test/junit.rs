//! Reads the report of a run that cargo-nextest leaves in the format of JUnit.

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Case {
    /// The test target.
    pub(crate) place: String,
    pub(crate) name: String,
    /// Why it failed, where it did.
    pub(crate) failed: Option<String>,
    /// What it printed.
    pub(crate) output: String,
}

/// The tests that were run.
pub(crate) fn cases(report: &str) -> Vec<Case> {
    // Text is escaped, so that these can only be tags.
    report.split("<testcase ").skip(1).filter_map(case).collect()
}

fn case(text: &str) -> Option<Case> {
    let (head, rest) = text.split_once('>')?;
    let body = if head.ends_with('/') { "" } else { rest.split("</testcase>").next()? };
    let within = |tag: &str| {
        let (_, rest) = body.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>")).map(|(text, _)| plain(text))
    };
    let output = within("system-out").unwrap_or_default();
    let failed = ["failure", "error"].into_iter().find_map(|tag| {
        let (_, rest) = body.split_once(&format!("<{tag} "))?;
        let (head, rest) = rest.split_once('>')?;
        // What is known to be why, or else all that it told: one that was ended for its time says nothing itself.
        let told = (!head.ends_with('/')).then(|| rest.split("</").next().map(plain)).flatten().unwrap_or_default();
        let what = attribute(head, "type").unwrap_or_default();
        let errors = within("system-err").unwrap_or_default();
        let told = if told.trim().is_empty() { format!("{output}\n{errors}") } else { told };
        Some(format!("{told}\n{what}"))
    });
    Some(Case { place: attribute(head, "classname")?, name: attribute(head, "name")?, failed, output })
}

fn attribute(head: &str, name: &str) -> Option<String> {
    let start = format!("{name}=\"");
    // The name of one may be the end of another's.
    let at = head.match_indices(&start).map(|(at, _)| at).find(|&at| at == 0 || head[..at].ends_with(' '))?;
    head[at + start.len()..].split('"').next().map(plain)
}

/// Text without escapes.
fn plain(text: &str) -> String {
    // The ampersand last, so that nothing is replaced twice.
    let escapes = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#10;", "\n"), ("&amp;", "&")];
    escapes.into_iter().fold(text.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of cargo-nextest, cut.
    const RECORDED: &str = include_str!("../../recorded/junit.xml");

    #[test]
    fn every_case_is_read_with_its_output() {
        let cases = cases(RECORDED);
        let short: Vec<_> =
            cases.iter().map(|case| (case.place.as_str(), case.name.as_str(), case.failed.is_some())).collect();
        let expected = [
            ("demo", "tests::passes", false),
            ("demo", "tests::fails", true),
            ("demo::mimic", "quick", false),
            ("demo::mimic", "while_running", false),
        ];
        assert_eq!(short, expected);
        let why = cases[1].failed.as_deref().unwrap_or_default();
        assert!(why.contains("\n1 < 2 & \"so\"\n") && why.ends_with("exit code 101"), "{why}");
        assert!(cases[3].output.contains("... ignored (chromedriver is neither"), "{}", cases[3].output);
    }

    #[test]
    fn escapes_are_undone_once() {
        assert_eq!(plain("a &lt;b&gt; &amp;lt; &quot;"), "a <b> &lt; \"");
    }

    #[test]
    fn attributes_are_whole_words() {
        assert_eq!(attribute("classname=\"a\" name=\"b\"", "name").as_deref(), Some("b"));
    }
}
