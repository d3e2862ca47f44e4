//! What was applied, noted on each object itself: so that whatever somebody else changes of it is seen, and by whom it
//! was applied when two did so at once.
//!
//! The cluster's own record of who set which field tells of what others set, not of what they took away.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use provisioner_core::types::Generation;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{names, render::Part};

/// Notes on an object what it is made of, and for which generation of the spec.
pub(crate) fn note(part: &mut Part, generation: Generation) {
    annotate(part, names::GENERATION, generation.0.to_string());
    let said = said(&part.body).to_string();
    annotate(part, names::APPLIED, said);
}

/// Notes on a stateful set or a claim the labels and annotations that it has, but for annotations that change without it, and what
/// it belongs to. What else is changed of them the cluster counts, or refuses.
pub(crate) fn note_marks(meta: &mut ObjectMeta, changing: &[&str]) {
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| key != names::APPLIED && !changing.contains(&key.as_str()));
    let mut said = json!({"metadata": {"labels": meta.labels, "annotations": annotations}});
    if let Some(owners) = &meta.owner_references {
        said["metadata"]["ownerReferences"] = json!(owners);
    }
    let said = said.to_string();
    meta.annotations.get_or_insert_default().insert(names::APPLIED.to_owned(), said);
}

/// Whether a stateful set or a claim still has the labels and annotations that were noted, and belongs where it did.
pub(crate) fn has_marks(meta: &ObjectMeta) -> bool {
    let marks =
        json!({"labels": meta.labels, "annotations": meta.annotations, "ownerReferences": meta.owner_references});
    is_intact(meta, &json!({"metadata": marks}), Lists::Whole)
}

/// Notes on a home the labels that stay as they are, whoever uses the data.
pub(crate) fn note_labels(home: &mut ObjectMeta) {
    let mut labels = home.labels.clone().unwrap_or_default();
    labels.retain(|key, _| ![names::INSTANCE, names::INCARNATION].contains(&key.as_str()));
    let said = json!({"metadata": {"labels": labels}}).to_string();
    home.annotations.get_or_insert_default().insert(names::APPLIED.to_owned(), said);
}

fn annotate(part: &mut Part, key: &str, value: String) {
    let metadata = &mut part.body["metadata"];
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = Value::Object(Map::new());
    }
    metadata["annotations"][key] = Value::String(value);
}

/// What an object says, without what tells it from others.
fn said(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    if let Some(metadata) = body["metadata"].as_object_mut() {
        metadata.remove("name");
        metadata.remove("namespace");
    }
    body
}

/// The labels that were noted on an object.
pub(crate) fn noted_labels(meta: &ObjectMeta) -> BTreeMap<String, String> {
    let noted = meta.annotations.as_ref().and_then(|annotations| annotations.get(names::APPLIED));
    let noted = noted.and_then(|noted| serde_json::from_str::<Value>(noted).ok()).unwrap_or_default();
    serde_json::from_value(noted["metadata"]["labels"].clone()).unwrap_or_default()
}

/// An annotation of ours: as it was noted, whatever somebody made of it since.
pub(crate) fn annotation(meta: &ObjectMeta, key: &str) -> Option<String> {
    let annotations = meta.annotations.as_ref()?;
    let noted = annotations.get(names::APPLIED).and_then(|noted| serde_json::from_str::<Value>(noted).ok());
    let noted = noted.and_then(|noted| Some(noted["metadata"]["annotations"][key].as_str()?.to_owned()));
    noted.or_else(|| annotations.get(key).cloned())
}

/// The generation that an object was applied for.
pub(crate) fn generation(meta: &ObjectMeta) -> Generation {
    Generation(annotation(meta, names::GENERATION).and_then(|noted| noted.parse().ok()).unwrap_or_default())
}

/// What else a list may have than what was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lists {
    /// Nothing: who applies a list applies all of it.
    Whole,
    /// What others add, which an apply leaves to them, as the ports of a service:
    /// <https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy>.
    Shared,
}

/// Whether an object still says all that was applied.
pub(crate) fn is_intact(meta: &ObjectMeta, object: &impl Serialize, lists: Lists) -> bool {
    let noted = meta.annotations.as_ref().and_then(|annotations| annotations.get(names::APPLIED));
    let noted = noted.and_then(|noted| serde_json::from_str::<Value>(noted).ok());
    // Every note of ours has labels: without them it is somebody else's, and would be one of nothing.
    let noted = noted.filter(|noted| noted["metadata"]["labels"].as_object().is_some_and(|labels| !labels.is_empty()));
    let found = serde_json::to_value(object);
    matches!((found, noted), (Ok(found), Some(noted)) if covers(&found, &noted, lists))
}

