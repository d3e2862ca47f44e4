//! A root of its own for each test, and nothing left running after it.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use backend_process::{ProcessBackend, ProcessConfig};
use futures::StreamExt;
use provisioner_core::{
    OpContext, Provisioner, ProvisionerExt,
    seams::Random,
    types::{
        ControlPlaneId, DataSource, Generation, InstanceId, InstanceSpec, Observed, Owned, Phase, Present, Target,
        TenantId, Workload,
    },
};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use test_reserved::ports::Ports;

/// The product, where every user may execute it: where programs are built, others may not be let in.
pub(crate) static PRODUCT: LazyLock<String> = LazyLock::new(|| {
    let built = Path::new(env!("CARGO_BIN_EXE_process-test-product"));
    let open = |path: &Path| fs::metadata(path).is_ok_and(|what| what.mode() & 0o001 != 0);
    let place = if built.ancestors().all(open) {
        built.to_owned()
    } else {
        let what = fs::metadata(built).unwrap();
        let place = std::env::temp_dir().join(format!("process-test-product-{}-{}", what.len(), what.mtime_nsec()));
        if !place.exists() {
            let copy = place.with_extension(std::process::id().to_string());
            fs::copy(built, &copy).unwrap();
            fs::rename(copy, &place).unwrap();
        }
        place
    };
    place.into_os_string().into_string().unwrap()
});
pub(crate) const CONTROL_PLANE: &str = env!("CARGO_BIN_EXE_process-test-control-plane");
/// Far longer than anything takes, also on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A root, and what runs on it. Dropping it ends every process of it.
pub(crate) struct Site {
    pub(crate) backend: ProcessBackend,
    pub(crate) cx: OpContext,
    pub(crate) ports: Ports,
    pub(crate) random: Random,
    pub(crate) config: ProcessConfig,
    root: TempDir,
}

impl Drop for Site {
    fn drop(&mut self) {
        // First of all: the backend must not start anything more.
        self.backend = self.another_backend();
        let deadline = Instant::now() + SOON;
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > deadline {
                break;
            }
            for pid in left.into_iter().filter_map(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        test_reserved::groups::remove(self.root());
    }
}

impl Site {
    pub(crate) fn new() -> Self {
        let ports = Ports::take();
        let root = tempfile::tempdir().unwrap();
        let mut config = ProcessConfig::new(root.path()).with_ports(ports.range());
        config.cgroup = Some(test_reserved::groups::name(root.path()));
        let backend = config.clone().build().unwrap();
        let cx = OpContext::new(ControlPlaneId::new("plane").unwrap());
        Self { backend, cx, ports, random: Random::from_os(), root, config }
    }

