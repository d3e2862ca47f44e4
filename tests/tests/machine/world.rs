//! A machine with a control plane as a service.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tests::{
    machine::{Hardware, Machine},
    place::control_plane,
};

/// The unit that the project ships.
const UNIT: &str = include_str!("../../../backend-process/systemd/provisioner.service.example");
/// What an operator would say in addition.
const HERE: &str = "[Service]
ExecStart=
ExecStart=/opt/programs/tests-service serve /var/lib/provisioner/store.db /var/lib/provisioner/root 127.0.0.1 \
/opt/programs/tests-product
StandardOutput=append:/shared/service.log
StandardError=inherit
";
const ASK: &str = "/opt/programs/tests-service ask /var/lib/provisioner/store.db";
/// How long an instance may take to be made again.
const RUNNING_MAX: Duration = Duration::from_secs(60);
pub(crate) const NOTE: &str = "minutes";

/// A machine that can be switched on.
pub(crate) struct World {
    pub(crate) hardware: Hardware,
    folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("provisioner-machine-").tempdir().unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_tests-service")).parent().unwrap();
        let hardware = Hardware::new(folder.path(), programs);
        hardware.set_unit("provisioner.service", UNIT);
        hardware.set_unit("provisioner.service.d/here.conf", HERE);
        Self { hardware, folder }
    }

    pub(crate) fn boot(&self) -> On {
        let machine = self.hardware.boot();
        println!("booted in {:.1} s", machine.boot_time().as_secs_f64());
        On { machine, log: self.folder.path().join("shared/service.log") }
    }
}

/// A machine that is on.
pub(crate) struct On {
    pub(crate) machine: Machine,
    log: PathBuf,
}

/// The product of the one instance, as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Product {
    pub(crate) pid: i32,
    /// Field 22 of `/proc/PID/stat`: another process with its number has another one.
    start: String,
}

impl On {
    pub(crate) fn start(&self) {
        self.machine.done("systemctl start provisioner");
        let _ = self.ready();
    }

    /// The pid of the service, once it answers.
    pub(crate) fn ready(&self) -> i32 {
        // Between two of them the socket is there and nobody answers.
        let answered = self.machine.until_output(&format!(
            "{ASK} ping >/dev/null 2>&1 || exit; systemctl show --property=MainPID --value provisioner"
        ));
        answered.parse().unwrap()
    }

    pub(crate) fn ask(&self, words: &str) -> String {
        let ran = self.machine.run(&format!("{ASK} {words}"));
        assert_eq!(ran.code, 0, "{words}: {}\nthe service: {}", ran.output, self.log());
        ran.output.trim_end().to_owned()
    }

    /// Asks for something that the instance does not survive.
    pub(crate) fn ask_for_what_fails(&self, words: &str) {
        let ran = self.machine.run(&format!("{ASK} {words}"));
        assert_ne!(ran.code, 0, "{words}: {}", ran.output);
    }

    /// Makes the one instance, with a note on its data.
    pub(crate) fn create(&self) -> Product {
        assert_eq!(self.ask("Create"), "ended done");
        self.ask(&format!("get /write/{NOTE}"));
        let products = self.products();
        assert_eq!(products.len(), 1, "{products:?}");
        products.into_iter().next().unwrap()
    }

    /// A fact about the instance.
    pub(crate) fn fact(&self, name: &str) -> String {
        let shown = self.ask("show");
        let fact = shown.lines().find_map(|line| line.strip_prefix(name));
        fact.unwrap_or_else(|| panic!("no {name} in {shown}")).trim().to_owned()
    }

    /// Waits until the instance answers as it should and is at rest.
    pub(crate) fn until_running(&self) {
        let deadline = Instant::now() + RUNNING_MAX;
        loop {
            let shown = self.ask("show");
            if ["phase Some(Running)", "settled true"].iter().all(|fact| shown.lines().any(|line| line == *fact)) {
                break;
            }
            assert!(Instant::now() < deadline, "still {shown}\n{}\n{}", self.ask("events"), self.log());
        }
        self.ask("get /healthz");
    }

    /// Every living process that was started as the product.
    pub(crate) fn products(&self) -> Vec<Product> {
        // One program and not one for each process: they cost time there. What ends meanwhile is none.
        let found = self.machine.output(
            "for exe in $(find /proc -maxdepth 2 -path '/proc/[0-9]*/exe' -lname /opt/programs/tests-product 2>&-); do
                 cut -d' ' -f1,22 ${exe%exe}stat 2>&-
             done; true",
        );
        let product = |line: &str| {
            let (pid, start) = line.split_once(' ').unwrap();
            Product { pid: pid.parse().unwrap(), start: start.into() }
        };
        found.lines().map(product).collect()
    }

    /// The pids that the product noted on its data, one for each start.
    pub(crate) fn starts(&self) -> Vec<i32> {
        let text = self.data_file("starts").unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// A file of the instance's data.
    pub(crate) fn data_file(&self, name: &str) -> Option<String> {
        let (plane, data) = (control_plane(), self.fact("data"));
        self.machine.file(&format!("/var/lib/provisioner/root/{plane}/data/{data}/files/{name}"))
    }

    /// The instance is there, once, on the data that its customer wrote.
    pub(crate) fn assert_one(&self) -> Product {
        let products = self.products();
        assert_eq!(products.len(), 1, "{products:?}\nthe service: {}", self.log());
        assert_eq!(self.ask("get /note"), NOTE);
        assert_eq!(self.starts().last(), Some(&products[0].pid), "{}", self.ask("events"));
        assert_eq!(self.data_file("doubled"), None, "two ran on one data");
        products.into_iter().next().unwrap()
    }

    /// The service said that the instance was gone before it made it again.
    pub(crate) fn assert_reported_gone(&self) {
        let events = self.ask("events");
        let failed = events.lines().any(|line| line.starts_with("PhaseChanged") && line.contains("to: Some(Failed)"));
        assert!(failed, "{events}");
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}
