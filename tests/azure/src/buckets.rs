//! Throttling: reads, writes and deletes have a bucket each.
//!
//! <https://learn.microsoft.com/azure/azure-resource-manager/management/request-limits-and-throttling>

use std::{collections::BTreeMap, sync::Mutex, time::Instant};

use axum::http::Method;

use crate::{answer::Refusal, stand::locked};

/// How much there may be at once, and how much more every second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// How much there may be at once.
    pub size: f64,
    /// How much more every second.
    pub refill: f64,
}

impl Bucket {
    /// Makes one.
    #[must_use]
    pub const fn new(size: f64, refill: f64) -> Self {
        Self { size, refill }
    }
}

/// Says how much a caller may ask for. The default is what is documented.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Buckets {
    /// Reads.
    pub reads: Bucket,
    /// Writes, and whatever is posted.
    pub writes: Bucket,
    /// Deletes.
    pub deletes: Bucket,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { reads: Bucket::new(250.0, 25.0), writes: Bucket::new(200.0, 10.0), deletes: Bucket::new(200.0, 10.0) }
    }
}

/// What a caller has without buckets: a number that never matters.
const PLENTY: f64 = 11_999.0;

/// How much is left in each, and since when.
#[derive(Debug)]
pub(crate) struct Levels {
    buckets: Option<Buckets>,
    left: Mutex<BTreeMap<&'static str, (f64, Instant)>>,
}

impl Levels {
    pub(crate) fn new(buckets: Option<Buckets>) -> Self {
        Self { buckets, left: Mutex::default() }
    }

    /// Takes one request. Gives the header that tells what is left.
    ///
    /// # Errors
    /// When there is not enough. Then nothing is taken.
    pub(crate) fn take(&self, method: &Method) -> Result<(&'static str, String), Refusal> {
        let buckets = self.buckets.unwrap_or_default();
        let (header, bucket) = match *method {
            Method::GET | Method::HEAD => ("x-ms-ratelimit-remaining-subscription-reads", buckets.reads),
            Method::DELETE => ("x-ms-ratelimit-remaining-subscription-deletes", buckets.deletes),
            _ => ("x-ms-ratelimit-remaining-subscription-writes", buckets.writes),
        };
        if self.buckets.is_none() {
            return Ok((header, format!("{PLENTY:.0}")));
        }
        let mut left = locked(&self.left);
        let now = Instant::now();
        let (level, since) = left.entry(header).or_insert((bucket.size, now));
        *level = (*level + now.duration_since(*since).as_secs_f64() * bucket.refill).min(bucket.size);
        *since = now;
        if *level < 1.0 {
            let wait = ((1.0 - *level) / bucket.refill).ceil().max(1.0);
            return Err(Refusal::throttled(Some(format!("{wait:.0}"))).with_header(header, "0".to_owned()));
        }
        *level -= 1.0;
        Ok((header, format!("{level:.0}", level = level.floor())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_gone_and_comes_back() {
        let reads = Bucket::new(2.0, 1000.0);
        let levels = Levels::new(Some(Buckets { reads, ..Buckets::default() }));
        assert!((0..100_000).any(|_| levels.take(&Method::GET).is_err()));
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(levels.take(&Method::GET).is_ok());
        let slow = Levels::new(Some(Buckets::default()));
        assert_eq!((0..300).filter(|_| slow.take(&Method::PUT).is_ok()).count(), 200);
        assert!(slow.take(&Method::DELETE).is_ok());
    }
}
