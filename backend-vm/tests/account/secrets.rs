//! Secrets that a machine fetches by itself.

use std::path::Path;

use provisioner_core::types::VariableName;
use test_ec2::Options;

use crate::stage::{OWNER, Stage, by, create, done, id};

const VALUES: [(&str, &str, &str); 2] =
    [("secretsmanager", "prod/db", "canary-0123456789"), ("ssm", "/prod/key", "canary-abcdefghij")];

/// The server wants the profile of a machine to be there.
async fn make_profile(endpoint: &str) {
    const MAKE: &str = "\
import boto3, sys
iam = boto3.client('iam', endpoint_url=sys.argv[1], region_name='us-east-1', aws_access_key_id='x', aws_secret_access_key='x')
iam.create_instance_profile(InstanceProfileName='product')
";
    let made = tokio::process::Command::new(test_ec2::python()).args(["-c", MAKE, endpoint]).status().await.unwrap();
    assert!(made.success());
}

/// An instance that runs with the secrets, really.
async fn with_secrets() -> Stage {
    let stage = Stage::with(Options::default(), |config| {
        config.probes = true;
        config.instance_profile = Some("product".into());
    })
    .await;
    make_profile(stage.stand.endpoint()).await;
    let mut spec = stage.spec();
    for (n, (scheme, path, value)) in VALUES.into_iter().enumerate() {
        stage.stand.set_secret(scheme, path, value);
        let reference = format!("{scheme}:{path}").parse().unwrap();
        spec.secrets.insert(VariableName::new(format!("SECRET_{n}")).unwrap(), reference);
    }
    let product = benches::product();
    spec.workload.command.clear();
    spec.workload.boot_script = Some(format!(
        "export TENANT=test PRODUCT_VERSION=1 DATA_PATH=\"$PROVISIONER_ROOT$DATA_PATH\"\nexec '{}'\n",
        Path::new(&product).display()
    ));
    spec.workload.health_path = "/healthz".into();
    done(create(&stage.plane, 1, spec).await).await;
    stage
}

pub(crate) async fn native() {
    let stage = with_secrets().await;
    let environment = stage.stand.environment(&stage.machine(1).await.id).unwrap();
    for (n, (_, _, value)) in VALUES.into_iter().enumerate() {
        assert_eq!(environment.get(&format!("SECRET_{n}")).map(String::as_str), Some(value));
        // In no user data, tag or console log.
        assert_eq!(stage.stand.search(value).await, Vec::<String>::new());
    }
    assert!(!stage.stand.search("prod/db").await.is_empty(), "the reference is there, so a search finds what is");
    done(crate::stage::destroy(&stage.plane, 1).await).await;
    assert_eq!(stage.stand.left((OWNER, "stage")).await, Vec::<String>::new());
}

pub(crate) async fn rotated() {
    let stage = with_secrets().await;
    let machine = stage.machine(1).await.id;
    let (scheme, path, _) = VALUES[0];
    stage.stand.set_secret(scheme, path, "canary-rotated");
    done(stage.plane.restart(&id(1), by()).await.unwrap()).await;
    assert_eq!(stage.machine(1).await.id, machine, "the same machine");
    let environment = stage.stand.environment(&machine).unwrap();
    assert_eq!(environment.get("SECRET_0").map(String::as_str), Some("canary-rotated"));
}
