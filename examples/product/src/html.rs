//! The pages as HTML. The template engine escapes whatever is put in.

use maud::{DOCTYPE, Markup, html};

use crate::{
    config::Config,
    notebook::{Draft, Page, TITLE_MAX},
};

/// The one style sheet.
pub(crate) const STYLE: &str = include_str!("style.css");

/// Every page, newest first.
pub(crate) fn list(config: &Config, pages: &[Page]) -> Markup {
    let body = html! {
        @if let Some(greeting) = &config.greeting { p.greeting { (greeting) } }
        .bar {
            h1 { "Pages" }
            a.button href="/pages/new" { "New page" }
        }
        @if pages.is_empty() {
            .empty {
                p { "Nothing is written yet." }
                p { a href="/pages/new" { "Write the first page" } }
            }
        }
        ul.pages {
            @for page in pages {
                li {
                    a href={ "/pages/" (page.id) } {
                        strong { (page.title) }
                        span { (opening(&page.text)) }
                    }
                }
            }
        }
    };
    layout(config, "Pages", &body)
}

/// One page.
pub(crate) fn show(config: &Config, page: &Page) -> Markup {
    let body = html! {
        p { a href="/" { "← All pages" } }
        article {
            h1 { (page.title) }
            .text { (page.text) }
        }
        .bar {
            a.button href={ "/pages/" (page.id) "/edit" } { "Edit" }
            form method="post" action={ "/pages/" (page.id) "/delete" } {
                button.quiet type="submit" { "Delete" }
            }
        }
    };
    layout(config, &page.title, &body)
}

/// The form for a new page or an edit, with what went wrong the last time.
pub(crate) fn form(config: &Config, page: Option<&Page>, draft: &Draft, problem: Option<&str>) -> Markup {
    let (title, action) = match page {
        Some(page) => ("Edit page", format!("/pages/{}", page.id)),
        None => ("New page", "/pages".to_owned()),
    };
    let overtaken = problem.is_some() && page.is_some_and(|page| page.text != draft.text);
    let body = html! {
        h1 { (title) }
        @if let Some(problem) = problem { p.problem role="alert" { (problem) } }
        form.write method="post" action=(action) {
            label for="title" { "Title" }
            input #title name="title" required maxlength=(TITLE_MAX) value=(draft.title) autofocus;
            label for="text" { "Text" }
            // A browser drops one line end after the tag: without this one, the text's own would go.
            textarea #text name="text" rows="14" { "\n" (draft.text) }
            @if let Some(page) = page { input type="hidden" name="revision" value=(page.revision); }
            .bar {
                button type="submit" { "Save" }
                a href=(page.map_or_else(|| "/".to_owned(), |page| format!("/pages/{}", page.id))) { "Cancel" }
            }
        }
        @if let (true, Some(page)) = (overtaken, page) {
            h2 { "What the page says now" }
            .text { (page.text) }
        }
    };
    layout(config, title, &body)
}

/// There is no such page.
pub(crate) fn missing(config: &Config) -> Markup {
    let body = html! {
        h1 { "No such page" }
        p { "It may have been deleted. " a href="/" { "All pages" } }
    };
    layout(config, "No such page", &body)
}

fn layout(config: &Config, title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · " (config.tenant) }
                link rel="stylesheet" href="/style.css";
                link rel="icon" href="data:,";
            }
            body {
                header {
                    a.brand href="/" { "Notebook" }
                    span.tenant { (config.tenant) }
                    span.version { "version " (config.version) }
                }
                main { (body) }
            }
        }
    }
}

/// The first words of a text, on one line.
fn opening(text: &str) -> String {
    const SHOWN_MAX: usize = 120;
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
