//! Throttling: each action has a bucket of requests, and some have one of resources, too.
//!
//! <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html>

use std::{collections::BTreeMap, sync::Mutex, time::Instant};

use crate::{answer::Refusal, query::Form, stand::locked};

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

/// Says how much an account may ask for. The default is what is documented.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Buckets {
    /// Requests to launch machines, and those to start them: a bucket each.
    pub launches: Bucket,
    /// Machines that are launched, and those that are started.
    pub launched: Bucket,
    /// Requests to stop machines.
    pub stops: Bucket,
    /// Machines that are stopped.
    pub stopped: Bucket,
    /// Requests to terminate machines.
    pub terminations: Bucket,
    /// Machines that are terminated.
    pub terminated: Bucket,
    /// Reads with a filter, with ids or in pages.
    pub reads: Bucket,
    /// Reads of everything.
    pub whole_reads: Bucket,
    /// Requests to write tags.
    pub tags: Bucket,
    /// Every other write.
    pub writes: Bucket,
}

impl Default for Buckets {
    fn default() -> Self {
        Self {
            launches: Bucket::new(5.0, 2.0),
            launched: Bucket::new(1000.0, 2.0),
            stops: Bucket::new(50.0, 5.0),
            stopped: Bucket::new(1000.0, 20.0),
            terminations: Bucket::new(100.0, 5.0),
            terminated: Bucket::new(1000.0, 20.0),
            reads: Bucket::new(100.0, 20.0),
            whole_reads: Bucket::new(50.0, 10.0),
            tags: Bucket::new(100.0, 10.0),
            writes: Bucket::new(50.0, 5.0),
        }
    }
}

/// How much is left in each, and since when.
#[derive(Debug)]
pub(crate) struct Levels {
    buckets: Option<Buckets>,
    left: Mutex<BTreeMap<String, (f64, Instant)>>,
}

impl Levels {
    pub(crate) fn new(buckets: Option<Buckets>) -> Self {
        Self { buckets, left: Mutex::default() }
    }

    /// Takes what a request needs.
    ///
    /// # Errors
    /// When there is not enough. Then nothing of it is taken.
    pub(crate) fn take(&self, form: &Form) -> Result<(), Refusal> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        let action = form.action();
        let is_part = ["Filter", "InstanceId", "VolumeId", "SnapshotId"].iter().any(|name| form.has(name))
            || form.get("MaxResults").is_some();
        let (requests, resources) = match action {
            "RunInstances" | "StartInstances" => (buckets.launches, Some(buckets.launched)),
            "StopInstances" => (buckets.stops, Some(buckets.stopped)),
            "TerminateInstances" => (buckets.terminations, Some(buckets.terminated)),
            "CreateTags" => (buckets.tags, None),
            _ if action.starts_with("Describe") || action.starts_with("Get") => {
                (if is_part { buckets.reads } else { buckets.whole_reads }, None)
            }
            _ => (buckets.writes, None),
        };
        let name = format!("{action} {is_part}");
        let machines = form.list("InstanceId").len().max(1);
        let machines = u32::try_from(machines).unwrap_or(u32::MAX).into();
        let mut wanted = vec![(name, requests, 1.0)];
        wanted.extend(resources.map(|bucket| (format!("{action} resources"), bucket, machines)));
        let mut left = locked(&self.left);
        let now = Instant::now();
        for (name, bucket, _) in &wanted {
            let (level, since) = left.entry(name.clone()).or_insert((bucket.size, now));
            *level = (*level + now.duration_since(*since).as_secs_f64() * bucket.refill).min(bucket.size);
            *since = now;
        }
        if wanted.iter().any(|(name, _, amount)| left[name].0 < *amount) {
            return Err(Refusal::throttled());
        }
        for (name, _, amount) in &wanted {
            left.entry(name.clone()).and_modify(|(level, _)| *level -= amount);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_gone_and_comes_back() {
        let launches = Bucket::new(5.0, 1000.0);
        let levels = Levels::new(Some(Buckets { launches, ..Buckets::default() }));
        let form = Form::new("RunInstances");
        let taken = (0..100_000).take_while(|_| levels.take(&form).is_ok()).count();
        assert!(taken >= 5);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(levels.take(&form), Ok(()));
        let slow = Levels::new(Some(Buckets::default()));
        assert_eq!((0..100).filter(|_| slow.take(&form).is_ok()).count(), 5);
    }
}
