//! What the command line says.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, ValueEnum};
use provisioner_core::types::ControlPlaneId;

/// A signup service: every customer who signs up gets an own instance of the product.
#[derive(Debug, Parser)]
#[command(name = "signup", version, args_override_self = true)]
pub(crate) struct Args {
    /// Where to answer. A loopback address: there is no login. Port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = loopback)]
    pub(crate) listen: SocketAddr,
    /// The folder of the store and of the instances.
    #[arg(long, value_name = "DIR", default_value = ".signup")]
    pub(crate) state: PathBuf,
    /// The store, as a URL, instead of a file in the state folder: postgres://USER@HOST/DATABASE, which several copies of this
    /// service share. Better in the variable than here, where other users of the machine can read it. Needs the feature postgres
    /// of this package.
    #[arg(long, value_name = "URL", env = "SIGNUP_STORE", hide_env_values = true)]
    pub(crate) store: Option<String>,
    /// Where instances live.
    #[arg(long, value_enum, default_value_t = BackendKind::Process)]
    pub(crate) backend: BackendKind,
    /// The product's binary, for processes. Without it, the product is built first.
    #[arg(long, value_name = "PATH", conflicts_with = "image")]
    pub(crate) product: Option<PathBuf>,
    /// With k8s and appservice: the product's container image, which the cluster's nodes have or can pull, or App Service can.
    #[arg(long, value_name = "IMAGE", required_if_eq_any([("backend", "k8s"), ("backend", "appservice")]))]
    pub(crate) image: Option<String>,
    /// Whose all that is made is: another id for each service that shares a cluster or an account.
    #[arg(long, value_name = "ID", default_value = "signup", value_parser = control_plane)]
    pub(crate) control_plane: ControlPlaneId,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) cloud: CloudArgs,
    #[command(flatten)]
    pub(crate) account: AccountArgs,
    #[command(flatten)]
    pub(crate) group: GroupArgs,
    /// Offers two versions of the product that do not work, to see what happens then.
    #[arg(long)]
    pub(crate) demo_faults: bool,
    /// How long a move may take, retries included, before the engine gives up. For tests.
    #[arg(long, hide = true, value_name = "SECONDS")]
    pub(crate) move_deadline_seconds: Option<u64>,
    /// Kills the process at this numbered place of the engine; 0 only counts. For crash tests.
    #[arg(long, hide = true, value_name = "NUMBER", env = "SIGNUP_KILL_AT")]
    pub(crate) kill_at: Option<u64>,
}

/// Where instances live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendKind {
    /// Each is a process on this machine.
    Process,
    /// Each is a pod on a Kubernetes cluster: that of KUBECONFIG. Needs the feature k8s of this package.
    K8s,
    /// Each is an EC2 virtual machine. Needs the feature vm of this package.
    Vm,
    /// Each is an Azure Web App, in plans that they share. Needs the feature appservice of this package.
    Appservice,
}

/// Which Kubernetes cluster, and how it is used.
#[derive(Debug, clap::Args)]
#[cfg_attr(not(feature = "k8s"), allow(dead_code, reason = "only the Kubernetes backend reads all of them"))]
pub(crate) struct ClusterArgs {
    /// With k8s: the context of the kubeconfig, instead of the current one.
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// With k8s: all customers live in this namespace, which is there already, instead of each in one of its own.
    #[arg(long, value_name = "NAME")]
    pub(crate) shared_namespace: Option<String>,
    /// With k8s: the storage class of the data, instead of the cluster's default.
    #[arg(long, value_name = "NAME")]
    pub(crate) storage_class: Option<String>,
    /// With k8s: the class of the cluster's ingress controller. Without it, instances are reached inside the cluster alone.
    #[arg(long, value_name = "CLASS")]
    pub(crate) ingress_class: Option<String>,
    /// With an ingress class: the namespace of the controller, from where alone instances can be reached.
    #[arg(long, value_name = "NAME", default_value = "ingress-nginx")]
    pub(crate) ingress_namespace: String,
    /// With an ingress class: each instance answers at its id in this domain, which must lead to the ingress controller.
    #[arg(long, value_name = "DOMAIN", default_value = "localhost")]
    pub(crate) domain: String,
}

/// Where in a cloud.
#[derive(Debug, clap::Args)]
#[cfg_attr(
    not(any(feature = "vm", feature = "appservice")),
    allow(dead_code, reason = "only the backends of clouds read all of them")
)]
pub(crate) struct CloudArgs {
    /// With vm and appservice: the region, such as eu-central-1 or westeurope.
    #[arg(long, value_name = "NAME", required_if_eq_any([("backend", "vm"), ("backend", "appservice")]))]
    pub(crate) region: Option<String>,
    /// With vm and appservice: where the service is, instead of its own address.
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
}

/// How an AWS account is used. Credentials are found as the AWS command line finds them.
#[derive(Debug, clap::Args)]
#[cfg_attr(not(feature = "vm"), allow(dead_code, reason = "only the EC2 backend reads all of them"))]
pub(crate) struct AccountArgs {
    /// With vm: a subnet and its zone, such as subnet-0a:eu-central-1a. Given more than once: where there is no room in one, the
    /// next is tried.
    #[arg(long, value_name = "SUBNET:ZONE", required_if_eq("backend", "vm"), value_parser = place)]
    pub(crate) place: Vec<(String, String)>,
    /// With vm: the machine image that has the product, as ami-..., OWNER/PATTERN or lt-...
    #[arg(long, value_name = "IMAGE", required_if_eq("backend", "vm"))]
    pub(crate) vm_image: Option<String>,
    /// With vm: where that image has the product.
    #[arg(long, value_name = "PATH", default_value = "/usr/local/bin/product")]
    pub(crate) vm_product: String,
    /// With vm: a security group by id. Can be given more than once.
    #[arg(long, value_name = "ID")]
    pub(crate) security_group: Vec<String>,
    /// With vm: the size of the disk that machines boot from, in gibibytes, instead of as large as their image says.
    #[arg(long, value_name = "GIB")]
    pub(crate) root_gib: Option<u16>,
    /// With vm: this machine is in the machines' network, and asks the product itself whether it is ready.
    #[arg(long)]
    pub(crate) probes: bool,
}

