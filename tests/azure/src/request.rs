//! A request, read.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    answer::Refusal,
    faults::Once,
    operations::{Operation, Target},
};

/// A request whose operation is known.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) target: Target,
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
    /// Null, where there is none.
    pub(crate) body: Value,
    /// What befalls the work that it asks for.
    pub(crate) fate: Option<Once>,
}

impl Request {
    /// The first name in its path.
    pub(crate) fn name(&self) -> &str {
        self.target.names.first().map_or("", String::as_str)
    }

    /// The second one.
    pub(crate) fn second_name(&self) -> &str {
        self.target.names.get(1).map_or("", String::as_str)
    }

    /// Whether a flag in the query is set, or what it is when it is not named.
    pub(crate) fn flag(&self, name: &str, default: bool) -> bool {
        self.query.get(name).map_or(default, |value| value.eq_ignore_ascii_case("true"))
    }

    /// Leaves out what the contract knows of a plan or a site as a whole alone: it is nothing that a patch can change.
    pub(crate) fn leave_out(&mut self) {
        if let ("AppServicePlans_Update" | "WebApps_Update", Some(body)) =
            (self.operation.id, self.body.as_object_mut())
        {
            for name in ["tags", "sku", "location"] {
                body.remove(name);
            }
        }
    }

    pub(crate) fn is_patch(&self) -> bool {
        self.operation.id.ends_with("_Update")
    }
}

/// The tags of a body; nothing, where it names none.
///
/// # Errors
/// When they are none.
pub(crate) fn tags(body: &Value) -> Result<Option<BTreeMap<String, String>>, Refusal> {
    let Some(tags) =
        strings(&body["tags"]).map_err(|()| Refusal::new(400, "InvalidRequestContent", "Tags are text."))?
    else {
        return Ok(None);
    };
    let is_reserved = |c: char| "<>%&\\?/".contains(c) || c.is_control();
    if let Some(name) = tags.keys().find(|name| name.is_empty() || name.contains(is_reserved)) {
        let message =
            format!("The tag names '{name}' have reserved characters '<,>,%,&,\\,?,/' or control characters.");
        return Err(Refusal::new(400, "InvalidTagNameCharacters", message));
    }
    if tags.len() > 50 {
        return Err(Refusal::new(400, "TooManyTags", "The number of tags exceeds the maximum allowed number '50'."));
    }
    if let Some((name, _)) = tags.iter().find(|(name, value)| name.chars().count() > 512 || value.chars().count() > 256)
    {
        let message = format!("The tag '{name}' is longer than 512 characters, or its value than 256.");
        return Err(Refusal::new(400, "InvalidTagValueLength", message));
    }
    Ok(Some(tags))
}

/// A map of text; nothing, where there is none.
pub(crate) fn strings(value: &Value) -> Result<Option<BTreeMap<String, String>>, ()> {
    match value {
        Value::Null => Ok(None),
        Value::Object(map) => {
            let pair = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
            map.iter().map(pair).collect::<Option<_>>().map(Some).ok_or(())
        }
        _ => Err(()),
    }
}

/// Whether a body names a region, and which one it is.
pub(crate) fn location(body: &Value) -> Option<&str> {
    body["location"].as_str().filter(|location| !location.is_empty())
}
