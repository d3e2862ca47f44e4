//! Requests and answers as they were, for whoever compares them with the contract.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::Write as _,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use axum::http::{HeaderMap, Method};
use serde_json::{Value, json};

use crate::{answer::Answer, stand::locked};

/// Where the real resource manager is.
const HOST: &str = "https://management.azure.com";

/// A request, as it is written down: without its token.
pub(crate) struct Call<'a> {
    pub(crate) operation: &'a str,
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a Value,
    /// Whether it was answered as a test said, and not as the service does.
    pub(crate) injected: bool,
}

/// Writes requests and answers down.
#[derive(Debug)]
pub(crate) struct Record(Option<Mutex<PathBuf>>);

/// Names the folder where all stands of a test run write down what they are asked.
const FOLDER: &str = "AZURE_RECORDINGS";

impl Record {
    /// To this file, or else to one in the folder that the environment names.
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        static STANDS: AtomicU32 = AtomicU32::new(0);

        let in_folder = || {
            let folder = std::env::var_os(FOLDER)?;
            let (process, stand) = (std::process::id(), STANDS.fetch_add(1, Ordering::Relaxed));
            Some(PathBuf::from(folder).join(format!("{process}-{stand}.jsonl")))
        };
        Self(path.or_else(in_folder).map(Mutex::new))
    }

    pub(crate) fn add(&self, call: &Call<'_>, answer: &Answer) {
        let Some(path_of_file) = &self.0 else { return };
        let headers: BTreeMap<_, _> = call
            .headers
            .iter()
            .filter(|(name, _)| *name != "authorization")
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let said: BTreeMap<_, _> = answer.headers.iter().map(|(name, value)| (*name, &**value)).collect();
        let mut request =
            json!({ "method": call.method.as_str(), "url": format!("{HOST}{}", call.path), "headers": headers });
        if !call.body.is_null() {
            request["body"] = call.body.clone();
        }
        let mut response = json!({ "statusCode": answer.status.to_string(), "headers": said });
        if let Some(body) = &answer.body {
            response["body"] = body.clone();
        }
        let line = json!({ "liveRequest": request, "liveResponse": response, "operation": call.operation, "injected": call.injected });
        let path = locked(path_of_file);
        let file = OpenOptions::new().create(true).append(true).open(&*path);
        if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
            tracing::warn!(%error, path = %path.display(), "a request is not written down");
        }
    }
}
