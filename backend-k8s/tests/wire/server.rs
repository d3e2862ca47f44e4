//! An HTTP server on loopback that speaks as much of the Kubernetes API as the backend needs, keeps a list of what it was
//! asked, and answers otherwise where a test's script says so.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::stream::{self, BoxStream, StreamExt};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::world::{Key, Refusal, World, has_labels, key};

type Body = BoxBody<Bytes, std::io::Error>;
/// What happens to the world just before an answer.
type Before = Box<dyn FnOnce(&mut World) + Send>;

/// One request, as rights would name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `get`, `list`, `watch`, `create`, `apply`, `patch` or `delete`.
    pub(crate) verb: &'static str,
    pub(crate) plural: String,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
}

/// What a request is answered with instead.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// A code, a body and headers.
    Status(u16, String, Vec<(&'static str, &'static str)>),
    /// As usual, but what was true at once arrives after this time.
    Late(Duration),
    /// Nothing, for ever.
    Hang,
    /// Nothing: the connection ends before anything is done.
    Cut,
    /// Nothing: it is done, and then the connection ends.
    ActAndCut,
}

impl Answer {
    /// As the API tells a refusal.
    pub(crate) fn refusal(code: u16, reason: &str, message: &str) -> Self {
        Self::Status(code, status(code, reason, message).to_string(), Vec::new())
    }

    pub(crate) fn with_header(mut self, name: &'static str, value: &'static str) -> Self {
        if let Self::Status(_, _, headers) = &mut self {
            headers.push((name, value));
        }
        self
    }
}

struct Rule {
    verb: &'static str,
    plural: &'static str,
    left: usize,
    before: Option<Before>,
    answer: Option<Answer>,
}

/// The cluster. When dropped, it is gone.
pub(crate) struct Server {
    shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    /// Whether a connection serves more than one request.
    keeps_alive: AtomicBool,
    connections: Mutex<JoinSet<()>>,
    world: Mutex<World>,
    /// Rises with every change of the world.
    changed: watch::Sender<u64>,
    /// Rises when the connections of all watches end.
    cut: watch::Sender<u64>,
    seen: Mutex<Vec<Seen>>,
    rules: Mutex<Vec<Rule>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            keeps_alive: AtomicBool::new(true),
            connections: Mutex::default(),
            world: Mutex::new(World::new()),
            changed: watch::Sender::new(0),
            cut: watch::Sender::new(0),
            seen: Mutex::default(),
            rules: Mutex::default(),
        });
        let accepting = Some(tokio::spawn(accept(listener, Arc::clone(&shared))));
        Self { shared, address, accepting }
    }

    /// Ends every connection, and takes none until it is started again.
    pub(crate) async fn stop(&mut self) {
        self.close_the_door().await;
        self.shared.connections.lock().unwrap().abort_all();
    }

    /// Takes no new connection. What is connected stays so.
    pub(crate) async fn close_the_door(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
    }

    /// From now on each connection serves one request.
    pub(crate) fn serve_once_each(&self) {
        self.shared.keeps_alive.store(false, Ordering::SeqCst);
    }

    pub(crate) async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.accepting = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
    }

    /// Looks at the world, or changes it.
    pub(crate) fn world<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        let done = act(&mut self.shared.world());
        self.shared.changed.send_modify(|changed| *changed += 1);
        done
    }

    /// Answers the next requests of this verb for this kind so. A star stands for every verb or kind.
    pub(crate) fn answer(&self, verb: &'static str, plural: &'static str, times: usize, answer: Answer) {
        self.rule(Rule { verb, plural, left: times, before: None, answer: Some(answer) });
    }

    /// Something happens just before the next such request, which is then answered so, or as usual.
    pub(crate) fn before(
        &self,
        verb: &'static str,
        plural: &'static str,
        act: impl FnOnce(&mut World) + Send + 'static,
        answer: Option<Answer>,
    ) {
        self.rule(Rule { verb, plural, left: 1, before: Some(Box::new(act)), answer });
    }

    fn rule(&self, rule: Rule) {
        self.shared.rules.lock().unwrap().push(rule);
    }

    /// Answers as usual again.
    pub(crate) fn clear(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Ends the connection of every watch in the middle.
    pub(crate) fn cut_watches(&self) {
        self.shared.cut.send_modify(|cut| *cut += 1);
    }

    /// What was asked since the last time.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shared.seen.lock().unwrap())
    }

    /// How many such requests came since the list was last taken.
    pub(crate) fn count(&self, verb: &str, plural: &str) -> usize {
        let seen = self.shared.seen.lock().unwrap();
        seen.iter().filter(|seen| matches(verb, plural, seen)).count()
    }
}

