//! A pod that connects with its service account, which has the rights of the manifest.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, LogParams, PostParams},
};
use serde_json::json;
use test_peers::kubernetes::Image;

use crate::cluster::{ACCOUNTS, Cluster, Rights};

const IMAGE: &str = "localhost/k8s-test-identity:1";
/// Longer than a busy node takes to start a container.
const WITHIN: Duration = Duration::from_secs(120);

/// Brings what the pod runs onto the cluster.
pub(crate) fn prepared(cluster: &Cluster) -> Result<(), String> {
    cluster.peer.load(&Image::new(IMAGE, env!("CARGO_BIN_EXE_k8s-test-identity")))
}

pub(crate) async fn connects(cluster: Cluster) -> Result<(), String> {
    let name = format!("connect-{:016x}", provisioner_contract::random() as u64);
    let pods = Api::<Pod>::namespaced(cluster.admin.clone(), ACCOUNTS);
    let connected = async {
        cluster.account(&name, Rights::Cluster).await.map_err(text)?;
        let said = run(&pods, &name).await?;
        let expected = super::expected(&cluster).await?;
        if said.trim() == expected { Ok(()) } else { Err(format!("the pod says {said:?}, expected {expected:?}")) }
    };
    let connected = connected.await;
    // Either of them may not be there.
    let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
    cluster.forget(&name).await;
    connected
}

/// Runs it to its end: what it said.
async fn run(pods: &Api<Pod>, name: &str) -> Result<String, String> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "serviceAccountName": name,
            "restartPolicy": "Never",
            "containers": [{"name": "identity", "image": IMAGE, "imagePullPolicy": "Never"}],
        },
    }))
    .expect("a pod");
    let deadline = Instant::now() + WITHIN;
    loop {
        match pods.create(&PostParams::default(), &pod).await {
            Ok(_) => break,
            // A cluster before 1.24 makes an account's token a moment after the account, and says when to come back.
            Err(kube::Error::Api(status)) if status.reason == "ServerTimeout" && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(text(error)),
        }
    }
    loop {
        let status = pods.get_status(name).await.map_err(text)?.status.unwrap_or_default();
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return pods.logs(name, &LogParams::default()).await.map_err(text);
        }
        if Instant::now() > deadline {
            return Err(format!("the pod did not end within {WITHIN:?}: {status:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn text(error: kube::Error) -> String {
    error.to_string()
}
