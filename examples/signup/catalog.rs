//! What can be signed up for: plans and versions, and the specs they stand for.

use provisioner_core::types::{
    DataVolume, ExpiryPolicy, HostName, IdlePolicy, InstanceId, InstanceSpec, InvalidSpec, LabelKey, LabelValue, Size,
    TenantId, VariableName, Workload,
};
use serde::Serialize;

/// The label that says which plan an instance is on.
const PLAN_LABEL: &str = "plan";

/// What can be signed up for.
#[derive(Debug, Clone)]
pub(crate) struct Catalog {
    product: Product,
    demo_faults: bool,
}

/// What runs for a customer.
#[derive(Debug, Clone)]
pub(crate) enum Product {
    /// A binary on this machine.
    Binary(String),
    /// A container image.
    Image {
        image: String,
        /// What it runs. Empty: what it says itself.
        command: Vec<String>,
        /// Each instance answers at its id in this domain. `None`: at the address that the backend gives it.
        domain: Option<String>,
    },
    /// A machine image.
    Machine {
        image: String,
        /// Where it has the product.
        program: String,
    },
}

/// The port that the product listens on where it has an address of its own.
const OWN_PORT: u16 = 8080;

/// One plan. Its prices are made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it is for, in a sentence.
    pub(crate) description: &'static str,
    /// Thousandths of a CPU.
    pub(crate) cpu_millis: u32,
    /// Mebibytes of memory.
    pub(crate) memory_mib: u32,
    /// Mebibytes of data.
    pub(crate) data_mib: u32,
    /// Minutes without a request until it may be put to sleep.
    pub(crate) sleeps_after_minutes: Option<u32>,
    /// Days until it is suspended by itself.
    pub(crate) ends_after_days: Option<u32>,
    /// What it might cost the vendor in a month awake, in dollars.
    pub(crate) awake_dollars: u32,
    /// And asleep.
    pub(crate) asleep_dollars: u32,
}

const PLANS: [Plan; 3] = [
    Plan {
        name: "trial",
        description: "For looking around. Ends after 30 days.",
        cpu_millis: 250,
        memory_mib: 256,
        data_mib: 256,
        sleeps_after_minutes: Some(15),
        ends_after_days: Some(30),
        awake_dollars: 9,
        asleep_dollars: 1,
    },
    Plan {
        name: "team",
        description: "For a team that writes now and then.",
        cpu_millis: 500,
        memory_mib: 512,
        data_mib: 1024,
        sleeps_after_minutes: Some(120),
        ends_after_days: None,
        awake_dollars: 19,
        asleep_dollars: 2,
    },
    Plan {
        name: "business",
        description: "For all of a company.",
        cpu_millis: 1000,
        memory_mib: 1024,
        data_mib: 4096,
        sleeps_after_minutes: None,
        ends_after_days: None,
        awake_dollars: 39,
        asleep_dollars: 4,
    },
];

/// The versions that work, oldest first.
const VERSIONS: [&str; 3] = ["1.0", "1.1", "2.0"];
/// What a sign-up gets that names no version: not the newest, so that there is something to upgrade to.
const VERSION_DEFAULT: &str = "1.1";
/// Versions that do not work, and the fault that the product is told to have.
const BROKEN: [(&str, &str); 2] = [("broken-exit", "exit"), ("broken-silent", "never-listen")];

impl Catalog {
    /// What this product can be signed up for.
    pub(crate) fn new(product: Product, demo_faults: bool) -> Self {
        Self { product, demo_faults }
    }

    /// Every plan.
    pub(crate) fn plans(&self) -> &'static [Plan] {
        &PLANS
    }

    /// Every version, oldest first, broken ones last.
    pub(crate) fn versions(&self) -> Vec<&'static str> {
        let broken = BROKEN.iter().filter(|_| self.demo_faults).map(|(version, _)| *version);
        VERSIONS.into_iter().chain(broken).collect()
    }

    /// What a sign-up gets that names no version.
    pub(crate) fn version_default(&self) -> &'static str {
        VERSION_DEFAULT
    }

    /// The spec of this tenant's instance on this plan, in this version.
    ///
    /// It is a function of these four alone. So an upgrade needs not read the spec that is in force, and two of them at
    /// once cannot undo each other's changes.
    pub(crate) fn spec(
        &self,
        id: &InstanceId,
        tenant: &TenantId,
        plan: &str,
        version: &str,
    ) -> Result<InstanceSpec, InvalidSpec> {
        let plan = PLANS.iter().find(|known| known.name == plan).ok_or_else(|| {
            InvalidSpec::new(
                "plan",
                format!("no such plan: expected one of {}", PLANS.map(|plan| plan.name).join(", ")),
            )
        })?;
        let versions = self.versions();
        if !versions.contains(&version) {
            let problem = format!("no such version: expected one of {}", versions.join(", "));
            return Err(InvalidSpec::new("version", problem));
        }
        let mut spec = InstanceSpec::new(Workload {
            health_path: "/healthz".into(),
            start_timeout_seconds: 20,
            stop_grace_seconds: 8,
            ..Workload::new(version)
        });
        self.product.put_into(&mut spec, id)?;
        spec.size = Size { cpu_millis: plan.cpu_millis, memory_mib: plan.memory_mib };
        spec.data = DataVolume { size_mib: plan.data_mib };
        spec.idle = IdlePolicy { sleep_after_seconds: plan.sleeps_after_minutes.map(|minutes| minutes * 60) };
        spec.expiry = ExpiryPolicy { suspend_after_seconds: plan.ends_after_days.map(|days| days * 24 * 3600) };
        let fault = BROKEN.iter().find(|(broken, _)| *broken == version).map(|(_, fault)| *fault);
        let variables = [
            Some(("TENANT", tenant.as_str())),
            Some(("PRODUCT_VERSION", version)),
            fault.map(|fault| ("PRODUCT_FAULT", fault)),
        ];
        for (name, value) in variables.into_iter().flatten() {
            let name = VariableName::new(name).expect("it is one");
            spec.environment.insert(name, value.to_owned());
        }
        let label = (LabelKey::new(PLAN_LABEL).expect("it is one"), LabelValue::new(plan.name).expect("it is one"));
        spec.labels.extend([label]);
        Ok(spec)
    }

    /// The plan that a spec is on.
    pub(crate) fn plan_of(spec: &InstanceSpec) -> Option<&str> {
        spec.labels.get(PLAN_LABEL).map(LabelValue::as_str)
    }
}

