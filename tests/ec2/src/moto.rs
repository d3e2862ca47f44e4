//! The API server that nobody here wrote: its process, and requests to it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::http::HeaderMap;

use crate::{answer::Refusal, query::Form, xml::Element};

/// The region of every stand.
pub const REGION: &str = "us-east-1";

/// Where `cargo xtask peers` makes it.
const FOLDER: &str = "/var/tmp/provisioner-peers/moto";
/// Runs it until its input ends, which it does however the process ends that started it.
const PROGRAM: &str = "\
import os, sys, threading
def watch():
    sys.stdin.buffer.read()
    os._exit(0)
threading.Thread(target=watch, daemon=True).start()
from moto.server import main
main()
";
/// What goes before it, to have the same answers sooner; see [`Options::indexed_tags`](crate::Options::indexed_tags).
const INDEX_TAGS: &str = "\
from moto.ec2.models.core import TaggedEC2Resource
from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix
def get_tags(self):
    if not self.id:
        return []
    kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(self.id), '')
    tags = self.ec2_backend.tags.get(self.id, {})
    return [{'resource_id': self.id, 'key': k, 'value': v, 'resource_type': kind} for k, v in tags.items()]
TaggedEC2Resource.get_tags = get_tags
";
/// How long it may take to start on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);

/// Says whether the API server is here.
///
/// # Errors
/// What to do when it is not.
pub fn is_here() -> Result<(), String> {
    match Path::new(FOLDER).join("made-of.txt").exists() {
        true => Ok(()),
        false => Err("moto is not here: cargo xtask peers prepares it".to_owned()),
    }
}

/// The Python that has it, and with it boto3 and Apache Libcloud.
#[must_use]
pub fn python() -> PathBuf {
    Path::new(FOLDER).join("bin/python")
}

/// Why tests that need the server are ignored. `None`: it is here.
///
/// # Errors
/// When a run without it does not count, as `REQUIRED_PEERS` names it.
pub fn missing() -> Result<Option<String>, String> {
    let Err(reason) = is_here() else { return Ok(None) };
    let required = std::env::var("REQUIRED_PEERS").unwrap_or_default();
    match required.split(',').any(|peer| peer.trim() == "moto") {
        true => Err(format!("moto is required: {reason}")),
        false => Ok(Some(reason)),
    }
}

/// Its process.
#[derive(Debug)]
pub(crate) struct Moto(Child);

impl Moto {
    pub(crate) fn spawn(port: u16, log: &Path, indexed_tags: bool) -> Result<Self, String> {
        is_here()?;
        let problem = |error: std::io::Error| format!("moto does not start: {error}");
        let log = File::create(log).map_err(problem)?;
        let mut command = Command::new(python());
        let program = format!("{}{PROGRAM}", if indexed_tags { INDEX_TAGS } else { "" });
        command.args(["-c", &program, "-H", "127.0.0.1", "-p", &port.to_string()]);
        command.env_clear().env("PATH", "/usr/bin:/bin");
        // Without these, images and types are taken that there are not. With that of key pairs, none is no key pair.
        command.env("MOTO_ENABLE_AMI_VALIDATION", "1").env("MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION", "1");
        command.stdin(Stdio::piped()).stdout(log.try_clone().map_err(problem)?).stderr(log);
        command.spawn().map(Self).map_err(problem)
    }

    /// Waits until it answers.
    pub(crate) async fn ready(&mut self, client: &Client) -> Result<(), String> {
        let deadline = Instant::now() + START_MAX;
        loop {
            if client.http.get(&client.url).send().await.is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.0.try_wait() {
                return Err(format!("moto ended while it started: {status}"));
            }
            if Instant::now() > deadline {
                return Err(format!("moto did not answer within {START_MAX:?}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends requests to it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) url: String,
    http: reqwest::Client,
    /// It serves many at once and changes what they read: some would be answered that its own tables had changed under them.
    turn: tokio::sync::Mutex<()>,
}

impl Client {
    pub(crate) fn new(port: u16) -> Result<Self, String> {
        let http = reqwest::Client::builder().no_proxy().build().map_err(|error| error.to_string())?;
        Ok(Self { url: format!("http://127.0.0.1:{port}"), http, turn: tokio::sync::Mutex::default() })
    }

    /// Has it execute a request.
    ///
    /// # Errors
    /// When it refuses, or cannot do that.
    pub(crate) async fn call(&self, form: &Form) -> Result<Element, Refusal> {
        let failed = |error: &dyn std::fmt::Display| {
            // Not retried, and told apart from what the real service says.
            Refusal::new("UnsupportedOperation", format!("moto does not do this {}: {error}", form.action()))
        };
        let scope = format!("Credential=test/20260101/{REGION}/ec2/aws4_request");
        let request = self.http.post(&self.url).body(form.encoded());
        let request = request
            .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
            .header("authorization", format!("AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"));
        let _turn = self.turn.lock().await;
        let response = request.send().await.map_err(|error| failed(&error))?;
        let status = response.status().as_u16();
        let text = response.text().await.map_err(|error| failed(&error))?;
        let element = Element::parse(&text).map_err(|error| failed(&error))?;
        if status < 400 {
            return Ok(element);
        }
        match element.items("Errors").first() {
            Some(error) => Err(Refusal::with_status(status, error.at(&["Code"]), error.at(&["Message"]))),
            None => Err(failed(&status)),
        }
    }

    /// Passes a request of another service on as it is. Gives the status, the type of the content, and the content.
    pub(crate) async fn pass(
        &self,
        method: &str,
        path: &str,
        headers: &HeaderMap,
        body: Vec<u8>,
    ) -> Result<(u16, String, Vec<u8>), String> {
        let method = method.parse().map_err(|_| format!("no method: {method}"))?;
        let mut request = self.http.request(method, format!("{}{path}", self.url)).body(body);
        for (name, value) in headers {
            // Those of the connection are for this one alone.
            if !matches!(name.as_str(), "connection" | "content-length" | "transfer-encoding" | "expect") {
                request = request.header(name.as_str(), value.as_bytes());
            }
        }
        let _turn = self.turn.lock().await;
        let response = request.send().await.map_err(|error| error.to_string())?;
        let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        let (status, content_type) = (response.status().as_u16(), content_type.unwrap_or_default().to_owned());
        let body = response.bytes().await.map_err(|error| error.to_string())?;
        Ok((status, content_type, body.to_vec()))
    }
}
