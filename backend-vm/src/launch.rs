//! What a machine is made of: spec in, one request out. Pure.

use aws_sdk_ec2::{
    Client,
    operation::run_instances::builders::RunInstancesFluentBuilder,
    types::{
        BlockDeviceMapping, CreditSpecificationRequest, EbsBlockDevice, HttpTokensState,
        IamInstanceProfileSpecification, InstanceMetadataOptionsRequest, InstanceNetworkInterfaceSpecification,
        InstanceType, LaunchTemplateSpecification, ResourceType, VolumeType,
    },
};
use base64::{Engine, prelude::BASE64_STANDARD};
use provisioner_core::types::{ControlPlaneId, InstanceSpec, Target};
use sha2::{Digest, Sha256};

use crate::{
    boot::{self, Disk},
    calls::{Tags, tagged},
    config::{MachineType, Place, VmConfig},
    digest::{Intended, Product},
    images::Image,
    names,
};

/// One machine that is to be made.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) token: String,
    pub(crate) image: Image,
    pub(crate) kind: MachineType,
    pub(crate) place: Place,
    pub(crate) user_data: Vec<u8>,
    pub(crate) tags: Tags,
    /// Of a data volume that is made with it. `None`: one that is there is attached later.
    pub(crate) volume_gib: Option<i32>,
    pub(crate) config: VmConfig,
}

impl Launch {
    pub(crate) fn request(&self, client: &Client) -> RunInstancesFluentBuilder {
        let config = &self.config;
        let mut request = client
            .run_instances()
            .min_count(1)
            .max_count(1)
            .client_token(&self.token)
            .instance_type(InstanceType::from(self.kind.name.as_str()))
            .user_data(BASE64_STANDARD.encode(&self.user_data))
            .tag_specifications(tagged(ResourceType::Instance, &self.tags))
            .tag_specifications(tagged(ResourceType::Volume, &self.owner_tags()))
            .tag_specifications(tagged(ResourceType::NetworkInterface, &self.owner_tags()));
        request = match &self.image {
            Image::Ami { id, root_device } => request.image_id(id).set_block_device_mappings(Some(vec![
                BlockDeviceMapping::builder()
                    .device_name(root_device)
                    .ebs(
                        self.disk()
                            .delete_on_termination(true)
                            .set_volume_size(config.root_gib.map(Into::into))
                            .build(),
                    )
                    .build(),
            ])),
            // Its disks are as the template says.
            Image::Template { id, version } => {
                let template =
                    LaunchTemplateSpecification::builder().launch_template_id(id).set_version(version.clone());
                request.launch_template(template.build())
            }
        };
        // Version 1 answers whoever can have the product fetch an address; see
        // <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-IMDS-existing-instances.html>.
        let metadata = InstanceMetadataOptionsRequest::builder().http_tokens(HttpTokensState::Required);
        request = request.metadata_options(metadata.http_put_response_hop_limit(1).build());
        if let Some(size) = self.volume_gib {
            let data = self.disk().volume_size(size).delete_on_termination(false).build();
            request = request
                .block_device_mappings(BlockDeviceMapping::builder().device_name(names::DEVICE).ebs(data).build());
        }
        let groups = (!config.security_groups.is_empty()).then(|| config.security_groups.clone());
        request = match config.public_address {
            None => request.subnet_id(&self.place.subnet).set_security_group_ids(groups),
            Some(public) => request.network_interfaces(
                InstanceNetworkInterfaceSpecification::builder()
                    .device_index(0)
                    .subnet_id(&self.place.subnet)
                    .set_groups(groups)
                    .associate_public_ip_address(public)
                    .delete_on_termination(true)
                    .build(),
            ),
        };
        // Of those that save up for bursts, the service's own default is to sell more without an end; see
        // <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/burstable-performance-instances-unlimited-mode.html>.
        if self.kind.is_burstable() && !config.unlimited_cpu {
            request =
                request.credit_specification(CreditSpecificationRequest::builder().cpu_credits("standard").build());
        }
        match &config.instance_profile {
            Some(name) => request.iam_instance_profile(IamInstanceProfileSpecification::builder().name(name).build()),
            None => request,
        }
    }

    fn disk(&self) -> aws_sdk_ec2::types::builders::EbsBlockDeviceBuilder {
        let disk = EbsBlockDevice::builder().volume_type(VolumeType::Gp3).encrypted(true);
        disk.set_kms_key_id(self.config.kms_key.clone())
    }

    /// What is made beside the machine says whose it is. The rest is the machine's.
    fn owner_tags(&self) -> Tags {
        let of_owner =
            [names::CONTROL_PLANE, names::INSTANCE, names::INCARNATION, names::DATA, names::TENANT, names::NAME];
        let tags =
            self.tags.iter().filter(|(key, _)| of_owner.contains(&key.as_str()) || key.starts_with(names::LABEL));
        tags.map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// Who a target's things belong to.
pub(crate) fn owner_tags(control_plane: &ControlPlaneId, target: &Target) -> Tags {
    let tags = [
        (names::CONTROL_PLANE, control_plane.to_string()),
        (names::INSTANCE, target.id.to_string()),
        (names::INCARNATION, target.incarnation.to_string()),
        (names::DATA, target.data.id().to_string()),
        (names::TENANT, target.tenant.digest()),
        (names::NAME, names::shown(control_plane, &target.id, target.incarnation)),
    ];
    tags.map(|(key, value)| (key.to_owned(), value)).into()
}

/// What a machine says of the spec that it is at, and that it is to run.
pub(crate) fn spec_tags(target: &Target, region: &str) -> Tags {
    let spec = &target.spec;
    let tags = [
        (names::GENERATION, target.generation.to_string()),
        (names::INTENDED, Intended::Running.as_str().to_owned()),
        (names::BOOT, boot_digest(spec, region)),
        (names::IMAGE, image_digest(spec)),
        (names::SIZE, size(spec)),
        (names::SPEC, spec_digest(spec)),
        (names::PRODUCT, product(spec).to_tag()),
    ];
    let labels = spec.labels.iter().map(|(key, value)| (format!("{}{key}", names::LABEL), value.to_string()));
    tags.map(|(key, value)| (key.to_owned(), value)).into_iter().chain(labels).collect()
}

fn product(spec: &InstanceSpec) -> Product {
    Product {
        port: boot::port(spec),
        start_timeout_seconds: spec.workload.start_timeout_seconds,
        health_path: spec.workload.health_path.as_str().into(),
    }
}

/// What a spec says of the size, as the machine's tag has it.
pub(crate) fn size(spec: &InstanceSpec) -> String {
    format!("{} {}", spec.size.cpu_millis, spec.size.memory_mib)
}

/// Tells boot scripts apart, whether or not they may format the volume.
pub(crate) fn boot_digest(spec: &InstanceSpec, region: &str) -> String {
    digest(boot::script(spec, region, Disk::default()).as_bytes())
}

/// Tells specs apart.
pub(crate) fn spec_digest(spec: &InstanceSpec) -> String {
    // Whatever is in it is in an order of its own.
    digest(&serde_json::to_vec(spec).expect("a spec serializes"))
}

/// Tells images apart, as specs name them: the newest of a pattern may be another one each time.
pub(crate) fn image_digest(spec: &InstanceSpec) -> String {
    digest(spec.workload.vm_image.as_deref().unwrap_or_default().as_bytes())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Disks come in whole gibibytes.
pub(crate) fn volume_gib(spec: &InstanceSpec) -> i32 {
    i32::try_from(spec.data.size_mib.div_ceil(1024)).unwrap_or(i32::MAX)
}
