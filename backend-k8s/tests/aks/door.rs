//! The door of a cluster: TLS, and a look at the header that says who comes. Whoever is known is let through to the scripted cluster.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
        server::WebPkiClientVerifier,
    },
};

type Body = BoxBody<Bytes, hyper::Error>;

/// The door. When dropped, it is shut.
pub(crate) struct Door {
    /// Where it is.
    pub(crate) url: String,
    /// By what it is known.
    pub(crate) ca_pem: String,
    /// By what one who comes without a token is known: a certificate and its key.
    pub(crate) client_pem: [String; 2],
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    cluster: SocketAddr,
    /// What came in the header, request by request; of who has none and a certificate, that.
    seen: Mutex<Vec<String>>,
    /// Headers that are not known any more.
    revoked: Mutex<BTreeSet<String>>,
}

impl Door {
    pub(crate) async fn open(cluster: SocketAddr) -> Self {
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let client = rcgen::generate_simple_self_signed(["client".to_owned()]).unwrap();
        let client_pem = [client.cert.pem(), client.signing_key.serialize_pem()];
        let mut clients = RootCertStore::empty();
        clients.add(client.cert.der().clone()).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(clients), Arc::clone(&provider));
        let verifier = verifier.allow_unauthenticated().build().unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_client_cert_verifier(verifier).with_single_cert(vec![own.cert.der().clone()], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared { cluster, seen: Mutex::default(), revoked: Mutex::default() });
        let accepting = tokio::spawn(accept(listener, acceptor, Arc::clone(&shared)));
        Self { url, ca_pem: own.cert.pem(), client_pem, shared, accepting }
    }

    /// The headers of all requests so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The last of them.
    pub(crate) fn last(&self) -> String {
        self.seen().pop().unwrap()
    }

    /// Does not know this header any more.
    pub(crate) fn revoke(&self, header: &str) {
        self.shared.revoked.lock().unwrap().insert(header.to_owned());
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    // They end with this.
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let has_certificate = stream.get_ref().1.peer_certificates().is_some();
            let service = service_fn(|request| pass(Arc::clone(&shared), request, has_certificate));
            // A client that goes away ends it in an error, as it should.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn pass(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    has_certificate: bool,
) -> Result<Response<Body>, hyper::Error> {
    let header = match request.headers().get(AUTHORIZATION) {
        Some(header) => header.to_str().unwrap().to_owned(),
        None if has_certificate => "a certificate".to_owned(),
        None => String::new(),
    };
    let is_known =
        header.starts_with("Bearer cluster-") || ["Bearer static-token", "a certificate"].contains(&&*header);
    let is_admitted = is_known && !shared.revoked.lock().unwrap().contains(&header);
    shared.seen.lock().unwrap().push(header);
    if !is_admitted {
        let status =
            r#"{"kind":"Status","status":"Failure","code":401,"reason":"Unauthorized","message":"Unauthorized"}"#;
        let body = Full::new(Bytes::from(status)).map_err(|never: Infallible| match never {}).boxed();
        return Ok(Response::builder().status(401).body(body).unwrap());
    }
    let stream = TcpStream::connect(shared.cluster).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with its one answer.
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(BodyExt::boxed))
}
