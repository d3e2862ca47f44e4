//! Whose certificate is taken, by a server that has one.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use provisioner_core::{
    error::Chain,
    store::{PostgresConfig, PostgresStore, StoreError},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use test_peers::postgres::{Durability, Server};
use tokio_postgres::NoTls;

use crate::{fixture::control_plane, postgres::TestSchema, tests};

tests! { TESTS:
    a_certificate_is_taken_as_the_url_says,
}

/// Somebody who vouches for others.
fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(rcgen::DnType::CommonName, name);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap()
}

/// Opens a store, and tells how many of its connections are in the clear.
async fn opened(server: &Server, host: &str, parameters: &str) -> Result<i64, StoreError> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = NUMBER.fetch_add(1, Ordering::Relaxed);
    let url = format!(
        "postgres://postgres@{host}:{}/provisioner?application_name=as_{name}&schema=as_{name}&{parameters}",
        server.port()
    );
    let store = PostgresStore::open(PostgresConfig::from_url(&url)?, control_plane()).await?;
    let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
    tokio::spawn(connection);
    let query = "SELECT count(*), count(*) FILTER (WHERE NOT ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
         WHERE application_name = $1";
    let row = client.query_one(query, &[&format!("as_{name}")]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 1, "it reads and listens");
    drop(store);
    Ok(row.get(1))
}

async fn a_certificate_is_taken_as_the_url_says(_: &TestSchema) {
    let server = tokio::task::spawn_blocking(|| Server::create(Durability::Fast)).await.unwrap().unwrap();
    assert!(opened(&server, "127.0.0.1", "sslmode=prefer").await.unwrap() > 0, "there is no TLS to be had yet");
    let refused = opened(&server, "127.0.0.1", "sslmode=require").await.unwrap_err();
    assert!(matches!(refused, StoreError::Failed(_)), "{refused:?}");

    let (ours, another) = (authority("ours"), authority("another"));
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &ours).unwrap();
    server.use_certificate(&certificate.pem(), &key.serialize_pem()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let file = folder.path().join(name);
        fs::write(&file, content).unwrap();
        file
    };
    let (ours, another) = (file("ours.pem", &ours.pem()), file("another.pem", &another.pem()));
    let with = |mode: &str, roots: &Path| format!("sslmode={mode}&sslrootcert={}", roots.display());

    let taken = [
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", with("require", &ours)),
        ("127.0.0.1", with("verify-ca", &ours)),
        ("localhost", with("verify-full", &ours)),
    ];
    for (host, parameters) in taken {
        let in_the_clear = opened(&server, host, &parameters).await;
        assert!(matches!(in_the_clear, Ok(0)), "{host} {parameters}: {in_the_clear:?}");
    }
    let refused = [
        ("127.0.0.1", with("require", &another)),
        ("127.0.0.1", with("verify-ca", &another)),
        ("localhost", with("verify-full", &another)),
        // Under another name than the host's.
        ("127.0.0.1", with("verify-full", &ours)),
        // The system trusts nobody of this test.
        ("localhost", "sslmode=verify-full".to_owned()),
    ];
    for (host, parameters) in refused {
        let refused = opened(&server, host, &parameters).await.map_err(|error| Chain(&error).to_string());
        let of_trust =
            refused.as_ref().is_err_and(|why| ["certificate", "trust"].iter().any(|word| why.contains(word)));
        assert!(of_trust, "{host} {parameters}: {refused:?}");
    }
    assert!(opened(&server, "127.0.0.1", "sslmode=disable").await.unwrap() > 0, "nobody wanted it");
}
