//! What is asked for by many at once, in one request: machines and volumes by whose they are, and machines started, stopped and
//! ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use aws_sdk_ec2::types::{EventCode, Filter, InstanceStatus, InstanceStatusSummary, SummaryStatus};
use futures::{FutureExt, future::BoxFuture};
use provisioner_account::{Batches, Many};
use provisioner_core::{
    ErrorKind, OpContext,
    types::{DataId, Incarnation, Reason},
};
use tokio_util::task::TaskTracker;

use crate::{
    calls::{Account, Calls, by, by_tag},
    digest::{Machine, Volume},
    error::{Failure, is_about_one},
    names,
};

/// How many values a filter takes: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html>.
const FILTER_MAX: usize = 200;
/// How many ids a request takes that names machines. The service takes more; a bad one among them costs a request each.
const IDS_MAX: usize = 100;
/// The longest that requests for many may take which change something: all of them, when they are asked for in halves.
const WRITE_MAX: Duration = Duration::from_secs(30);
/// The same for a read: all who ask meanwhile wait for it.
pub(crate) const READ_MAX: Duration = Duration::from_secs(10);

/// What the service says of a machine that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checks {
    pub(crate) state: CheckState,
    /// When the service is going to end or stop it, in milliseconds since 1970, and in which words.
    pub(crate) ends: Option<(i64, Reason)>,
}

/// How the checks of a machine stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CheckState {
    Passed,
    /// Not yet known.
    Pending,
    /// Since then, in milliseconds since 1970, if the service says so.
    Failed(Reason, Option<i64>),
}

type Machines = Arc<Vec<Machine>>;
type Volumes = Arc<Vec<Volume>>;
type Id = Box<str>;

#[derive(Debug)]
pub(crate) struct Fleet {
    account: Arc<Account>,
    machines: Batches<Incarnation, Machines, Failure>,
    volumes: Batches<Incarnation, Volumes, Failure>,
    data: Batches<DataId, Volumes, Failure>,
    checks: Batches<Id, Checks, Failure>,
    starts: Batches<Id, (), Failure>,
    stops: Batches<Id, (), Failure>,
    ends: Batches<Id, (), Failure>,
}

impl Fleet {
    pub(crate) fn new(account: &Arc<Account>, tasks: &TaskTracker) -> Self {
        Self {
            account: Arc::clone(account),
            machines: reads(account, tasks, names::INCARNATION, machines, |machine| machine.owner.incarnation),
            volumes: reads(account, tasks, names::INCARNATION, volumes, |volume| volume.owner.incarnation),
            data: reads(account, tasks, names::DATA, volumes, |volume| volume.owner.data.clone()),
            checks: checks(account, tasks),
            starts: writes(account, tasks, |account, cx, ids| {
                async move { account.during(&cx).start(ids).await }.boxed()
            }),
            stops: writes(account, tasks, |account, cx, ids| {
                async move { account.during(&cx).stop(ids).await }.boxed()
            }),
            ends: writes(account, tasks, |account, cx, ids| {
                async move { account.during(&cx).terminate(ids).await }.boxed()
            }),
        }
    }

    pub(crate) fn during<'a>(&'a self, cx: &'a OpContext) -> Calls<'a> {
        self.account.during(cx)
    }

    /// The machines of a making, also ended ones that the service shows still.
    pub(crate) async fn machines(&self, cx: &OpContext, of: Incarnation) -> Result<Vec<Machine>, Failure> {
        let all = self.machines.get(of, cx).await?;
        Ok(all.iter().filter(|machine| machine.owner.control_plane == cx.control_plane).cloned().collect())
    }

    /// The data volumes that a making was the last to use.
    pub(crate) async fn volumes(&self, cx: &OpContext, of: Incarnation) -> Result<Vec<Volume>, Failure> {
        let all = self.volumes.get(of, cx).await?;
        Ok(all.iter().filter(|volume| volume.owner.control_plane == cx.control_plane).cloned().collect())
    }

    /// The volumes with this data.
    pub(crate) async fn data(&self, cx: &OpContext, data: &DataId) -> Result<Vec<Volume>, Failure> {
        let all = self.data.get(data.clone(), cx).await?;
        Ok(all.iter().filter(|volume| volume.owner.control_plane == cx.control_plane).cloned().collect())
    }

    pub(crate) async fn checks(&self, cx: &OpContext, machine: &str) -> Result<Checks, Failure> {
        self.checks.get(machine.into(), cx).await
    }

    pub(crate) async fn start(&self, cx: &OpContext, machine: &str) -> Result<(), Failure> {
        self.starts.get(machine.into(), cx).await
    }

    pub(crate) async fn stop(&self, cx: &OpContext, machine: &str) -> Result<(), Failure> {
        self.stops.get(machine.into(), cx).await
    }

    pub(crate) async fn end(&self, cx: &OpContext, machine: &str) -> Result<(), Failure> {
        self.ends.get(machine.into(), cx).await
    }

    /// One machine by its id, whosever it is.
    pub(crate) async fn machine(&self, cx: &OpContext, id: &str) -> Result<Option<Machine>, Failure> {
        // A filter, as an id that is not there fails a request.
        let found = self.during(cx).all_machines(&by("instance-id", [id.to_owned()])).await?;
        Ok(found.iter().find_map(Machine::of))
    }
}

type Read<T> = fn(Arc<Account>, OpContext, Filter) -> BoxFuture<'static, Result<Vec<T>, Failure>>;

fn machines(account: Arc<Account>, cx: OpContext, filter: Filter) -> BoxFuture<'static, Result<Vec<Machine>, Failure>> {
    async move { Ok(account.during(&cx).all_machines(&filter).await?.iter().filter_map(Machine::of).collect()) }.boxed()
}

