//! What the cluster has to be asked for to say why an instance is in trouble.

use std::{cmp::Reverse, time::Duration};

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::StatefulSet,
        core::v1::{Event, Secret},
    },
    jiff::Timestamp,
};
use kube::{ResourceExt, api::ListParams};
use provisioner_core::types::{Observed, Phase, Present, Reason};

use crate::{
    cache::{PodDigest, SetDigest, Space, written_at},
    client::Calls,
    home::Home,
    names::{self, FIELD_MANAGER},
    reasons,
};

/// How many lines a crash loop's reason quotes.
const LOG_LINES: i64 = 5;
/// A pod that is younger has no need to say why it does not run yet.
const STARTS_WITHIN_SECONDS: i64 = 10;
/// A pod that was refused longer ago is not tried again soon by the controller of its stateful set.
const TRIED_WITHIN_SECONDS: i64 = 5;
/// The same for one that we had tried: what lasts is not tried so often that nobody waits for its end any more.
const TRIED_AGAIN_WITHIN_SECONDS: i64 = 60;
/// When a set without a pod is looked at again: then a refusal lasts.
const LOOK_AGAIN: Duration = Duration::from_secs(TRIED_WITHIN_SECONDS as u64 + 1);
/// The code of a pod that is more than a quota allows.
const QUOTA: &str = "quota";
/// Shorter values are words like 1 or true.
const VALUE_MIN: usize = 4;

/// What is seen, with more about why, where that has to be asked for: only of what is in trouble.
pub(crate) async fn explained(calls: &Calls<'_>, home: &Home, space: &Space, seen: Observed) -> Observed {
    let Observed::Present(mut present) = seen else { return seen };
    let Some(set) = space.set_of(present.incarnation) else { return present.into() };
    let pods: Vec<_> = space.pods_of(present.incarnation).collect();
    let wants_pod = set.replicas > 0 && present.phase == Phase::Provisioning && present.reason.is_none();
    if wants_pod && pods.is_empty() {
        return without_pod(calls, home, set, present).await.into();
    }
    if wants_pod && set.is_seen() {
        let why = match pods.iter().find(|pod| !pod.is_ending) {
            Some(pod) if waits_for_volume(space, pod) => why_no_volume(calls, home).await,
            // Its node does not start it, or it runs and is not ready for the first time yet.
            Some(pod) if is_old(pod) && pod.trouble.is_none() => why_no_start(calls, home, &pod.name).await,
            _ => None,
        };
        present.reason = why;
        return present.into();
    }
    let looping = pods.iter().find(|pod| pod.trouble.as_ref().is_some_and(|trouble| trouble.has_log));
    if let (Some(pod), Some(reason)) = (looping, &mut present.reason)
        && let Ok(lines) = calls.last_lines(home.namespace(), &pod.name, LOG_LINES).await
    {
        let lines = masked(calls, home, set, lines).await;
        reason.message = reasons::cut(&format!("{}; its last words: {lines}", reason.message));
    }
    present.into()
}

fn is_old(pod: &PodDigest) -> bool {
    is_older(pod.made_at, STARTS_WITHIN_SECONDS)
}

fn is_older(at: i64, seconds: i64) -> bool {
    Timestamp::now().as_second() - at > seconds
}

/// Where volumes are made for the node that a pod is to have, the pod has none until then, and nothing says that it waits.
fn waits_for_volume(space: &Space, pod: &PodDigest) -> bool {
    pod.trouble.is_none() && is_old(pod) && space.claim.as_ref().is_some_and(|claim| !claim.is_bound)
}

/// What the cluster's events say of a claim that has no volume.
async fn why_no_volume(calls: &Calls<'_>, home: &Home) -> Option<Reason> {
    let last = last_warning(calls, home, "PersistentVolumeClaim", home.claim()).await;
    let message = last.and_then(|event| event.message);
    Some(Reason::new("volume-pending", reasons::cut(message.as_deref().unwrap_or("its claim has no volume yet"))))
}

/// What is seen of a stateful set without a pod. No watch tells that one was refused.
async fn without_pod(calls: &Calls<'_>, home: &Home, set: &SetDigest, mut present: Present) -> Present {
    // Where its controller fails to make a pod it may not say that it has seen the set.
    if set.unseen_since.is_none_or(|since| is_older(since, TRIED_WITHIN_SECONDS))
        && let Some(refusal) = refusal(calls, home, &set.name).await
    {
        present.reason = Some(refusal.reason);
        if refusal.is_failure {
            present.phase = Phase::Failed;
            return present;
        }
    }
    present.look_again(LOOK_AGAIN)
}

/// That the pod of a stateful set was not allowed.
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// Whether its controller leaves it at that for now: its own next try may be a quarter of an hour away.
    pub(crate) is_failure: bool,
}

impl Refusal {
    pub(crate) fn is_by_quota(&self) -> bool {
        self.reason.code == QUOTA
    }
}

