//! What asks a stand-in and its sites: a client that trusts its authority, and nobody else.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, Method, Request, header},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Legacy, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::stand::Azure;

/// Asks a stand-in and its sites. A clone is the same.
#[derive(Debug, Clone)]
pub struct Client(Legacy<HttpsConnector<HttpConnector>, Body>);

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Azure {
    /// Makes a client that trusts this stand-in.
    ///
    /// # Panics
    /// When the stand-in's own certificate cannot be read.
    #[must_use]
    pub fn client(&self) -> Client {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.ca_pem().as_bytes()).expect("a certificate of our own");
        roots.add(root).expect("an authority of our own");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions that ring knows");
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build();
        Client(Legacy::builder(TokioExecutor::new()).build(connector))
    }
}

impl Client {
    /// Sends a request, with a JSON body if there is one, and signed in if there is a token.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(
        &self,
        method: Method,
        url: &str,
        token: Option<&str>,
        body: Option<String>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(url);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(body.map_or_else(Body::empty, Body::from)).map_err(|error| error.to_string())?;
        let (head, body) = self.0.request(request).await.map_err(|error| error.to_string())?.into_parts();
        let body = axum::body::to_bytes(Body::new(body), usize::MAX).await.map_err(|error| error.to_string())?;
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }
}
