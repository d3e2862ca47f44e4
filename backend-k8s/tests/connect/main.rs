//! The ways to a cluster: the contexts of a kubeconfig, and the service account of a pod.
#![allow(missing_docs)]

// Everything in it is used by the contract, and a part of it here.
#[allow(dead_code)]
#[path = "../contract/cluster.rs"]
mod cluster;
mod pod;

use std::{future::Future, io::Write, time::Duration};

use backend_k8s::{Connection, KubernetesConfig};
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, ResourceExt};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use provisioner_core::{Chain, Effect, ErrorKind, OpContext, Provisioner, Result, types::ControlPlaneId};
use tempfile::NamedTempFile;
use test_peers::kubernetes::is_required;
use tokio::runtime::Runtime;

use crate::cluster::Cluster;

fn main() {
    let trials = vec![
        Trial::test("a_context_that_is_not_there_is_named_at_the_first_call", || Runtime::new()?.block_on(missing())),
        Trial::test("a_file_that_is_not_there_is_named_at_the_first_call", || Runtime::new()?.block_on(no_file())),
        trial("the_context_that_is_named_is_taken", contexts),
        trial_with("a_pod_connects_with_its_service_account", pod::prepared, pod::connects),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A test that needs a cluster.
fn trial<F>(name: &'static str, test: fn(Cluster) -> F) -> Trial
where
    F: Future<Output = Result<(), String>> + 'static,
{
    trial_with(name, |_| Ok(()), test)
}

/// A test that needs a cluster with something on it.
fn trial_with<F>(name: &'static str, prepare: fn(&Cluster) -> Result<(), String>, test: fn(Cluster) -> F) -> Trial
where
    F: Future<Output = Result<(), String>> + 'static,
{
    Trial::ignorable_test(name, move || {
        Runtime::new()?.block_on(async {
            match Cluster::found().await.and_then(|cluster| prepare(&cluster).map(|()| cluster)) {
                Ok(cluster) => test(cluster).await.map(|()| Completion::Completed).map_err(Failed::from),
                Err(reason) if is_required() => Err(format!("kubernetes is required: {reason}").into()),
                Err(reason) => Ok(Completion::ignored_with(reason)),
            }
        })
    })
}

/// Asks by this connection which cluster it leads to.
async fn identity(connection: Connection) -> Result<String> {
    let config = KubernetesConfig { connection, ..KubernetesConfig::default() };
    let owner = ControlPlaneId::new("connect").expect("a label");
    config.build()?.identity(&OpContext::new(owner).with_timeout(Duration::from_secs(20))).await
}

/// What `identity` has to be on this cluster.
async fn expected(cluster: &Cluster) -> Result<String, String> {
    let system = Api::<Namespace>::all(cluster.admin.clone()).get("kube-system").await;
    let uid = system.map_err(|error| error.to_string())?.uid();
    Ok(format!("kubernetes {}", uid.ok_or("kube-system has no uid")?))
}

/// A kubeconfig with two contexts, `nowhere` being the current one. `there` is how a cluster is reached.
fn kubeconfig(there: &str) -> std::io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    write!(
        file,
        "{{\"apiVersion\": \"v1\", \"kind\": \"Config\", \"current-context\": \"nowhere\",\n\
         \"contexts\": [{{\"name\": \"nowhere\", \"context\": {{\"cluster\": \"nowhere\", \"user\": \"nobody\"}}}},\n\
         {{\"name\": \"there\", \"context\": {{\"cluster\": \"there\", \"user\": \"somebody\"}}}}],\n\
         \"clusters\": [{{\"name\": \"nowhere\", \"cluster\": {{\"server\": \"http://127.0.0.1:1\"}}}}{there}}}\n",
    )?;
    Ok(file)
}

/// Nothing else than the two contexts is in it.
fn kubeconfig_alone() -> std::io::Result<NamedTempFile> {
    kubeconfig("], \"users\": [{\"name\": \"nobody\", \"user\": {}}]")
}

async fn missing() -> Result<(), Failed> {
    let file = kubeconfig_alone()?;
    let connection = Connection::Kubeconfig { path: Some(file.path().into()), context: Some("staging".into()) };
    let error = identity(connection).await.expect_err("there is no such context");
    let told = Chain(&error).to_string();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{told}");
    assert!(told.contains("staging") && told.contains("context"), "{told}");
    Ok(())
}

async fn no_file() -> Result<(), Failed> {
    let connection = Connection::Kubeconfig { path: Some("/no/such/kubeconfig".into()), context: None };
    let error = identity(connection).await.expect_err("there is no such file");
    let told = Chain(&error).to_string();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{told}");
    assert!(told.contains("/no/such/kubeconfig"), "{told}");
    Ok(())
}

async fn contexts(cluster: Cluster) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    // The cluster's own kubeconfig says how it is reached, and as whom.
    let own = kube::config::Kubeconfig::read_from(cluster.peer.kubeconfig()).map_err(|error| text(&error))?;
    let current = own.current_context.as_deref().unwrap_or_default();
    let context = own.contexts.iter().find(|context| context.name == current).and_then(|it| it.context.as_ref());
    let context = context.ok_or("its kubeconfig has no current context")?;
    let place = own.clusters.iter().find(|place| place.name == context.cluster).and_then(|it| it.cluster.as_ref());
    let user = own.auth_infos.iter().find(|user| Some(&user.name) == context.user.as_ref());
    let user = user.and_then(|it| it.auth_info.as_ref());
    let place = serde_json::to_string(&place).map_err(|error| text(&error))?;
    let user = serde_json::to_string(&user).map_err(|error| text(&error))?;
    let file = kubeconfig(&format!(
        ", {{\"name\": \"there\", \"cluster\": {place}}}],\n\
         \"users\": [{{\"name\": \"nobody\", \"user\": {{}}}}, {{\"name\": \"somebody\", \"user\": {user}}}]"
    ));
    let file = file.map_err(|error| text(&error))?;
    let by = |context: Option<&str>| Connection::Kubeconfig {
        path: Some(file.path().into()),
        context: context.map(str::to_owned),
    };
    let there = identity(by(Some("there"))).await.map_err(|error| Chain(&error).to_string())?;
    let expected = expected(&cluster).await?;
    if there != expected {
        return Err(format!("the context leads to {there:?}, expected {expected:?}"));
    }
    match identity(by(None)).await {
        Err(error) if error.kind() == ErrorKind::Unavailable && error.effect() == Effect::None => Ok(()),
        other => Err(format!("the current context leads nowhere, and was told as {other:?}")),
    }
}