/// Which resource group of Azure, and how it is used. Whoever runs this is signed in by workload identity, by managed identity or
/// by `az login`; or else a token is in the variable AZURE_ACCESS_TOKEN, which counts first.
#[derive(Debug, clap::Args)]
#[cfg_attr(not(feature = "appservice"), allow(dead_code, reason = "only the App Service backend reads all of them"))]
pub(crate) struct GroupArgs {
    /// With appservice: the id of the subscription.
    #[arg(long, value_name = "ID", required_if_eq("backend", "appservice"))]
    pub(crate) subscription: Option<String>,
    /// With appservice: the resource group, which has to be there.
    #[arg(long, value_name = "NAME", required_if_eq("backend", "appservice"))]
    pub(crate) resource_group: Option<String>,
    /// With appservice: the storage account of that group whose shares hold the data.
    #[arg(long, value_name = "NAME", required_if_eq("backend", "appservice"))]
    pub(crate) storage_account: Option<String>,
    /// With appservice: what the machine of a plan is.
    #[arg(long, value_name = "NAME", default_value = "B1")]
    pub(crate) sku: String,
    /// With appservice: how many customers share a plan.
    #[arg(long, value_name = "NUMBER", default_value_t = 8)]
    pub(crate) sites_per_plan: u32,
    /// With appservice: how many plans there may be.
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub(crate) plans_max: u32,
    /// With appservice: what the image runs, instead of what it says itself. Given more than once: the words of it.
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
    /// With appservice: a file with the certificates, in PEM, of whom alone to trust: a stand-in's, or a private cloud's.
    #[arg(long, value_name = "PATH")]
    pub(crate) ca_file: Option<PathBuf>,
}

fn place(text: &str) -> Result<(String, String), String> {
    let (subnet, zone) =
        text.split_once(':').ok_or("expected a subnet and its zone, such as subnet-0a:eu-central-1a")?;
    Ok((subnet.to_owned(), zone.to_owned()))
}

fn control_plane(text: &str) -> Result<ControlPlaneId, String> {
    ControlPlaneId::new(text).map_err(|error| error.to_string())
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => Err("expected a loopback address, such as 127.0.0.1:8080: this example has no login".into()),
        Err(_) => Err("expected an address and a port, such as 127.0.0.1:8080".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn a_cluster_needs_an_image_and_a_process_none() {
        let parse = |arguments: &str| Args::try_parse_from(format!("signup {arguments}").split_whitespace());
        assert!(parse("").unwrap().image.is_none());
        assert!(parse("--backend k8s").unwrap_err().to_string().contains("--image"));
        assert_eq!(parse("--backend k8s --image localhost/product:1").unwrap().backend, BackendKind::K8s);
        assert!(parse("--product /bin/product --image localhost/product:1").is_err());
        assert!(parse("--control-plane Not/One").is_err());
    }

    #[test]
    fn an_account_needs_a_region_a_place_and_an_image() {
        let parse = |arguments: &str| Args::try_parse_from(format!("signup {arguments}").split_whitespace());
        let error = parse("--backend vm").unwrap_err().to_string();
        assert!(["--region", "--place", "--vm-image"].iter().all(|flag| error.contains(flag)), "{error}");
        let full = "--backend vm --region eu-central-1 --place subnet-1:eu-central-1a --vm-image self/product-*";
        assert_eq!(parse(full).unwrap().account.place, [("subnet-1".to_owned(), "eu-central-1a".to_owned())]);
        assert!(parse("--backend vm --region x --vm-image y --place subnet-1").is_err());
    }

    #[test]
    fn a_resource_group_needs_all_that_says_where_it_is_and_an_image() {
        let parse = |arguments: &str| Args::try_parse_from(format!("signup {arguments}").split_whitespace());
        let error = parse("--backend appservice").unwrap_err().to_string();
        let needed = ["--subscription", "--resource-group", "--region", "--storage-account", "--image"];
        assert!(needed.iter().all(|flag| error.contains(flag)), "{error}");
        let full = "--backend appservice --subscription 0-1 --resource-group signup --region westeurope \
                    --storage-account signupdata --image example.com/product:1 --command /bin/product --command --fast";
        let group = parse(full).unwrap().group;
        assert_eq!((group.sku.as_str(), group.sites_per_plan, group.plans_max), ("B1", 8, 100));
        assert_eq!(group.command, ["/bin/product", "--fast"]);
        assert!(parse(&format!("{full} --plans-max many")).is_err());
    }

    #[test]
    fn only_loopback_addresses_are_listened_on() {
        assert!(loopback("127.0.0.1:0").is_ok() && loopback("[::1]:80").is_ok());
        assert!(loopback("0.0.0.0:8080").unwrap_err().contains("no login"));
        assert!(loopback("8080").unwrap_err().contains("a port"));
    }
}