fn matches(verb: &str, plural: &str, seen: &Seen) -> bool {
    (verb == "*" || verb == seen.verb) && (plural == "*" || plural == seen.plural)
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
        self.shared.connections.lock().unwrap().abort_all();
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let mut http = http1::Builder::new();
        http.keep_alive(shared.keeps_alive.load(Ordering::SeqCst));
        let connections = Arc::clone(&shared);
        let shared = Arc::clone(&shared);
        connections.connections.lock().unwrap().spawn(async move {
            let service = service_fn(|request| respond(Arc::clone(&shared), request));
            // A connection that is cut by a script ends in an error, as it should.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// The parts of a path that matter.
struct Asked {
    seen: Seen,
    query: String,
    is_log: bool,
}

impl Asked {
    fn of(request: &Request<Incoming>) -> Self {
        let query = request
            .uri()
            .query()
            .unwrap_or_default()
            .replace("%3D", "=")
            .replace("%2F", "/")
            .replace("%2C", ",")
            .replace("%21", "!");
        let path = request.uri().path();
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        parts.drain(..if parts[0] == "api" { 2 } else { 3 });
        let namespace = (parts[0] == "namespaces" && parts.len() > 2).then(|| parts[1].to_owned());
        if namespace.is_some() {
            parts.drain(..2);
        }
        let name = parts.get(1).map(|name| (*name).to_owned());
        let is_apply = request.headers().get("content-type").is_some_and(|kind| kind == "application/apply-patch+yaml");
        let verb = match *request.method() {
            Method::GET if query.contains("watch=true") => "watch",
            Method::GET if name.is_some() => "get",
            Method::GET => "list",
            Method::POST => "create",
            Method::PATCH if is_apply => "apply",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => panic!("nobody asks that: {} {path}", request.method()),
        };
        let is_log = parts.get(2) == Some(&"log");
        Self { seen: Seen { verb, plural: parts[0].to_owned(), namespace, name }, query, is_log }
    }

    fn parameter(&self, name: &str) -> &str {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    fn key(&self, body: &Value) -> Key {
        let namespace = self.seen.namespace.clone().unwrap_or_default();
        let name = self.seen.name.clone().or_else(|| body["metadata"]["name"].as_str().map(str::to_owned));
        key(&self.seen.plural, &namespace, &name.unwrap_or_default())
    }
}

async fn respond(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, &'static str> {
    let asked = Asked::of(&request);
    let body = request.into_body().collect().await.map_err(|_| "the client is gone")?.to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    shared.seen.lock().unwrap().push(asked.seen.clone());
    let (before, answer) = script(&shared, &asked.seen);
    if let Some(before) = before {
        before(&mut shared.world());
        shared.changed.send_modify(|changed| *changed += 1);
    }
    match answer {
        None => Ok(usual(&shared, &asked, &body)),
        Some(Answer::Status(code, body, headers)) => {
            let mut response = Response::builder().status(code).header("audit-id", "a-1");
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Ok(response.body(text(body)).unwrap())
        }
        Some(Answer::Late(after)) => {
            let answer = usual(&shared, &asked, &body);
            tokio::time::sleep(after).await;
            Ok(answer)
        }
        Some(Answer::Hang) => std::future::pending().await,
        Some(Answer::Cut) => Err("cut"),
        Some(Answer::ActAndCut) => {
            usual(&shared, &asked, &body);
            Err("cut")
        }
    }
}

fn script(shared: &Shared, seen: &Seen) -> (Option<Before>, Option<Answer>) {
    let mut rules = shared.rules.lock().unwrap();
    let Some(at) = rules.iter().position(|rule| rule.left > 0 && matches(rule.verb, rule.plural, seen)) else {
        return (None, None);
    };
    rules[at].left -= 1;
    (rules[at].before.take(), rules[at].answer.clone())
}

fn usual(shared: &Arc<Shared>, asked: &Asked, body: &Value) -> Response<Body> {
    if asked.seen.verb == "watch" {
        return told(Arc::clone(shared), asked);
    }
    let answer = act(&mut shared.world(), asked, body);
    shared.changed.send_modify(|changed| *changed += 1);
    let (code, answer) = match answer {
        Ok(answer) => (200, answer),
        Err((code, reason, message)) => (code, status(code, reason, &message)),
    };
    let answer = if asked.is_log { "its last words".to_owned() } else { answer.to_string() };
    Response::builder().status(code).body(text(answer)).unwrap()
}

fn act(world: &mut World, asked: &Asked, body: &Value) -> Result<Value, Refusal> {
    let Seen { verb, plural, namespace, .. } = &asked.seen;
    let key = asked.key(body);
    match *verb {
        "list" => {
            let items = world.list(plural, namespace.as_deref(), asked.parameter("labelSelector"));
            let limit = asked.parameter("limit").parse().ok();
            Ok(world.page(items, limit, asked.parameter("continue").parse().unwrap_or(0)))
        }
        "get" if asked.is_log => Ok(Value::Null),
        "get" => {
            let found = world.get(&key.0, &key.1, &key.2).cloned();
            found.ok_or_else(|| (404, "NotFound", format!("{plural} \"{}\" not found", key.2)))
        }
        "create" => world.create(&key, body.clone()),
        "apply" => world.apply(&key, body.clone()),
        "patch" => world.patch(&key, body),
        "delete" if asked.seen.name.is_none() => {
            for object in world.list(plural, namespace.as_deref(), asked.parameter("labelSelector")) {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                world.delete(&crate::world::key(plural, &key.1, name), None)?;
            }
            Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
        }
        _ => {
            // With another policy it would not stay until all that belongs to it is gone.
            assert!(plural != "configmaps" || body["propagationPolicy"] == "Foreground", "{body}");
            let wanted = &body["preconditions"];
            world.expect_version(&key, wanted["resourceVersion"].as_str())?;
            world.delete(&key, wanted["uid"].as_str())?;
            Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}))
        }
    }
}

/// The answer to a watch: what happened since a version, and what happens from now on.
fn told(shared: Arc<Shared>, asked: &Asked) -> Response<Body> {
    let from: u64 = asked.parameter("resourceVersion").parse().unwrap_or_default();
    let (plural, selector) = (asked.seen.plural.clone(), asked.parameter("labelSelector").to_owned());
    let (changed, mut cut) = (shared.changed.subscribe(), shared.cut.subscribe());
    cut.mark_unchanged();
    if from < shared.world().compacted {
        let gone = json!({"type": "ERROR", "object": status(410, "Expired", "too old resource version")});
        let line = stream::iter([Ok(Frame::data(Bytes::from(format!("{gone}\n"))))]);
        return Response::new(BodyExt::boxed(StreamBody::new(line)));
    }
    let state = (shared, from, changed, cut);
    let lines = stream::unfold(state, move |(shared, from, mut changed, mut cut)| {
        let (plural, selector) = (plural.clone(), selector.clone());
        async move {
            loop {
                changed.mark_unchanged();
                let next = next_event(&shared.world(), from, &plural, &selector);
                if let Some((version, line)) = next {
                    return Some((Ok(Frame::data(Bytes::from(line))), (shared, version, changed, cut)));
                }
                tokio::select! {
                    _ = changed.changed() => {}
                    _ = cut.changed() => {
                        return Some((Err(std::io::Error::other("cut")), (shared, from, changed, cut)));
                    }
                }
            }
        }
    });
    let lines: BoxStream<'static, Result<Frame<Bytes>, std::io::Error>> = lines.boxed();
    Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(lines)))))
}

fn next_event(world: &World, from: u64, plural: &str, selector: &str) -> Option<(u64, String)> {
    let until = world.told_until.unwrap_or(u64::MAX);
    let newer = world.events.iter().filter(|event| event.version > from && event.version <= until);
    let (event, kind) = newer.filter(|event| event.plural == plural).find_map(|event| {
        let had = event.before.as_ref().is_some_and(|before| has_labels(before, selector));
        let kind = match (had, has_labels(&event.object, selector)) {
            (false, false) => return None,
            (_, true) => event.kind,
            // What has lost the labels is gone, for whoever watches by them.
            (true, false) => "DELETED",
        };
        Some((event, kind))
    })?;
    let line = json!({"type": kind, "object": event.object});
    Some((event.version, format!("{line}\n")))
}

/// A body must be `Sync` to be boxed; a boxed stream is not.
struct SyncStream<T>(Mutex<BoxStream<'static, T>>);

impl<T> stream::Stream for SyncStream<T> {
    type Item = T;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.lock().unwrap().poll_next_unpin(cx)
    }
}

fn text(body: String) -> Body {
    Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {}).boxed()
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 25 seconds: {what}");
}