fn volumes(account: Arc<Account>, cx: OpContext, filter: Filter) -> BoxFuture<'static, Result<Vec<Volume>, Failure>> {
    async move { Ok(account.during(&cx).all_volumes(&filter).await?.iter().filter_map(Volume::of).collect()) }.boxed()
}

/// Reads things by a tag, and gives each caller those with its own value.
fn reads<K, T>(
    account: &Arc<Account>,
    tasks: &TaskTracker,
    tag: &'static str,
    read: Read<T>,
    key: fn(&T) -> K,
) -> Batches<K, Arc<Vec<T>>, Failure>
where
    K: Clone + Ord + ToString + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    let account = Arc::clone(account);
    Batches::new(FILTER_MAX, tasks, move |keys: BTreeSet<K>, many: Many| {
        let filter = by_tag(tag, keys.iter().map(ToString::to_string));
        let read = read(Arc::clone(&account), many.context(READ_MAX), filter);
        async move {
            let found = match read.await {
                Ok(found) => found,
                Err(failure) => return keys.into_iter().map(|key| (key, Err(failure.clone()))).collect(),
            };
            let mut of_each: BTreeMap<K, Vec<T>> = keys.into_iter().map(|key| (key, Vec::new())).collect();
            for thing in found {
                if let Some(own) = of_each.get_mut(&key(&thing)) {
                    own.push(thing);
                }
            }
            of_each.into_iter().map(|(key, own)| (key, Ok(Arc::new(own)))).collect()
        }
    })
}

/// What a request for many asks of one or several machines.
type Ask<T> = fn(Arc<Account>, OpContext, Vec<String>) -> BoxFuture<'static, Result<T, Failure>>;

/// Asks for all at once. One bad machine fails a request: then for each half of them, until it is alone.
async fn ask_all<T>(
    account: Arc<Account>,
    many: Many,
    ids: &BTreeSet<Id>,
    ask: Ask<T>,
) -> BTreeMap<Id, Result<T, Failure>>
where
    T: Clone,
{
    // One deadline for all of them.
    let cx = many.context(WRITE_MAX);
    let mut answers = BTreeMap::new();
    let mut parts = vec![ids.iter().cloned().collect::<Vec<_>>()];
    while let Some(mut part) = parts.pop() {
        let answer = ask(Arc::clone(&account), cx.clone(), part.iter().map(ToString::to_string).collect()).await;
        if part.len() > 1 && answer.as_ref().is_err_and(is_about_one) {
            parts.push(part.split_off(part.len() / 2));
            parts.push(part);
        } else {
            answers.extend(part.into_iter().map(|id| (id, answer.clone())));
        }
    }
    answers
}

fn checks(account: &Arc<Account>, tasks: &TaskTracker) -> Batches<Id, Checks, Failure> {
    let account = Arc::clone(account);
    Batches::new(IDS_MAX, tasks, move |ids: BTreeSet<Id>, many: Many| {
        let account = Arc::clone(&account);
        async move {
            let ask: Ask<Vec<InstanceStatus>> =
                |account, cx, ids| async move { account.during(&cx).statuses(ids).await }.boxed();
            let answers = ask_all(account, many, &ids, ask).await;
            let unknown = || Checks { state: CheckState::Pending, ends: None };
            let checked = answers.into_iter().map(|(id, answer)| {
                let told = match answer {
                    // Not shown yet, or no more.
                    Err(failure) if failure.kind == ErrorKind::NotFound => Ok(unknown()),
                    answer => answer.map(|all| {
                        let own = all.iter().find(|one| one.instance_id() == Some(&*id));
                        own.map_or_else(unknown, Checks::of)
                    }),
                };
                (id, told)
            });
            checked.collect()
        }
    })
}

fn writes(account: &Arc<Account>, tasks: &TaskTracker, ask: Ask<()>) -> Batches<Id, (), Failure> {
    let account = Arc::clone(account);
    Batches::new(IDS_MAX, tasks, move |ids: BTreeSet<Id>, many: Many| {
        let account = Arc::clone(&account);
        async move { ask_all(account, many, &ids, ask).await }
    })
}

impl Checks {
    fn of(status: &InstanceStatus) -> Self {
        // What is planned for a machine that will end. What only reboots it passes.
        let ends = status.events().iter().filter_map(|event| {
            let (code, text) = (event.code()?, event.description()?);
            let ends = matches!(code, EventCode::InstanceRetirement | EventCode::InstanceStop);
            let is_over = text.starts_with("[Completed]") || text.starts_with("[Canceled]");
            let at = event.not_before().and_then(|at| at.to_millis().ok()).unwrap_or_default();
            (ends && !is_over).then(|| (at, Reason::new("retirement", format!("{}: {text}", code.as_str()))))
        });
        let ends = ends.min_by_key(|(at, _)| *at);
        let of = |summary: Option<&InstanceStatusSummary>| summary.and_then(InstanceStatusSummary::status).cloned();
        let all = [("the system", status.system_status()), ("the machine", status.instance_status())];
        let is_impaired = |summary| of(summary) == Some(SummaryStatus::Impaired);
        let state = match all.into_iter().find(|(_, summary)| is_impaired(*summary)) {
            Some((which, summary)) => {
                let details = summary.map(InstanceStatusSummary::details).unwrap_or_default();
                let since = details.iter().filter_map(|detail| detail.impaired_since()?.to_millis().ok()).min();
                CheckState::Failed(Reason::new("status-check", format!("the status check of {which} fails")), since)
            }
            None if all.iter().all(|(_, summary)| of(*summary) == Some(SummaryStatus::Ok)) => CheckState::Passed,
            None => CheckState::Pending,
        };
        Self { state, ends }
    }
}