    /// One with a configuration that differs.
    pub(crate) fn with(change: impl FnOnce(&mut ProcessConfig)) -> Self {
        let mut site = Self::new();
        change(&mut site.config);
        site.restart();
        site
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// The next control plane process on the same root.
    pub(crate) fn restart(&mut self) {
        self.backend = self.another_backend();
    }

    pub(crate) fn another_backend(&self) -> ProcessBackend {
        self.config.clone().build().unwrap()
    }

    pub(crate) fn target(&self, environment: &[(&str, &str)]) -> Target {
        Target {
            id: InstanceId::new("acme").unwrap(),
            tenant: TenantId::new("tenant").unwrap(),
            incarnation: self.random.incarnation(1),
            generation: Generation::FIRST,
            spec: Arc::new(spec(environment)),
            data: DataSource::Fresh(self.random.data_id()),
        }
    }

    /// A target beside the one that [`target`](Self::target) makes.
    pub(crate) fn target_called(&self, id: &str) -> Target {
        Target { id: InstanceId::new(id).unwrap(), ..self.target(&[]) }
    }

    pub(crate) async fn running(&self, target: &Target) -> Present {
        let seen = self.backend.create_and_wait(&self.cx, target, SOON).await.unwrap();
        seen.present().cloned().unwrap()
    }

    pub(crate) async fn observe(&self, target: &Target) -> Observed {
        self.backend.observe(&self.cx, target).await.unwrap()
    }

    /// Looks again until it is so.
    #[track_caller]
    pub(crate) fn until(
        &self,
        target: &Target,
        what: impl Fn(&Observed) -> bool + Send,
    ) -> impl Future<Output = Observed> + Send {
        let (backend, cx, target) = (self.backend.clone(), self.cx.clone(), target.clone());
        let place = std::panic::Location::caller();
        async move {
            let deadline = Instant::now() + SOON;
            loop {
                let seen = backend.observe(&cx, &target).await.unwrap();
                if what(&seen) {
                    return seen;
                }
                assert!(Instant::now() < deadline, "{place}: still {seen:?}");
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        }
    }

    #[track_caller]
    pub(crate) fn until_phase(&self, target: &Target, phase: Phase) -> impl Future<Output = Present> + Send {
        let seen = self.until(target, move |seen| seen.phase() == Some(phase));
        async move { seen.await.present().cloned().unwrap() }
    }

    #[track_caller]
    pub(crate) fn until_absent(&self, target: &Target) -> impl Future<Output = Observed> + Send {
        self.until(target, |seen| *seen == Observed::Absent)
    }

    pub(crate) async fn list(&self) -> Vec<Owned> {
        self.backend.list(&self.cx).map(Result::unwrap).collect().await
    }

    /// The only process of a target.
    pub(crate) fn process(&self, target: &Target) -> i32 {
        let text = fs::read_to_string(self.instance_folder(target).join("pid")).unwrap();
        text.lines().nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    }

    /// Every living process that was started on this root.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mark = format!("DATA_PATH={}/", self.root().display());
        let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let has_it =
            |text: Vec<u8>| text.split(|byte| *byte == 0).any(|variable| variable.starts_with(mark.as_bytes()));
        all.filter(|pid: &i32| {
            // Of each thread: one whose first thread has ended tells nothing of itself any more, and goes on.
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            threads.into_iter().any(|thread| fs::read(thread.path().join("environ")).is_ok_and(has_it))
        })
        .collect()
    }

    pub(crate) fn instance_folder(&self, target: &Target) -> PathBuf {
        self.root().join("plane/instances").join(format!("{}.{}", target.id, target.incarnation))
    }

    /// Deletes an instance's folder as an outsider does.
    pub(crate) fn delete_instance_folder(&self, target: &Target) {
        // Out of the way first: the backend may be writing into it at this moment.
        let gone = self.root().join(".gone");
        fs::rename(self.instance_folder(target), &gone).unwrap();
        // What has it open goes on writing for a moment.
        while let Err(error) = fs::remove_dir_all(&gone) {
            assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{error}");
        }
    }

    /// Who has the ports that are reserved.
    pub(crate) fn port_owners(&self) -> Vec<String> {
        let reserved = fs::read_dir(self.root().join(".ports")).unwrap();
        reserved.map(|port| fs::read_to_string(port.unwrap().path()).unwrap()).collect()
    }

    pub(crate) fn files(&self, target: &Target) -> PathBuf {
        self.root().join("plane/data").join(target.data.id().as_str()).join("files")
    }

    /// How often the product was started on this data.
    pub(crate) fn starts(&self, target: &Target) -> usize {
        fs::read_to_string(self.files(target).join("starts")).unwrap_or_default().lines().count()
    }

    /// Every file under the root, with its content.
    pub(crate) fn all_files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut folders = vec![self.root().to_owned()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push((path.clone(), fs::read(path).unwrap()));
                }
            }
        }
        files
    }
}

pub(crate) fn spec(environment: &[(&str, &str)]) -> InstanceSpec {
    let mut workload = Workload::new("1").with_command([PRODUCT.as_str()]);
    workload.health_path = "/healthz".into();
    let mut spec = InstanceSpec::new(workload);
    spec.environment = environment.iter().map(|(name, value)| (name.parse().unwrap(), (*value).to_owned())).collect();
    spec
}

pub(crate) fn change(target: &mut Target, change: impl FnOnce(&mut InstanceSpec)) {
    change(Arc::make_mut(&mut target.spec));
}

/// A command line that runs the product deaf to SIGTERM, its children too.
pub(crate) fn deaf() -> Vec<String> {
    ["/bin/sh", "-c", "trap '' TERM; exec \"$0\"", &PRODUCT].map(Into::into).into()
}

pub(crate) fn get(present: &Present, path: &str) -> String {
    let address = present.endpoint.as_ref().unwrap().as_str().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

pub(crate) async fn eventually(what: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !what() {
        assert!(Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
