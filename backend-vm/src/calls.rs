//! The requests to the service: each waits for its turn, ends by its caller's deadline, and has its failure read.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use aws_config::{BehaviorVersion, Region, retry::RetryConfig};
use aws_sdk_ec2::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    primitives::Blob,
    types::{
        AttributeValue, Filter, Image, Instance, InstanceStatus, InstanceType, ResourceType, SecureBlobAttributeValue,
        Tag, TagSpecification, Volume,
    },
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use provisioner_account::{Pace, Page, until};
use provisioner_core::{ErrorKind, OpContext};
use tokio::sync::OnceCell;

use crate::{
    config::VmConfig,
    error::{self, Failure, THROTTLED_PAUSE},
    launch::Launch,
    pace::Family,
};

/// How many things a page has: the most for most calls.
const PAGE: i32 = 1000;

/// Clients of the two services that are asked.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    pub(crate) ec2: Client,
    pub(crate) sts: aws_sdk_sts::Client,
}

/// The account and region, as far as calls go.
#[derive(Debug)]
pub(crate) struct Account {
    region: String,
    endpoint: Option<String>,
    clients: OnceCell<Clients>,
    pace: Arc<Pace<Family>>,
}

impl Account {
    pub(crate) fn new(config: &VmConfig, clients: Option<Clients>) -> Self {
        Self {
            region: config.region.clone(),
            endpoint: config.endpoint.clone(),
            clients: clients.map(|clients| OnceCell::new_with(Some(clients))).unwrap_or_default(),
            pace: Pace::new(config.buckets.all().map(|(family, _, bucket)| (family, bucket))),
        }
    }

    pub(crate) fn during<'a>(&'a self, cx: &'a OpContext) -> Calls<'a> {
        Calls { account: self, cx }
    }

    /// Credentials are found as the AWS command line finds them, at the first call.
    async fn clients(&self) -> &Clients {
        self.clients
            .get_or_init(|| async {
                let http = aws_smithy_http_client::Builder::new()
                    .tls_provider(Provider::Rustls(CryptoMode::Ring))
                    .build_https();
                let mut loader = aws_config::defaults(BehaviorVersion::latest())
                    .region(Region::new(self.region.clone()))
                    .http_client(http)
                    // The engine owns them: each of its tries is one that its operators can see.
                    .retry_config(RetryConfig::disabled());
                if let Some(endpoint) = &self.endpoint {
                    loader = loader.endpoint_url(endpoint);
                }
                let config = loader.load().await;
                Clients { ec2: Client::new(&config), sts: aws_sdk_sts::Client::new(&config) }
            })
            .await
    }
}

/// Requests on behalf of one caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Calls<'a> {
    account: &'a Account,
    pub(crate) cx: &'a OpContext,
}

/// A filter by what one tag is.
pub(crate) fn by_tag(key: &str, values: impl IntoIterator<Item = String>) -> Filter {
    by(&format!("tag:{key}"), values)
}

pub(crate) fn by(name: &str, values: impl IntoIterator<Item = String>) -> Filter {
    Filter::builder().name(name).set_values(Some(values.into_iter().collect())).build()
}

pub(crate) type Tags = BTreeMap<String, String>;