/// Whether something has all that is wanted. The cluster leaves out what is empty, and adds its defaults.
fn covers(found: &Value, wanted: &Value, lists: Lists) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| {
                // It may belong to others, too.
                let lists = if key == "ownerReferences" { Lists::Shared } else { lists };
                covers(found.get(key).unwrap_or(&Value::Null), wanted, lists)
            })
        }
        (Value::Array(found), Value::Array(wanted)) if lists == Lists::Shared => {
            wanted.iter().all(|wanted| found.iter().any(|found| covers(found, wanted, lists)))
        }
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(found, wanted)| covers(found, wanted, lists))
        }
        (Value::Null, Value::Object(wanted)) => wanted.values().all(|wanted| covers(&Value::Null, wanted, lists)),
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (found, wanted) => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::networking::v1::NetworkPolicy;
    use kube::Resource;

    use super::*;

    fn applied() -> Part {
        let policy: NetworkPolicy = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "b", "labels": {"x": "y"}},
            "spec": {"podSelector": {}, "ingress": [], "egress": [{"ports": [{"port": 53}]}],
                     "policyTypes": ["Ingress", "Egress"]}
        }))
        .unwrap();
        let mut part = Part::of(&policy);
        note(&mut part, Generation(7));
        part
    }

    #[track_caller]
    fn assert_intact(expected: bool, change: impl FnOnce(&mut Value)) {
        let mut body = applied().body;
        change(&mut body);
        let policy: NetworkPolicy = serde_json::from_value(body).unwrap();
        assert_eq!(is_intact(policy.meta(), &policy, Lists::Whole), expected);
    }

    #[test]
    fn what_the_cluster_adds_or_leaves_out_changes_nothing() {
        assert_intact(true, |_| {});
        assert_intact(true, |body| body["metadata"]["uid"] = json!("u"));
        assert_intact(true, |body| body["metadata"]["labels"]["added"] = json!("z"));
        assert_intact(true, |body| body["spec"]["egress"][0]["ports"][0]["protocol"] = json!("TCP"));
        assert_intact(true, |body| drop(body["spec"].as_object_mut().unwrap().remove("ingress")));
    }

    #[test]
    fn what_is_changed_added_to_a_list_or_taken_away_is_seen() {
        assert_intact(false, |body| body["metadata"]["labels"]["x"] = json!("z"));
        assert_intact(false, |body| body["spec"]["egress"][0]["ports"][0]["port"] = json!(54));
        assert_intact(false, |body| body["spec"]["ingress"] = json!([{}]));
        assert_intact(false, |body| drop(body["spec"].as_object_mut().unwrap().remove("policyTypes")));
        assert_intact(false, |body| drop(body["spec"].as_object_mut().unwrap().remove("egress")));
        assert_intact(false, |body| drop(body["metadata"].as_object_mut().unwrap().remove("annotations")));
        for note in ["{}", r#"{"metadata": {}}"#, "0", "no note"] {
            assert_intact(false, |body| body["metadata"]["annotations"][names::APPLIED] = json!(note));
        }
    }

    #[test]
    fn what_others_add_to_a_shared_list_is_theirs() {
        let ports = |ports: &[u16]| json!(ports.iter().map(|port| json!({"port": port})).collect::<Vec<_>>());
        assert!(covers(&ports(&[80, 9090]), &ports(&[80]), Lists::Shared));
        assert!(!covers(&ports(&[9090]), &ports(&[80]), Lists::Shared));
        assert!(!covers(&ports(&[80, 9090]), &ports(&[80]), Lists::Whole));
    }

    #[test]
    fn who_else_an_object_belongs_to_is_not_looked_at() {
        let owners =
            |uids: &[&str]| json!({"ownerReferences": uids.iter().map(|uid| json!({"uid": uid})).collect::<Vec<_>>()});
        assert!(covers(&owners(&["a", "b"]), &owners(&["b"]), Lists::Whole));
        assert!(!covers(&owners(&["a"]), &owners(&["b"]), Lists::Whole));
        assert!(!covers(&json!({}), &owners(&["b"]), Lists::Whole));
    }

    #[test]
    fn the_generation_is_noted_beside_it() {
        let policy: NetworkPolicy = serde_json::from_value(applied().body).unwrap();
        assert_eq!(generation(policy.meta()), Generation(7));
        assert_eq!(generation(&ObjectMeta::default()), Generation(0));
    }
}
