//! What the cluster has to be asked for to say why an instance is in trouble.

use k8s_openapi::api::core::v1::{Event, Secret};
use kube::api::ListParams;
use provisioner_core::types::{Observed, Phase, Reason};

use crate::{
    cache::{SetDigest, Space},
    client::Calls,
    reasons,
};

/// How many lines a crash loop's reason quotes.
const LOG_LINES: i64 = 5;

/// What is seen, with more about why, where that has to be asked for: only of what is in trouble.
pub(crate) async fn explained(calls: &Calls<'_>, namespace: &str, space: &Space, seen: Observed) -> Observed {
    let Observed::Present(mut present) = seen else { return seen };
    let Some(set) = space.set_of(present.incarnation) else { return present.into() };
    let mut pods = space.pods_of(present.incarnation).peekable();
    let wants_pod = set.is_seen && set.replicas > 0 && present.phase == Phase::Provisioning;
    if wants_pod && pods.peek().is_none() {
        if let Some(reason) = why_no_pod(calls, namespace, &set.name).await {
            present.reason = Some(reason);
        }
        return present.into();
    }
    let looping = pods.find(|pod| pod.trouble.as_ref().is_some_and(|trouble| trouble.has_log));
    if let (Some(pod), Some(reason)) = (looping, &mut present.reason)
        && let Ok(lines) = calls.last_lines(namespace, &pod.name, LOG_LINES).await
    {
        let lines = masked(calls, namespace, set, lines).await;
        reason.message = reasons::cut(&format!("{}; its last words: {lines}", reason.message));
    }
    present.into()
}

/// What the cluster's events say of a stateful set without a pod.
async fn why_no_pod(calls: &Calls<'_>, namespace: &str, set: &str) -> Option<Reason> {
    let about = format!("involvedObject.kind=StatefulSet,involvedObject.name={set},type=Warning");
    let events = calls.list::<Event>(namespace, &ListParams::default().fields(&about)).await.ok()?;
    let last = events.into_iter().max_by_key(|event| event.last_timestamp.clone().map(|at| at.0))?;
    let message = reasons::cut(last.message.as_deref()?);
    let code = if message.contains("exceeded quota") { "quota" } else { "not-made" };
    Some(Reason::new(code, message))
}

/// A log without the values of the instance's environment, which may be secret.
async fn masked(calls: &Calls<'_>, namespace: &str, set: &SetDigest, lines: String) -> String {
    let name = format!("{}-g{}", set.name, set.generation.0);
    let Ok(Some(secret)) = calls.get::<Secret>(Some(namespace), &name).await else { return "(withheld)".into() };
    let values = secret.data.into_iter().flatten().filter_map(|(_, value)| String::from_utf8(value.0).ok());
    // Shorter ones are words like 1 or true.
    let mut values: Vec<_> = values.filter(|value| value.len() > 3).collect();
    values.sort_unstable_by_key(|value| std::cmp::Reverse(value.len()));
    values.iter().fold(lines, |lines, value| lines.replace(value, "[REDACTED]"))
}
