//! How a site that runs does: by what its product answers at its health path.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use provisioner_azure::Https;
use provisioner_core::types::{Reason, Timestamp};

use crate::{digest::Site, seen::Health};

/// A product that takes longer is as good as none.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// What is told of a site whose spec is forgotten.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// For how long it is remembered that one is silent, when nobody asks.
const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Who asks sites.
#[derive(Debug)]
pub(crate) struct Prober {
    https: Https,
    /// How long sites may take until their product is started.
    start_time: Duration,
    /// Since when sites do not answer.
    silent: Mutex<BTreeMap<Box<str>, Timestamp>>,
}

impl Prober {
    pub(crate) fn new(https: Https, start_time: Duration) -> Self {
        Self { https, start_time, silent: Mutex::default() }
    }

    /// How a site does, at this time.
    pub(crate) async fn health(&self, site: &Site, now: Timestamp) -> Health {
        let why = match self.ask(site).await {
            Ok(()) => {
                self.silent.lock().unwrap_or_else(PoisonError::into_inner).remove(&site.name);
                return Health::Answers;
            }
            Err(why) => Reason::new("not-answering", why),
        };
        let timeout = site.product.as_ref().map(|product| u64::from(product.start_timeout_seconds));
        let timeout = timeout.map_or(START_TIMEOUT, Duration::from_secs) + self.start_time;
        match self.silent_for(site, now) >= timeout {
            true => Health::Silent(why),
            false => Health::Starting(why),
        }
    }

    async fn ask(&self, site: &Site) -> Result<(), String> {
        let (Some(host), Some(product)) = (&site.host, &site.product) else {
            return Err("it has no address yet".into());
        };
        let path = &product.health_path;
        match self.https.status(&format!("https://{host}{path}"), ANSWERS_WITHIN).await? {
            200..300 => Ok(()),
            status => Err(format!("{path} answers {status}")),
        }
    }

    fn silent_for(&self, site: &Site, now: Timestamp) -> Duration {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, since| now.since(*since) < REMEMBERED_FOR);
        now.since(*silent.entry(site.name.clone()).or_insert(now))
    }

    /// A site that was started, changed or removed has its time again.
    pub(crate) fn begin_again(&self, site: &str) {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner).remove(site);
    }
}
