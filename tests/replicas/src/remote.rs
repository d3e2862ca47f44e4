//! The replica's end of the provider in memory.

use std::{
    fmt,
    io::{self, Write},
    net::{Ipv4Addr, TcpStream},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use provisioner_core::{
    Effect, Error, ErrorKind, OpContext, Provisioner, Result,
    types::{Capabilities, ControlPlaneId, DataDisposition, DataId, InstanceId, InstanceSpec, Observed, Owned, Target},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::{
    stop::{Stop, Stops},
    wire::{Asked, Call, Told, Verb},
};

/// A provider that the test serves. What a call does there is done once it was sent, whoever waits for the answer.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The replica's name.
    pub by: String,
    /// Of 127.0.0.1.
    pub port: u16,
    /// How long a call may be under way.
    pub call_max: Duration,
    /// Where this process is to stop.
    pub stops: Arc<Stops>,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.port)
    }
}

impl Remote {
    async fn call(&self, operation: &'static str, control_plane: &ControlPlaneId, asked: Asked) -> Result<Told> {
        let stop = match &asked {
            Asked::Of(verb, target) => Some(Stop::Call { verb: verb.as_str().to_owned(), name: target.id.to_string() }),
            _ => None,
        };
        let call = Call { by: self.by.clone(), control_plane: control_plane.clone(), asked };
        let mut line = serde_json::to_string(&call).map_err(|error| failed(operation, error))?;
        line.push('\n');
        let stream = match stop.is_some_and(|stop| self.stops.pass(&stop)) {
            // It is sent as soon as this process goes on: before anything in it can notice how late it is.
            true => self.send_at_once(&line),
            false => self.send(&line).await,
        };
        let mut stream = BufReader::new(stream.map_err(|error| failed(operation, error))?);
        let mut answer = String::new();
        let read = stream.read_line(&mut answer).await;
        let lost = |error| failed(operation, error).with_effect(Effect::Unknown);
        match read {
            Ok(0) => Err(lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => match serde_json::from_str(&answer).map_err(|error| lost(error.into()))? {
                Told::Failed(failed) => Err(failed.into_error(operation)),
                told => Ok(told),
            },
            Err(error) => Err(lost(error)),
        }
    }

    async fn send(&self, line: &str) -> io::Result<tokio::net::TcpStream> {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        stream.write_all(line.as_bytes()).await?;
        Ok(stream)
    }

    fn send_at_once(&self, line: &str) -> io::Result<tokio::net::TcpStream> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.write_all(line.as_bytes())?;
        stream.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(stream)
    }

    async fn of(&self, cx: &OpContext, verb: Verb, target: &Target) -> Result<Observed> {
        match self.call(verb.as_str(), &cx.control_plane, Asked::Of(verb, target.into())).await? {
            Told::Seen(seen) => Ok(seen.into()),
            told => Err(unexpected(verb.as_str(), &told)),
        }
    }
}

fn failed(operation: &'static str, error: impl Into<io::Error>) -> Error {
    Error::new(ErrorKind::Unavailable, operation).with_source(error.into())
}

fn unexpected(operation: &'static str, told: &Told) -> Error {
    Error::new(ErrorKind::Internal, operation).with_message(format!("an answer to something else: {told:?}"))
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Provisioner for Remote {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::PLAIN;
        capabilities.call_max = self.call_max;
        capabilities.conditional_writes = true;
        capabilities
    }

    fn validate(&self, wanted: &InstanceSpec, _applied: Option<&InstanceSpec>) -> Result<()> {
        Ok(wanted.check_against(&self.capabilities())?)
    }

    async fn identity(&self, _cx: &OpContext) -> Result<String> {
        Ok("memory".to_owned())
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.of(cx, Verb::Create, target).await
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.of(cx, Verb::Suspend, target).await
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.of(cx, Verb::ScaleToZero, target).await
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.of(cx, Verb::Resume, target).await
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        self.of(cx, Verb::Destroy(data), target).await
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.of(cx, Verb::Observe, target).await
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        futures::future::join_all(targets.iter().map(|target| self.observe(cx, target))).await
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        let (this, control_plane) = (self.clone(), cx.control_plane.clone());
        let listing = async move {
            match this.call("list", &control_plane, Asked::List).await {
                Ok(Told::Listed(found)) => found.into_iter().map(|found| Ok(found.into())).collect(),
                Ok(told) => vec![Err(unexpected("list", &told))],
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(listing).flat_map(stream::iter).boxed()
    }

    fn watch(&self, _cx: &OpContext) -> BoxStream<'static, InstanceId> {
        stream::empty().boxed()
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        self.call("delete data", &cx.control_plane, Asked::DeleteData(data.clone())).await.map(drop)
    }

    async fn maintain(&self, _cx: &OpContext, _plan_only: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
