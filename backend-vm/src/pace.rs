//! What the service counts by itself, and how much of each it takes.

use provisioner_account::Bucket;
use serde::{Deserialize, Serialize};

/// What the service counts by itself; see
/// <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    /// RunInstances, by requests.
    Run,
    /// StartInstances, by requests.
    Start,
    /// StopInstances, by requests.
    Stop,
    /// TerminateInstances, by requests.
    Terminate,
    /// The machines that requests to start name. Those that are launched are one for each request.
    StartMachines,
    /// The machines that requests to stop name.
    StopMachines,
    /// The machines that requests to terminate name.
    TerminateMachines,
    /// Describe calls that are filtered or paged.
    Describe,
    /// CreateTags and DeleteTags.
    Tag,
    /// Everything else that changes something.
    Change,
    /// Who the account is: another service, which counts by itself.
    Identity,
}

/// The buckets of an account and region. The defaults are those that are documented; accounts can have others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Buckets {
    /// RunInstances.
    pub run: Bucket,
    /// StartInstances.
    pub start: Bucket,
    /// StopInstances.
    pub stop: Bucket,
    /// TerminateInstances.
    pub terminate: Bucket,
    /// The machines that are named by StartInstances: many in one request count each.
    pub start_machines: Bucket,
    /// The machines that are named by StopInstances.
    pub stop_machines: Bucket,
    /// The machines that are named by TerminateInstances.
    pub terminate_machines: Bucket,
    /// Describe calls.
    pub describe: Bucket,
    /// CreateTags and DeleteTags.
    pub tag: Bucket,
    /// Everything else that changes something.
    pub change: Bucket,
}

impl Default for Buckets {
    fn default() -> Self {
        let bucket = |size, refill| Bucket { size, refill };
        Self {
            run: bucket(5, 2),
            start: bucket(5, 2),
            stop: bucket(50, 5),
            terminate: bucket(100, 5),
            start_machines: bucket(1000, 2),
            stop_machines: bucket(1000, 20),
            terminate_machines: bucket(1000, 20),
            describe: bucket(100, 20),
            tag: bucket(100, 10),
            change: bucket(50, 5),
        }
    }
}

impl Buckets {
    /// Each with the name of its field.
    pub(crate) fn all(&self) -> [(Family, &'static str, Bucket); 11] {
        [
            (Family::Run, "run", self.run),
            (Family::Start, "start", self.start),
            (Family::Stop, "stop", self.stop),
            (Family::Terminate, "terminate", self.terminate),
            (Family::StartMachines, "start_machines", self.start_machines),
            (Family::StopMachines, "stop_machines", self.stop_machines),
            (Family::TerminateMachines, "terminate_machines", self.terminate_machines),
            (Family::Describe, "describe", self.describe),
            (Family::Tag, "tag", self.tag),
            (Family::Change, "change", self.change),
            (Family::Identity, "identity", Bucket { size: 10, refill: 10 }),
        ]
    }
}
