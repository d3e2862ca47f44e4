//! Why a pod is not ready, told apart.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition, PodStatus};
use provisioner_core::types::Reason;

use crate::cache::Trouble;

/// Longer messages are cut: they go into a row of the store.
const MESSAGE_CHARS_MAX: usize = 500;

/// The code of a node that does not answer.
pub(crate) const NODE_LOST: &str = "node-lost";

/// What is wrong with a pod, if anything is.
pub(crate) fn of_pod(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let text = |text: Option<&str>| cut(text.unwrap_or_default());
    if is_lost(pod, status) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("its node");
        return Some(waiting(NODE_LOST, format!("{node} does not answer")));
    }
    if status.phase.as_deref() == Some("Failed") {
        let code = if status.reason.as_deref() == Some("Evicted") { "evicted" } else { "exited" };
        let message = match status.message.as_deref() {
            Some(message) => cut(message),
            None => status.container_statuses.iter().flatten().find_map(ended).unwrap_or_default(),
        };
        return Some(failure(code, message));
    }
    let mut conditions = status.conditions.iter().flatten();
    let is_unschedulable = |condition: &&PodCondition| condition.type_ == "PodScheduled" && condition.status == "False";
    if let Some(condition) = conditions.find(is_unschedulable) {
        let message = text(condition.message.as_deref());
        let code = if is_about_volumes(&message) { "volume-pending" } else { "unschedulable" };
        return Some(waiting(code, message));
    }
    status.container_statuses.iter().flatten().find_map(of_container)
}

/// Whether a scheduler's message is about volumes alone: those of a claim that is bound at once, and those that wait for a node.
/// It counts the nodes by what is in the way on each: where one of them only lacks room, room is what is missing. See
/// <https://github.com/kubernetes/kubernetes/blob/v1.31.0/pkg/scheduler/framework/plugins/volumebinding/binder.go>.
fn is_about_volumes(message: &str) -> bool {
    let counted = message.split_once("nodes are available: ").map_or(message, |(_, counted)| counted);
    let causes = counted.split(". ").next().unwrap_or_default();
    let words = ["PersistentVolumeClaim", "persistent volume", "VolumeBinding", "volume node affinity"];
    causes.split(", ").all(|cause| words.iter().any(|word| cause.contains(word)))
}

/// Whether its node does not answer: the cluster then says of its pods that they are not ready, in the place of their
/// kubelet, which said of their containers that they are; see
/// <https://kubernetes.io/docs/concepts/architecture/nodes/#node-controller>.
fn is_lost(pod: &Pod, status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    let has_gates = pod.spec.as_ref().is_some_and(|spec| spec.readiness_gates.iter().flatten().next().is_some());
    // A sidecar is an init container that goes on, and counts too.
    let is_over =
        |container: &&ContainerStatus| container.state.as_ref().is_some_and(|state| state.terminated.is_some());
    let sidecars = status.init_container_statuses.iter().flatten().filter(|container| !is_over(container));
    let mut containers = status.container_statuses.iter().flatten().chain(sidecars).peekable();
    !has_gates
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "False")
        && containers.peek().is_some()
        && containers.all(|container| container.ready)
}

/// Whether its node is about to start it, and nothing is wrong so far.
pub(crate) fn is_starting(pod: &Pod) -> bool {
    let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let is_pending = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
    has_node && is_pending && of_pod(pod).is_none()
}

fn of_container(container: &ContainerStatus) -> Option<Trouble> {
    let state = container.state.as_ref()?;
    if let Some(state) = &state.waiting {
        let why = state.reason.as_deref().unwrap_or_default();
        let message = cut(state.message.as_deref().unwrap_or_default());
        return match why {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "ImageInspectError"
            | "RegistryUnavailable" => Some(failure("image-pull", format!("{why}: {message}"))),
            "CrashLoopBackOff" => {
                let message = ended(container).unwrap_or(message);
                Some(Trouble { has_log: true, ..failure("crash-loop", message) })
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                Some(failure("container-start", format!("{why}: {message}")))
            }
            _ => None,
        };
    }
    // Between two tries of a container that ended, before Kubernetes calls it a loop.
    if state.terminated.is_some() {
        return Some(waiting("exited", ended(container).unwrap_or_default()));
    }
    let is_started = container.started == Some(true);
    if state.running.is_some() && is_started && !container.ready {
        return Some(waiting("probe-failing", "it runs, and does not answer at its health path".to_owned()));
    }
    None
}

