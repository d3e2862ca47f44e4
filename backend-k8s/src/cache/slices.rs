//! Slices of a service's endpoints, as far as they tell which pods it leads to.
//!
//! A type of our own, as the generated ones know one version only: `v1` is of Kubernetes 1.21 and later, `v1beta1` ended with
//! 1.25. What is read here is the same in both; see
//! <https://kubernetes.io/docs/reference/using-api/deprecation-guide/#endpointslice-v125>.

use std::{borrow::Cow, fmt::Debug, marker::PhantomData};

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::Deserialize;

/// A version of the API.
pub(super) trait Version: Debug + Clone + Send + Sync + 'static {
    const NAME: &'static str;
}

#[derive(Debug, Clone)]
pub(super) struct V1;

#[derive(Debug, Clone)]
pub(super) struct V1Beta1;

impl Version for V1 {
    const NAME: &'static str = "v1";
}

impl Version for V1Beta1 {
    const NAME: &'static str = "v1beta1";
}

/// Some of the endpoints of a service.
#[derive(Debug, Clone, Deserialize)]
#[serde(bound = "")]
pub(super) struct Slice<V> {
    metadata: ObjectMeta,
    endpoints: Option<Vec<Endpoint>>,
    #[serde(skip)]
    version: PhantomData<V>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    conditions: Option<Conditions>,
    target_ref: Option<Reference>,
}

#[derive(Debug, Clone, Deserialize)]
struct Conditions {
    ready: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
struct Reference {
    uid: Option<String>,
}

impl<V> Slice<V> {
    /// The uids of the pods that are led to.
    pub(super) fn ready(&self) -> impl Iterator<Item = &str> {
        // Nothing said means ready.
        let is_ready =
            |endpoint: &&Endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        self.endpoints
            .iter()
            .flatten()
            .filter(is_ready)
            .filter_map(|endpoint| endpoint.target_ref.as_ref()?.uid.as_deref())
    }
}

impl<V: Version> Resource for Slice<V> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "EndpointSlice".into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        "discovery.k8s.io".into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        V::NAME.into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        "endpointslices".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(endpoints: &str) -> Vec<String> {
        let text = format!(
            r#"{{"apiVersion": "discovery.k8s.io/v1beta1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {{"name": "a-x"}}, "endpoints": {endpoints}, "ports": null}}"#
        );
        let slice: Slice<V1Beta1> = serde_json::from_str(&text).unwrap();
        slice.ready().map(str::to_owned).collect()
    }

    #[test]
    fn only_pods_that_are_ready_are_led_to() {
        assert!(ready("null").is_empty());
        assert!(ready(r#"[{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}]"#).is_empty());
        let pod = |uid: &str, conditions: &str| {
            format!(r#"{{"addresses": ["10.0.0.1"], {conditions} "targetRef": {{"kind": "Pod", "uid": "{uid}"}}}}"#)
        };
        let yes = pod("yes", r#""conditions": {"ready": true, "serving": true},"#);
        let no = pod("no", r#""conditions": {"ready": false},"#);
        let silent = pod("silent", r#""conditions": {},"#);
        assert_eq!(ready(&format!("[{yes}, {no}, {silent}, {}]", pod("bare", ""))), ["yes", "silent", "bare"]);
    }
}
