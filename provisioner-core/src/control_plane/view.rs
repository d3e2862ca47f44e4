//! What callers see of instances.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    placement::CellState,
    store::{CellUsage, Record},
    types::{
        CellName, DataId, Endpoint, Generation, Incarnation, InstanceId, InstanceSpec, Intent, OperationId, Phase,
        Reason, Revision, TenantId, Timestamp,
    },
};

/// One instance as the control plane knows it: what is intended, and what was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instance {
    /// Its name.
    pub id: InstanceId,
    /// Its owner.
    pub tenant: TenantId,
    /// Where it lives.
    pub cell: CellName,
    /// What the customer should have.
    pub intent: Intent,
    /// Rises with every accepted request.
    pub revision: Revision,
    /// The spec the customer wants.
    pub spec: InstanceSpec,
    /// Its generation.
    pub generation: Generation,
    /// The generation that was seen ready last; another than `generation` while an update is under way or after it failed.
    pub applied: Option<Generation>,
    /// The version of the workload that was seen ready last.
    pub applied_version: Option<String>,
    /// The phase seen last; none before the first look.
    pub phase: Option<Phase>,
    /// Where it answers.
    pub endpoint: Option<Endpoint>,
    /// Why it is as it is.
    pub reason: Option<Reason>,
    /// Whether what was seen is what is intended.
    pub settled: bool,
    /// Whether the engine has given up until somebody asks for something.
    pub parked: bool,
    /// The making that is alive, or may be.
    pub incarnation: Option<Incarnation>,
    /// The data it runs on.
    pub data: DataId,
    /// The operation that is open.
    pub operation: Option<OperationId>,
    /// When it was accepted.
    pub created_at: Timestamp,
}

impl From<&Record> for Instance {
    fn from(record: &Record) -> Self {
        let row = &record.row;
        Self {
            id: row.id.clone(),
            tenant: row.tenant.clone(),
            cell: row.cell.clone(),
            intent: row.intent.clone(),
            revision: row.revision,
            spec: record.spec(row.wanted).as_ref().clone(),
            generation: row.wanted,
            applied: row.applied,
            applied_version: row.applied.map(|applied| record.spec(applied).workload.version.clone()),
            phase: row.phase,
            endpoint: row.endpoint.clone(),
            reason: row.reason.clone(),
            settled: row.settled,
            parked: row.parked,
            incarnation: row.live.as_ref().map(|live| live.incarnation),
            data: row.data.clone(),
            operation: row.operation.clone(),
            created_at: row.created_at,
        }
    }
}

/// One cell as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CellStatus {
    /// Its name.
    pub name: CellName,
    /// Whether it takes new instances.
    pub state: CellState,
    /// Why its provider cannot be worked with at the moment; its instances wait.
    pub unavailable: Option<String>,
    /// Whether its drift actions are frozen until somebody confirms what vanished.
    pub drift_frozen: bool,
    /// What it holds and has promised.
    pub usage: CellUsage,
}

/// A page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Whether more follows. Go on after the last item.
    pub more: bool,
}

impl<T> Page<T> {
    /// A page of what was read with one item beyond its limit, if there was one.
    pub(super) fn cut(mut items: Vec<T>, limit: usize) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        Self { items, more }
    }
}

/// The fleet in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FleetCounts {
    /// Instances by cell and last phase; no phase: not seen yet.
    pub by_cell: BTreeMap<CellName, BTreeMap<Option<Phase>, u64>>,
}

/// How provisioning went: the creations that ended in a window of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProvisioningSlo {
    /// How many ended with a running instance.
    pub succeeded: u64,
    /// How many were given up.
    pub failed: u64,
    /// Half of the succeeded ones took at most this long, from acceptance to ready.
    pub p50: Option<Duration>,
    /// 99 of 100 succeeded ones took at most this long.
    pub p99: Option<Duration>,
}

impl ProvisioningSlo {
    /// The figures of creations that ended: how many milliseconds each took, and whether it succeeded.
    pub(super) fn of(times: Vec<(u64, bool)>) -> Self {
        let failed = times.iter().filter(|(_, succeeded)| !succeeded).count() as u64;
        let mut took: Vec<u64> = times.into_iter().filter(|(_, succeeded)| *succeeded).map(|(ms, _)| ms).collect();
        took.sort_unstable();
        // The smallest time that at least this many per cent did not exceed.
        let percentile = |percent: usize| {
            let rank = (took.len() * percent).div_ceil(100);
            took.get(rank.checked_sub(1)?).copied().map(Duration::from_millis)
        };
        Self { succeeded: took.len() as u64, failed, p50: percentile(50), p99: percentile(99) }
    }

    /// The part that succeeded, from 0 to 1; 1 when nothing ended.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn success_rate(&self) -> f64 {
        match self.succeeded + self.failed {
            0 => 1.0,
            all => self.succeeded as f64 / all as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_seen() {
        let slo = ProvisioningSlo::of((1..=200).map(|ms| (ms, ms != 200)).collect());
        assert_eq!((slo.succeeded, slo.failed), (199, 1));
        assert_eq!(slo.p50, Some(Duration::from_millis(100)));
        assert_eq!(slo.p99, Some(Duration::from_millis(198)));
        assert_eq!(ProvisioningSlo::of(Vec::new()).p99, None);
        assert!((ProvisioningSlo::default().success_rate() - 1.0).abs() < f64::EPSILON);
    }
}