fn tags_of(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

pub(crate) fn tagged(resource: ResourceType, tags: &Tags) -> TagSpecification {
    TagSpecification::builder().resource_type(resource).set_tags(Some(tags_of(tags))).build()
}

impl Calls<'_> {
    /// Waits until so many of a family may be asked for.
    async fn take(&self, family: Family, count: usize, call: &'static str) -> Result<(), Failure> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.account.pace.take(family, count, self.cx).await.map_err(|why| Failure::not_sent(why, call))
    }

    async fn send<T, E: ProvideErrorMetadata>(
        &self,
        family: Family,
        call: &'static str,
        request: impl Future<Output = Result<T, SdkError<E>>> + Send,
    ) -> Result<T, Failure> {
        let pace = &self.account.pace;
        self.take(family, 1, call).await?;
        let cut = |kind, why| Failure::new(kind, format!("{call}: {why}")).in_doubt();
        let given_up = async {
            // What changes something and was sent is seen through.
            match family {
                Family::Describe | Family::Identity => self.cx.cancel.cancelled().await,
                _ => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            answer = request => answer,
            () = until(self.cx.deadline) => return Err(cut(ErrorKind::Timeout, "no answer in time")),
            () = given_up => return Err(cut(ErrorKind::Cancelled, "given up before its answer")),
        };
        answer.map_err(|error| {
            let failure = error::failure_of(call, &error);
            if failure.kind == ErrorKind::Throttled {
                pace.refused(family, THROTTLED_PAUSE);
            }
            match family {
                Family::Run | Family::Describe | Family::Identity => failure,
                // Rights depend on tags, and what is gone, or not known everywhere yet, has none.
                _ => error::perhaps_gone(failure),
            }
        })
    }

    async fn ec2(&self) -> &Client {
        &self.account.clients().await.ec2
    }

    // Reads

    /// The account's number.
    pub(crate) async fn account(&self) -> Result<String, Failure> {
        let sts = &self.account.clients().await.sts;
        let answer = self.send(Family::Identity, "GetCallerIdentity", sts.get_caller_identity().send()).await?;
        answer.account.ok_or_else(|| Failure::new(ErrorKind::Internal, "GetCallerIdentity: no account in the answer"))
    }

    pub(crate) async fn machines(&self, filters: &[Filter], next: Option<String>) -> Result<Page<Instance>, Failure> {
        let filters = Some(filters.to_vec());
        let request = self.ec2().await.describe_instances().set_filters(filters).max_results(PAGE);
        let answer = self.send(Family::Describe, "DescribeInstances", request.set_next_token(next).send()).await?;
        let machines = answer.reservations.into_iter().flatten().flat_map(|it| it.instances.unwrap_or_default());
        Ok((machines.collect(), answer.next_token.filter(|next| !next.is_empty())))
    }

    pub(crate) async fn volumes(&self, filter: &Filter, next: Option<String>) -> Result<Page<Volume>, Failure> {
        let request = self.ec2().await.describe_volumes().filters(filter.clone()).max_results(PAGE);
        let answer = self.send(Family::Describe, "DescribeVolumes", request.set_next_token(next).send()).await?;
        Ok((answer.volumes.unwrap_or_default(), answer.next_token.filter(|next| !next.is_empty())))
    }

    /// All pages of machines.
    pub(crate) async fn all_machines(&self, filter: &Filter) -> Result<Vec<Instance>, Failure> {
        let (mut all, mut next) = self.machines(std::slice::from_ref(filter), None).await?;
        while next.is_some() {
            let (more, then) = self.machines(std::slice::from_ref(filter), next).await?;
            all.extend(more);
            next = then;
        }
        Ok(all)
    }

    /// All pages of volumes.
    pub(crate) async fn all_volumes(&self, filter: &Filter) -> Result<Vec<Volume>, Failure> {
        let (mut all, mut next) = self.volumes(filter, None).await?;
        while next.is_some() {
            let (more, then) = self.volumes(filter, next).await?;
            all.extend(more);
            next = then;
        }
        Ok(all)
    }

    /// How the machines that run do.
    pub(crate) async fn statuses(&self, machines: Vec<String>) -> Result<Vec<InstanceStatus>, Failure> {
        let request = self.ec2().await.describe_instance_status().set_instance_ids(Some(machines));
        let answer = self.send(Family::Describe, "DescribeInstanceStatus", request.send()).await?;
        Ok(answer.instance_statuses.unwrap_or_default())
    }

    /// The same of all that run in the account and region, by pages.
    pub(crate) async fn all_statuses(&self, next: Option<String>) -> Result<Page<InstanceStatus>, Failure> {
        let request = self.ec2().await.describe_instance_status().max_results(PAGE).set_next_token(next);
        let answer = self.send(Family::Describe, "DescribeInstanceStatus", request.send()).await?;
        Ok((answer.instance_statuses.unwrap_or_default(), answer.next_token.filter(|next| !next.is_empty())))
    }

    /// Images that machines can be made of.
    pub(crate) async fn images(
        &self,
        ids: Vec<String>,
        owners: Vec<String>,
        name: Option<String>,
    ) -> Result<Vec<Image>, Failure> {
        let mut request = self.ec2().await.describe_images();
        if !ids.is_empty() {
            request = request.set_image_ids(Some(ids));
        }
        if let Some(name) = name {
            request = request.set_owners(Some(owners));
            request = request.filters(by("name", [name]));
        }
        request = request.filters(by("state", ["available".to_owned()]));
        let answer = self.send(Family::Describe, "DescribeImages", request.send()).await?;
        Ok(answer.images.unwrap_or_default())
    }

    /// That a launch template is there, and this version of it.
    pub(crate) async fn expect_template(&self, id: &str, version: Option<&str>) -> Result<(), Failure> {
        let request = self.ec2().await.describe_launch_template_versions().launch_template_id(id);
        let request = request.versions(version.unwrap_or("$Default"));
        self.send(Family::Describe, "DescribeLaunchTemplateVersions", request.send()).await.map(drop)
    }

    // Writes

    /// Makes one machine, or tells of the one that this token made before.
    pub(crate) async fn run(&self, launch: &Launch) -> Result<Instance, Failure> {
        let request = launch.request(self.ec2().await);
        let answer = self.send(Family::Run, "RunInstances", request.send()).await?;
        let machine = answer.instances.into_iter().flatten().next();
        machine.ok_or_else(|| Failure::new(ErrorKind::Internal, "RunInstances: no machine in the answer").in_doubt())
    }

    pub(crate) async fn start(&self, machines: Vec<String>) -> Result<(), Failure> {
        self.take(Family::StartMachines, machines.len(), "StartInstances").await?;
        let request = self.ec2().await.start_instances().set_instance_ids(Some(machines));
        self.send(Family::Start, "StartInstances", request.send()).await.map(drop)
    }

    pub(crate) async fn stop(&self, machines: Vec<String>) -> Result<(), Failure> {
        self.take(Family::StopMachines, machines.len(), "StopInstances").await?;
        let request = self.ec2().await.stop_instances().set_instance_ids(Some(machines));
        self.send(Family::Stop, "StopInstances", request.send()).await.map(drop)
    }

    pub(crate) async fn terminate(&self, machines: Vec<String>) -> Result<(), Failure> {
        self.take(Family::TerminateMachines, machines.len(), "TerminateInstances").await?;
        let request = self.ec2().await.terminate_instances().set_instance_ids(Some(machines));
        self.send(Family::Terminate, "TerminateInstances", request.send()).await.map(drop)
    }

    pub(crate) async fn reboot(&self, machine: &str) -> Result<(), Failure> {
        let request = self.ec2().await.reboot_instances().instance_ids(machine);
        self.send(Family::Change, "RebootInstances", request.send()).await.map(drop)
    }

    pub(crate) async fn set_type(&self, machine: &str, kind: &str) -> Result<(), Failure> {
        let kind = AttributeValue::builder().value(InstanceType::from(kind).as_str()).build();
        let request = self.ec2().await.modify_instance_attribute().instance_id(machine).instance_type(kind);
        self.send(Family::Change, "ModifyInstanceAttribute", request.send()).await.map(drop)
    }

    pub(crate) async fn set_user_data(&self, machine: &str, user_data: Vec<u8>) -> Result<(), Failure> {
        let data = SecureBlobAttributeValue::builder().value(Blob::new(user_data)).build();
        let request = self.ec2().await.modify_instance_attribute().instance_id(machine).user_data(data);
        self.send(Family::Change, "ModifyInstanceAttribute", request.send()).await.map(drop)
    }

    pub(crate) async fn attach(&self, volume: &str, machine: &str) -> Result<(), Failure> {
        let request =
            self.ec2().await.attach_volume().volume_id(volume).instance_id(machine).device(crate::names::DEVICE);
        self.send(Family::Change, "AttachVolume", request.send()).await.map(drop)
    }

    pub(crate) async fn grow(&self, volume: &str, size_gib: i32) -> Result<(), Failure> {
        let request = self.ec2().await.modify_volume().volume_id(volume).size(size_gib);
        self.send(Family::Change, "ModifyVolume", request.send()).await.map(drop)
    }

    pub(crate) async fn delete_volume(&self, volume: &str) -> Result<(), Failure> {
        let request = self.ec2().await.delete_volume().volume_id(volume);
        self.send(Family::Change, "DeleteVolume", request.send()).await.map(drop)
    }

    pub(crate) async fn tag(&self, resource: &str, tags: &Tags) -> Result<(), Failure> {
        let request = self.ec2().await.create_tags().resources(resource).set_tags(Some(tags_of(tags)));
        self.send(Family::Tag, "CreateTags", request.send()).await.map(drop)
    }

    pub(crate) async fn untag(&self, resource: &str, keys: Vec<String>) -> Result<(), Failure> {
        let tags = keys.into_iter().map(|key| Tag::builder().key(key).build()).collect();
        let request = self.ec2().await.delete_tags().resources(resource).set_tags(Some(tags));
        self.send(Family::Tag, "DeleteTags", request.send()).await.map(drop)
    }
}
