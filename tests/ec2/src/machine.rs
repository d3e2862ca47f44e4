//! What the proxy knows of machines, and how it shows in answers.

use std::{fmt, net::Ipv4Addr, sync::Arc, time::Instant};

use crate::{service::Service, xml::Element};

/// The state of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It starts.
    Pending,
    /// It runs.
    Running,
    /// It is being stopped.
    Stopping,
    /// It is stopped.
    Stopped,
    /// It is being terminated.
    ShuttingDown,
    /// It is gone, and shown for a while.
    Terminated,
}

impl State {
    /// Names it as the service does.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
        }
    }

    const fn code(self) -> &'static str {
        match self {
            Self::Pending => "0",
            Self::Running => "16",
            Self::ShuttingDown => "32",
            Self::Terminated => "48",
            Self::Stopping => "64",
            Self::Stopped => "80",
        }
    }

    pub(crate) fn read(name: &str) -> Option<Self> {
        let states =
            [Self::Pending, Self::Running, Self::Stopping, Self::Stopped, Self::ShuttingDown, Self::Terminated];
        states.into_iter().find(|state| state.name() == name)
    }

    pub(crate) fn to_element(self, name: &str) -> Element {
        Element::new(name).with_text("code", self.code()).with_text("name", self.name())
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) state: State,
    /// When it came into this state.
    pub(crate) since: Instant,
    /// Rises with every change of the state, so that whoever waited for the end of an earlier one sees it.
    pub(crate) changes: u64,
    pub(crate) zone: String,
    pub(crate) kind: String,
    pub(crate) address: Ipv4Addr,
    /// As it was sent.
    pub(crate) user_data: String,
    pub(crate) may_not_stop: bool,
    pub(crate) may_not_terminate: bool,
    pub(crate) impaired_since: Option<String>,
    pub(crate) retires_at: Option<String>,
    /// Why it ends instead of coming up: a code and words.
    pub(crate) doom: Option<(String, String)>,
    pub(crate) service: Option<Arc<Service>>,
}

impl Machine {
    pub(crate) fn new(state: State, zone: &str, kind: &str, address: Ipv4Addr) -> Self {
        Self {
            state,
            since: Instant::now(),
            changes: 0,
            zone: zone.to_owned(),
            kind: kind.to_owned(),
            address,
            user_data: String::new(),
            may_not_stop: false,
            may_not_terminate: false,
            impaired_since: None,
            retires_at: None,
            doom: None,
            service: None,
        }
    }

    pub(crate) fn enter(&mut self, state: State) {
        self.state = state;
        self.since = Instant::now();
        self.changes += 1;
    }

    /// Shows an instance, as moto has it, as this machine is.
    pub(crate) fn dress(&self, instance: &mut Element) {
        instance.put(self.state.to_element("instanceState"));
        if self.state == State::Terminated {
            // What a terminated machine had is not told.
            for gone in ["privateIpAddress", "ipAddress", "dnsName", "privateDnsName", "subnetId", "vpcId"] {
                instance.remove(gone);
            }
            instance.put(Element::new("networkInterfaceSet"));
            instance.put(Element::new("blockDeviceMapping"));
            if let Some((code, message)) = &self.doom {
                instance.put(Element::new("stateReason").with_text("code", code).with_text("message", message));
            }
            return;
        }
        let address = self.address.to_string();
        instance.for_each(&mut |element| {
            if matches!(&*element.name, "privateIpAddress" | "ipAddress" | "publicIp") {
                element.text.clone_from(&address);
            }
        });
    }

    /// Shows the status of an instance.
    pub(crate) fn dress_status(&self, status: &mut Element, checks: std::time::Duration) {
        status.put(self.state.to_element("instanceState"));
        let (says, passed) = match self.state {
            State::Running if self.impaired_since.is_some() => ("impaired", "failed"),
            State::Running if self.since.elapsed() < checks => ("initializing", "initializing"),
            State::Running => ("ok", "passed"),
            _ => ("not-applicable", ""),
        };
        for name in ["systemStatus", "instanceStatus"] {
            let mut element = Element::new(name).with_text("status", says);
            if !passed.is_empty() {
                let mut check = Element::new("item").with_text("name", "reachability").with_text("status", passed);
                if let Some(since) = &self.impaired_since {
                    check = check.with_text("impairedSince", since);
                }
                element = element.with(Element::new("details").with(check));
            }
            status.put(element);
        }
        status.remove("eventsSet");
        if let Some(at) = &self.retires_at {
            let event = Element::new("item")
                .with_text("instanceEventId", "instance-event-0d59937288b749b32")
                .with_text("code", "instance-retirement")
                .with_text("description", "The instance is running on degraded hardware")
                .with_text("notBefore", at);
            status.put(Element::new("eventsSet").with(event));
        }
    }

    /// Whether machines of this type come with a disk of their own.
    pub(crate) fn has_store(&self) -> bool {
        let family = self.kind.split('.').next().unwrap_or_default();
        family.trim_start_matches(|c: char| !c.is_ascii_digit()).contains('d')
    }
}