/// How a container ended the last time.
fn ended(container: &ContainerStatus) -> Option<String> {
    let terminated = |state: &Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    let end = terminated(&container.state).or_else(|| terminated(&container.last_state))?;
    let why = end.reason.as_deref().unwrap_or("Error");
    let times = match container.restart_count {
        0 | 1 => String::new(),
        times => format!(", {times} times so far"),
    };
    Some(match why {
        "OOMKilled" => format!("killed for using more memory than its size{times}"),
        _ => format!("it ended with status {} ({why}){times}", end.exit_code),
    })
}

fn failure(code: &str, message: String) -> Trouble {
    Trouble { reason: Reason::new(code, message), is_failure: true, has_log: false }
}

fn waiting(code: &str, message: String) -> Trouble {
    Trouble { reason: Reason::new(code, message), is_failure: false, has_log: false }
}

/// A message of the cluster, without line ends and not longer than a row should hold.
pub(crate) fn cut(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(status: &str) -> Option<(String, bool)> {
        let pod: Pod =
            serde_json::from_str(&format!(r#"{{"metadata": {{"name": "a-0"}}, "status": {status}}}"#)).unwrap();
        of_pod(&pod).map(|trouble| (trouble.reason.code, trouble.is_failure))
    }

    fn container(rest: &str) -> String {
        format!(
            r#"{{"phase": "Running", "containerStatuses": [
                {{"name": "product", "image": "i", "imageID": "", "restartCount": 3, {rest}}}]}}"#
        )
    }

    #[test]
    fn each_trouble_has_its_code() {
        let waiting = |reason: &str| {
            container(&format!(r#""ready": false, "state": {{"waiting": {{"reason": "{reason}", "message": "m"}}}}"#))
        };
        let ready = container(r#""ready": true, "started": true, "state": {"running": {}}"#);
        let lost = ready.replacen('{', r#"{"conditions": [{"type": "Ready", "status": "False"}], "#, 1);
        for (status, code, is_failure) in [
            (waiting("ErrImagePull"), "image-pull", true),
            (waiting("ImagePullBackOff"), "image-pull", true),
            (waiting("CrashLoopBackOff"), "crash-loop", true),
            (waiting("CreateContainerConfigError"), "container-start", true),
            (container(r#""ready": false, "state": {"terminated": {"exitCode": 3}}"#), "exited", false),
            (container(r#""ready": false, "started": true, "state": {"running": {}}"#), "probe-failing", false),
            (r#"{"phase": "Failed", "reason": "Evicted", "message": "low on memory"}"#.into(), "evicted", true),
            (lost, "node-lost", false),
            (unschedulable("0/3 nodes are available: 3 Insufficient cpu."), "unschedulable", false),
            (unschedulable("pod has unbound immediate PersistentVolumeClaims"), "volume-pending", false),
            (unschedulable("1 node(s) didn't find available persistent volumes to bind"), "volume-pending", false),
            (unschedulable("2 node(s) had volume node affinity conflict"), "volume-pending", false),
            (
                unschedulable(
                    "0/6 nodes are available: 2 Insufficient cpu, 4 node(s) had volume node affinity conflict.",
                ),
                "unschedulable",
                false,
            ),
            (
                unschedulable(
                    "0/2 nodes are available: 2 node(s) had volume node affinity conflict. preemption: none.",
                ),
                "volume-pending",
                false,
            ),
            (
                unschedulable("running PreBind plugin VolumeBinding: binding volumes: timed out"),
                "volume-pending",
                false,
            ),
        ] {
            assert_eq!(code_of(&status), Some((code.to_owned(), is_failure)), "{status}");
        }
        for fine in [
            waiting("ContainerCreating"),
            container(r#""ready": true, "started": true, "state": {"running": {}}"#),
            container(r#""ready": false, "started": false, "state": {"running": {}}"#),
            r#"{"phase": "Pending"}"#.into(),
        ] {
            assert_eq!(code_of(&fine), None, "{fine}");
        }
    }

    fn unschedulable(message: &str) -> String {
        format!(
            r#"{{"phase": "Pending", "conditions": [
                {{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "{message}"}}]}}"#
        )
    }

    #[test]
    fn a_kill_for_memory_is_told_as_one() {
        let status = container(
            r#""ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
               "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}"#,
        );
        let pod: Pod = serde_json::from_str(&format!(r#"{{"status": {status}}}"#)).unwrap();
        let trouble = of_pod(&pod).unwrap();
        assert!(trouble.reason.message.contains("more memory"), "{:?}", trouble.reason);
        assert!(trouble.has_log);
    }
}
