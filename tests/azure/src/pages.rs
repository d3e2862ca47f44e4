//! Lists: a page, and where the next one is.

use serde_json::{Value, json};

use crate::{answer::Answer, request::Request, stand::Stand};

impl Stand {
    /// The page of a list that a request asks for.
    pub(crate) fn page(&self, request: &Request, mut items: Vec<Value>) -> Answer {
        // It names what the page begins with, so that nothing is shown twice when something goes in between.
        if let Some(from) = request.query.get("$skipToken") {
            items.retain(|item| key(item) >= *from);
        }
        let mut body = json!({});
        if items.len() > self.options.page.max(1) {
            let rest = items.split_off(self.options.page.max(1));
            if let Some(next) = rest.first() {
                let kept = request.query.iter().filter(|(name, _)| *name != "$skipToken");
                let query = form_urlencoded::Serializer::new(String::new())
                    .extend_pairs(kept)
                    .append_pair("$skipToken", &key(next))
                    .finish();
                body["nextLink"] = format!("{}{}?{query}", self.endpoint, request.path).into();
            }
        }
        body["value"] = items.into();
        Answer::ok(body)
    }
}

/// What lists are sorted by.
fn key(item: &Value) -> String {
    item["name"].as_str().unwrap_or_default().to_lowercase()
}