impl Product {
    /// Says in a spec how it runs, and how it is reached.
    fn put_into(&self, spec: &mut InstanceSpec, id: &InstanceId) -> Result<(), InvalidSpec> {
        match self {
            Self::Binary(path) => spec.workload.command = vec![path.clone()],
            Self::Image { image, command, domain } => {
                spec.workload.image = Some(image.clone());
                spec.workload.command.clone_from(command);
                spec.workload.port = Some(OWN_PORT);
                // Nobody but the cluster, or the front door of a site, reaches the address of a container.
                let address = VariableName::new("ADDRESS").expect("it is one");
                spec.environment.insert(address, "0.0.0.0".to_owned());
                if let Some(domain) = domain {
                    let name = format!("{id}.{domain}");
                    let host = HostName::new(&name);
                    let host = host.map_err(|_| InvalidSpec::new("id", format!("{name} is no host name")))?;
                    spec.host_names.insert(host);
                }
            }
            Self::Machine { image, program } => {
                spec.workload.vm_image = Some(image.clone());
                spec.workload.port = Some(OWN_PORT);
                let start =
                    format!("export ADDRESS=\"${{ADDRESS:-0.0.0.0}}\"\nexec '{}'\n", program.replace('\'', r"'\''"));
                spec.workload.boot_script = Some(start);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(demo_faults: bool) -> Catalog {
        Catalog::new(Product::Binary("/bin/product".into()), demo_faults)
    }

    fn acme() -> InstanceId {
        InstanceId::new("acme").unwrap()
    }

    #[test]
    fn an_image_listens_for_the_cluster_and_has_a_host_name_where_there_is_a_domain() {
        let tenant = TenantId::new("Acme").unwrap();
        for domain in [None, Some("localhost".to_owned())] {
            let command = vec!["/product".to_owned()];
            let image = Product::Image { image: "localhost/product:1".into(), command, domain: domain.clone() };
            let spec = Catalog::new(image, false).spec(&acme(), &tenant, "trial", "1.1").unwrap();
            spec.check().unwrap();
            assert_eq!((spec.workload.image.as_deref(), spec.workload.port), (Some("localhost/product:1"), Some(8080)));
            assert_eq!(
                (spec.environment["ADDRESS"].as_str(), spec.workload.command),
                ("0.0.0.0", vec!["/product".into()])
            );
            let hosts: Vec<_> = spec.host_names.iter().map(ToString::to_string).collect();
            assert_eq!(hosts, domain.map(|domain| format!("acme.{domain}")).into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_machine_starts_what_its_image_has() {
        let machine = Product::Machine { image: "self/product-*".into(), program: "/opt/it's".into() };
        let spec = Catalog::new(machine, false).spec(&acme(), &TenantId::new("Acme").unwrap(), "trial", "1.1").unwrap();
        spec.check().unwrap();
        assert_eq!((spec.workload.vm_image.as_deref(), spec.workload.port), (Some("self/product-*"), Some(8080)));
        assert!(spec.workload.boot_script.unwrap().ends_with("exec '/opt/it'\\''s'\n"));
    }

    #[test]
    fn every_plan_in_every_version_is_a_sound_spec() {
        let catalog = catalog(true);
        let tenant = TenantId::new("Acme & Söhne").unwrap();
        for plan in catalog.plans() {
            for version in catalog.versions() {
                let spec = catalog.spec(&acme(), &tenant, plan.name, version).unwrap();
                spec.check().unwrap();
                assert_eq!(Catalog::plan_of(&spec), Some(plan.name));
                assert_eq!(spec.environment["TENANT"], "Acme & Söhne");
                assert_eq!(spec.environment.contains_key("PRODUCT_FAULT"), version.starts_with("broken"));
            }
        }
        assert!(catalog.versions().contains(&catalog.version_default()));
    }

    #[test]
    fn an_unknown_plan_or_version_is_named_with_what_there_is() {
        let tenant = TenantId::new("Acme").unwrap();
        let error = catalog(false).spec(&acme(), &tenant, "gold", "1.0").unwrap_err();
        assert_eq!(error.to_string(), "plan: no such plan: expected one of trial, team, business");
        let error = catalog(false).spec(&acme(), &tenant, "team", "broken-exit").unwrap_err();
        assert_eq!(error.to_string(), "version: no such version: expected one of 1.0, 1.1, 2.0");
    }
}
