//! Durable data, lists, secrets, identity.

use std::{fs, sync::Arc};

use async_trait::async_trait;
use provisioner_core::{
    Chain, Error, ErrorKind, OpContext, Provisioner,
    secret::{SecretReference, SecretResolver, SecretString},
    types::{DataDisposition, DataSource, Observed, OwnedKind, Phase, Target, TenantId},
};

use crate::support::{Site, change, get};

async fn destroyed(site: &Site, target: &Target, data: DataDisposition) {
    site.backend.destroy(&site.cx, target, data).await.unwrap();
    site.until_absent(target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_data_is_listed_and_taken_up_by_a_later_incarnation() {
    let site = Site::new();
    let first = site.target(&[]);
    site.running(&first).await;
    let second = Target {
        incarnation: site.random.incarnation(2),
        data: DataSource::Existing(first.data.id().clone()),
        ..first.clone()
    };
    let in_use = site.backend.create(&site.cx, &second).await.unwrap_err();
    assert_eq!(in_use.kind(), ErrorKind::Conflict);
    assert_eq!(site.backend.delete_data(&site.cx, first.data.id()).await.unwrap_err().kind(), ErrorKind::Conflict);

    destroyed(&site, &first, DataDisposition::Retain).await;
    let listed = site.list().await;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].kind, listed[0].data.as_ref()), (OwnedKind::Data, Some(first.data.id())));
    assert_eq!((&listed[0].id, listed[0].incarnation), (&first.id, first.incarnation));

    let stranger = Target { tenant: TenantId::new("somebody else").unwrap(), ..second.clone() };
    assert_eq!(site.backend.create(&site.cx, &stranger).await.unwrap_err().kind(), ErrorKind::Conflict);
    let seen = site.running(&second).await;
    assert_eq!(get(&seen, "/starts").lines().count(), 2);
    assert_eq!(site.list().await.len(), 1, "the instance, no data");
    // A late word about the old incarnation takes nothing from the new one.
    destroyed(&site, &first, DataDisposition::Delete).await;
    assert_eq!(site.starts(&second), 2);

    destroyed(&site, &second, DataDisposition::Retain).await;
    site.backend.delete_data(&site.cx, first.data.id()).await.unwrap();
    site.backend.delete_data(&site.cx, first.data.id()).await.unwrap();
    assert!(site.list().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_data_is_never_an_empty_start() {
    let site = Site::new();
    let target = Target { data: DataSource::Existing(site.random.data_id()), ..site.target(&[]) };
    let error = site.backend.create(&site.cx, &target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataMissing);
    assert_eq!(site.observe(&target).await, Observed::Absent);
    assert!(site.list().await.is_empty());

    let target = site.target(&[]);
    site.running(&target).await;
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    fs::remove_dir_all(site.files(&target).parent().unwrap()).unwrap();
    for _ in 0..2 {
        assert_eq!(site.backend.resume(&site.cx, &target).await.unwrap_err().kind(), ErrorKind::DataMissing);
        assert_eq!(site.backend.create(&site.cx, &target).await.unwrap_err().kind(), ErrorKind::DataMissing);
    }
    assert!(!site.files(&target).exists() && site.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_control_planes_on_one_root_do_not_see_each_other() {
    let site = Site::new();
    let target = site.target(&[]);
    let ours = site.running(&target).await;
    let other = OpContext::new("other".parse().unwrap());
    assert_eq!(site.backend.observe(&other, &target).await.unwrap(), Observed::Absent);
    assert_eq!(site.backend.destroy(&other, &target, DataDisposition::Delete).await.unwrap(), Observed::Absent);
    let theirs =
        provisioner_core::ProvisionerExt::create_and_wait(&site.backend, &other, &target, crate::support::SOON).await;
    assert_ne!(theirs.unwrap().present().unwrap().endpoint, ours.endpoint);
    assert_eq!((site.list().await.len(), site.processes().len()), (1, 2));
    site.backend.destroy(&other, &target, DataDisposition::Delete).await.unwrap();
    let still = site.until_phase(&target, Phase::Running).await;
    assert_eq!((still.endpoint, still.incarnation), (ours.endpoint, ours.incarnation));
    crate::support::eventually(|| site.processes().len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_listed_and_half_made_ones_too() {
    let site = Site::new();
    let half_made = site.target(&[]);
    fs::create_dir_all(site.instance_folder(&half_made)).unwrap();
    for i in 0..200 {
        let target = site.target(&[]);
        fs::create_dir_all(site.root().join(format!("plane/instances/other-{i}.{}", target.incarnation))).unwrap();
    }
    fs::create_dir_all(site.root().join("plane/instances/lost+found")).unwrap();
    let listed = site.list().await;
    assert_eq!(listed.len(), 201);
    let one = listed.iter().find(|owned| owned.id == half_made.id).unwrap();
    assert_eq!((one.incarnation, one.observed.phase()), (half_made.incarnation, Some(Phase::Failed)));
    destroyed(&site, &half_made, DataDisposition::Delete).await;
    // And one that is made after all.
    let mut other = site.target(&[]);
    other.id = listed[0].id.clone();
    other.incarnation = listed[0].incarnation;
    if other.id == half_made.id {
        (other.id, other.incarnation) = (listed[1].id.clone(), listed[1].incarnation);
    }
    site.running(&other).await;
}

#[derive(Debug)]
struct Vault(Result<&'static str, ErrorKind>);

#[async_trait]
impl SecretResolver for Vault {
    async fn resolve(&self, _: &SecretReference) -> provisioner_core::Result<SecretString> {
        self.0.map(SecretString::from).map_err(|kind| Error::new(kind, "resolve secret"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_reaches_the_process_and_nothing_else() {
    const CANARY: &str = "canary-3f9a71c2";
    let site = Site::new();
    let cx = site.cx.clone().with_secrets(Arc::new(Vault(Ok(CANARY))));
    let mut target = site.target(&[("PLAIN", "canary-plain")]);
    change(&mut target, |spec| {
        spec.secrets.insert("TOKEN".parse().unwrap(), "vault:token".parse().unwrap());
    });
    let vaults_fault = site.cx.clone().with_secrets(Arc::new(Vault(Err(ErrorKind::Unavailable))));
    let error = site.backend.create(&vaults_fault, &target).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Unavailable, Some("secrets.TOKEN")));
    assert_eq!(site.observe(&target).await, Observed::Absent);

    site.backend.create(&cx, &target).await.unwrap();
    let seen = site.until_phase(&target, Phase::Running).await;
    assert!(get(&seen, "/environment").contains(&format!("TOKEN={CANARY}\n")));
    // A vault that is down does no harm to what runs.
    site.backend.create(&vaults_fault, &target).await.unwrap();
    let mut texts = vec![format!("{:?} {} {seen:?}", site.backend, site.backend)];
    // The product prints it and dies; what is quoted of its log has it struck out.
    target.generation = target.generation.next();
    change(&mut target, |spec| {
        spec.workload.command = ["/bin/sh", "-c", "env >&2; exit 1"].map(Into::into).into();
    });
    site.backend.create(&cx, &target).await.unwrap();
    let failed = site.until_phase(&target, Phase::Failed).await;
    assert!(failed.reason.as_ref().unwrap().message.contains("TOKEN=[...]"), "{failed:?}");
    texts.push(format!("{failed:?}"));
    change(&mut target, |spec| spec.workload.command = vec!["/no/such/program".into()]);
    target.generation = target.generation.next();
    let error = site.backend.create(&cx, &target).await.unwrap_err();
    texts.push(format!("{error:?} {}", Chain(&error)));
    for text in texts {
        assert!(!text.contains("canary"), "{text}");
    }
    for (path, content) in site.all_files() {
        let told = content.windows(7).any(|window| window == b"canary-");
        assert!(!told || path.ends_with("log"), "{}", path.display());
    }
}

#[tokio::test]
async fn the_identity_is_the_machine_and_the_root() {
    let mut site = Site::new();
    let identity = site.backend.identity(&site.cx).await.unwrap();
    site.restart();
    assert_eq!(site.backend.identity(&site.cx).await.unwrap(), identity);
    assert!(!identity.contains(site.root().to_str().unwrap()), "a folder that was moved is the same root");
    // A disk that is not mounted is another place, not an empty one.
    fs::remove_file(site.root().join(".identity")).unwrap();
    assert_ne!(site.backend.identity(&site.cx).await.unwrap(), identity);
}