/// What the cluster's events say of a stateful set without a pod, if that is so still.
pub(crate) async fn refusal(calls: &Calls<'_>, home: &Home, name: &str) -> Option<Refusal> {
    let last = last_warning(calls, home, "StatefulSet", name).await?;
    let refused_at = told_at(&last).filter(|_| last.reason.as_deref() == Some("FailedCreate"))?.as_second();
    let set = calls.get::<StatefulSet>(Some(home.namespace()), name).await.ok()??;
    // Its controller wrote what it has done since. Both are told in whole seconds, which are not rounded alike.
    if written_at(&set.metadata, |by| by != FIELD_MANAGER).is_some_and(|at| refused_at + 1 < at.as_second()) {
        return None;
    }
    let message = reasons::cut(last.message.as_deref()?);
    let code = if message.contains("exceeded quota") { QUOTA } else { "not-made" };
    let written_at = written_at(&set.metadata, |by| by == FIELD_MANAGER).map_or(0, Timestamp::as_second);
    let tried_at = set.annotations().get(names::TRIED).and_then(|at| at.parse().ok()).unwrap_or(0);
    let is_failure =
        is_older(refused_at.max(written_at), TRIED_WITHIN_SECONDS) && is_older(tried_at, TRIED_AGAIN_WITHIN_SECONDS);
    Some(Refusal { reason: Reason::new(code, message), is_failure })
}

/// What the cluster's events say of a pod that has a node and does not get ready there.
async fn why_no_start(calls: &Calls<'_>, home: &Home, pod: &str) -> Option<Reason> {
    let last = last_warning(calls, home, "Pod", pod).await?;
    let code = match last.reason.as_deref()? {
        "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => "volume-pending",
        "FailedCreatePodSandBox" | "FailedCreatePodContainer" => "container-start",
        "Unhealthy" => "probe-failing",
        _ => return None,
    };
    Some(Reason::new(code, reasons::cut(last.message.as_deref()?)))
}

async fn last_warning(calls: &Calls<'_>, home: &Home, kind: &str, name: &str) -> Option<Event> {
    let about = format!("involvedObject.kind={kind},involvedObject.name={name},type=Warning");
    let events = calls.list::<Event>(home.namespace(), &ListParams::default().fields(&about)).await.ok()?;
    events.into_iter().max_by_key(told_at)
}

/// When something was told of last. Who reports an event says that in one of three ways.
fn told_at(event: &Event) -> Option<Timestamp> {
    let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|at| at.0);
    let last = event.last_timestamp.as_ref().map(|at| at.0);
    series.max(last).max(event.event_time.as_ref().map(|at| at.0))
}

/// A log without the values of the instance's environment, which may be secret.
async fn masked(calls: &Calls<'_>, home: &Home, set: &SetDigest, lines: String) -> String {
    let name = format!("{}-g{}", set.name, set.generation.0);
    let Ok(Some(secret)) = calls.get::<Secret>(Some(home.namespace()), &name).await else { return "(withheld)".into() };
    let values: Vec<_> = secret.data.into_iter().flatten().map(|(_, value)| value).collect();
    struck(lines, &values)
}

/// A text without these values: as they are, line by line, in base64, and where the text begins or ends within one.
fn struck(text: String, values: &[ByteString]) -> String {
    let mut secrets = Vec::new();
    for value in values {
        if let Ok(plain) = std::str::from_utf8(&value.0) {
            secrets.push(plain.to_owned());
            secrets.extend(plain.lines().map(|line| line.trim().to_owned()));
        }
        // As Kubernetes writes bytes.
        secrets.extend(serde_json::to_value(value).ok().and_then(|base64| Some(base64.as_str()?.to_owned())));
    }
    secrets.retain(|secret| secret.len() >= VALUE_MIN);
    secrets.sort_unstable_by_key(|secret| Reverse(secret.len()));
    let struck = secrets.iter().fold(text, |text, secret| text.replace(secret, REDACTED));
    without_part(&struck, &secrets)
}

const REDACTED: &str = "[REDACTED]";

/// A text that neither begins with the end of a secret nor ends with the beginning of one.
fn without_part(text: &str, secrets: &[String]) -> String {
    let parts = |secret: &str| secret.char_indices().map(|(at, _)| at).collect::<Vec<_>>();
    let ends = secrets.iter().flat_map(|secret| parts(secret).into_iter().map(|at| &secret[at..]));
    let begun = ends.filter(|end| end.len() >= VALUE_MIN && text.starts_with(end)).map(str::len).max();
    let rest = &text[begun.unwrap_or(0)..];
    let beginnings = secrets.iter().flat_map(|secret| parts(secret).into_iter().map(|at| &secret[..at]));
    let cut = beginnings.filter(|begin| begin.len() >= VALUE_MIN && rest.ends_with(begin)).map(str::len).max();
    let kept = &rest[..rest.len() - cut.unwrap_or(0)];
    let mark = |part: Option<usize>| part.map_or("", |_| REDACTED);
    format!("{}{kept}{}", mark(begun), mark(cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_struck(text: &str, expected: &str) {
        let values = ["hunter2hunter2", "-----BEGIN-----\n  abcdefgh\n-----END-----\n", "yes"];
        let values: Vec<_> = values.iter().map(|value| ByteString(value.as_bytes().to_vec())).collect();
        assert_eq!(struck(text.to_owned(), &values), expected);
    }

    #[test]
    fn values_are_struck_out_of_last_words_in_every_form() {
        assert_struck("nothing here, yes", "nothing here, yes");
        assert_struck("the key hunter2hunter2 is wrong", "the key [REDACTED] is wrong");
        assert_struck("read abcdefgh\nand more", "read [REDACTED]\nand more");
        assert_struck("encoded aHVudGVyMmh1bnRlcjI=", "encoded [REDACTED]");
    }

    #[test]
    fn a_value_that_is_cut_by_the_end_of_what_was_read_is_struck_out_too() {
        assert_struck("hunter2 was the key", "[REDACTED] was the key");
        assert_struck("the key is hunter2hun", "the key is [REDACTED]");
        assert_struck("the hunt", "the [REDACTED]");
        assert_struck("a hun", "a hun");
    }
}
