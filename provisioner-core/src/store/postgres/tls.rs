//! Whose certificate is taken for the database's.

use std::{fs, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::StoreError;

/// Whom a connection trusts, as libpq's `sslmode` says.
/// <https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION>
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trust {
    /// Anybody: what is sent cannot be read by others, but who reads it is not known.
    Anybody,
    /// Whoever one of these vouches for, under any name.
    Signed(Roots),
    /// Whoever one of these vouches for, under the host's name.
    Named(Roots),
}

/// Who vouches for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Roots {
    /// Those that the system trusts.
    System,
    /// These.
    These(Vec<CertificateDer<'static>>),
}

impl Trust {
    /// Reads libpq's parameters. The file of certificates is read at once, so that a bad one is told now.
    pub(super) fn from_parameters(mode: &str, roots: Option<&str>) -> Result<(SslMode, Self), StoreError> {
        let given = roots.map(Roots::read).transpose()?;
        let or_system = |given: Option<Roots>| given.unwrap_or(Roots::System);
        Ok(match (mode, given) {
            ("disable", _) => (SslMode::Disable, Self::Anybody),
            ("prefer", _) => (SslMode::Prefer, Self::Anybody),
            ("require", None) => (SslMode::Require, Self::Anybody),
            // As libpq does, since somebody went to the trouble of saying whom to trust.
            ("require", Some(roots)) => (SslMode::Require, Self::Signed(roots)),
            ("verify-ca", given) => (SslMode::Require, Self::Signed(or_system(given))),
            ("verify-full", given) => (SslMode::Require, Self::Named(or_system(given))),
            _ => {
                return Err(StoreError::Refused(
                    "sslmode of the database's URL: expected disable, prefer, require, verify-ca or verify-full".into(),
                ));
            }
        })
    }

    /// What connects with this trust.
    pub(super) fn connector(&self) -> Result<MakeRustlsConnect, StoreError> {
        let provider = Arc::new(ring::default_provider());
        let refused = |error: &dyn std::fmt::Display| {
            StoreError::Refused(format!("TLS to the database cannot be set up: {error}; expected usable certificates"))
        };
        let verifier: Arc<dyn ServerCertVerifier> = match self {
            Self::Anybody => Arc::new(AnyName { inner: None, provider: Arc::clone(&provider) }),
            Self::Signed(roots) | Self::Named(roots) => {
                let store = Arc::new(roots.store()?);
                let inner = WebPkiServerVerifier::builder_with_provider(store, Arc::clone(&provider)).build();
                let inner = inner.map_err(|error| refused(&error))?;
                match self {
                    Self::Named(_) => inner,
                    _ => Arc::new(AnyName { inner: Some(inner), provider: Arc::clone(&provider) }),
                }
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refused(&error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(MakeRustlsConnect::new(config))
    }
}

impl Roots {
    fn read(path: &str) -> Result<Self, StoreError> {
        if path == "system" {
            return Ok(Self::System);
        }
        let unusable = || {
            StoreError::Refused(format!("sslrootcert {path:?} cannot be used: expected a file of certificates in PEM"))
        };
        let text = fs::read(path).map_err(|_| unusable())?;
        let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        certificates.ok().filter(|found| !found.is_empty()).map(Self::These).ok_or_else(unusable)
    }

    fn store(&self) -> Result<RootCertStore, StoreError> {
        let certificates = match self {
            Self::System => rustls_native_certs::load_native_certs().certs,
            Self::These(certificates) => certificates.clone(),
        };
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(certificates);
        match store.is_empty() {
            true => Err(StoreError::Refused(
                "there is nobody to trust for the database's certificate: expected sslrootcert with usable certificates"
                    .into(),
            )),
            false => Ok(store),
        }
    }
}

/// Takes a certificate under any name: one that somebody trusted vouches for, or, with nobody trusted, any.
#[derive(Debug)]
struct AnyName {
    inner: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last: whoever gets so far is vouched for.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
