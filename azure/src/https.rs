//! The HTTP client that requests are sent with, where the caller has none of its own.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use azure_core::{
    Bytes,
    error::{Error as AzureError, ErrorKind as AzureErrorKind},
    http::{
        AsyncRawResponse, HttpClient, Request, Transport,
        headers::{HeaderName, HeaderValue, Headers},
        request::Body,
    },
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use provisioner_core::{Error, ErrorKind, Result};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A page of a thousand sites is about four megabytes.
const BODY_MAX: usize = 64 << 20;

type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// An HTTP client that speaks TLS. A clone is the same, and shares its connections.
#[derive(Clone)]
pub struct Https(Http);

impl fmt::Debug for Https {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Https")
    }
}

impl Https {
    /// One that trusts whom the system trusts.
    ///
    /// # Errors
    /// When the system's roots of trust cannot be read.
    pub fn new() -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider);
        let builder = builder.map_err(|error| unusable("the system's roots of trust", error))?;
        Ok(Self::over(|http| builder.https_or_http().enable_http1().wrap_connector(http)))
    }

    /// One that trusts these roots alone, in PEM: a stand-in's, or a private cloud's.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn with_roots(pem: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let root = root.map_err(|error| unusable("roots", error))?;
            roots.add(root).map_err(|error| unusable("roots", error))?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(|error| unusable("roots", error))?;
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let builder = HttpsConnectorBuilder::new().with_tls_config(config);
        Ok(Self::over(|http| builder.https_or_http().enable_http1().wrap_connector(http)))
    }

    fn over(connector: impl FnOnce(HttpConnector) -> HttpsConnector<HttpConnector>) -> Self {
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(CONNECT_WITHIN));
        http.enforce_http(false);
        Self(Client::builder(TokioExecutor::new()).build(connector(http)))
    }

    /// As the pipeline takes it.
    #[must_use]
    pub fn transport(&self) -> Transport {
        Transport::new(Arc::new(self.clone()))
    }

    /// What a page answers, by its status, within a time. Redirects are not followed.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    pub async fn status(&self, url: &str, within: Duration) -> std::result::Result<u16, String> {
        let url = url.parse().map_err(|_| "its address is no URL".to_owned())?;
        match tokio::time::timeout(within, self.0.get(url)).await {
            Ok(Ok(answer)) => Ok(answer.status().as_u16()),
            Ok(Err(error)) if error.is_connect() => Err("nobody answers".to_owned()),
            Ok(Err(_)) => Err("the connection is lost".to_owned()),
            Err(_) => Err("it does not answer in time".to_owned()),
        }
    }
}

fn unusable(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidSpec, "configure").with_field("roots").with_message(what).with_source(error)
}

#[async_trait]
impl HttpClient for Https {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let body = match request.body() {
            Body::Bytes(bytes) => bytes.clone(),
            Body::SeekableStream(_) => {
                return Err(AzureError::with_message(AzureErrorKind::Other, "a body that is a stream"));
            }
        };
        let mut wanted = http::Request::builder().method(request.method().as_str()).uri(request.url().as_str());
        for (name, value) in request.headers().iter() {
            wanted = wanted.header(name.as_str(), value.as_str());
        }
        let wanted = wanted.body(Full::new(body));
        let wanted = wanted.map_err(|_| AzureError::with_message(AzureErrorKind::Other, "no request"))?;
        let answer = self.0.request(wanted).await.map_err(|error| {
            let kind = if error.is_connect() { AzureErrorKind::Connection } else { AzureErrorKind::Io };
            AzureError::with_error(kind, error, "no answer")
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, BODY_MAX).collect().await;
        let body = body.map_err(|_| AzureError::with_message(AzureErrorKind::Io, "the answer ends in its middle"))?;
        let mut headers = Headers::new();
        for (name, value) in &head.headers {
            if let Ok(value) = value.to_str() {
                headers.insert(HeaderName::from(name.as_str().to_owned()), HeaderValue::from(value.to_owned()));
            }
        }
        Ok(AsyncRawResponse::from_bytes(head.status.as_u16().into(), headers, body.to_bytes()))
    }
}
