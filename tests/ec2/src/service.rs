//! What runs on a machine: the script of its user data, then the product as a service that is started again when it ends.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::{
    disks,
    machine::Machine,
    stand::{Stand, locked},
};

/// How long after its end a product is started again. The unit says seconds.
const AGAIN: Duration = Duration::from_millis(300);
/// The grace of a unit that says none.
const GRACE: Duration = Duration::from_secs(90);

/// What runs on a machine from one start of it to the next stop.
#[derive(Debug)]
pub(crate) struct Service {
    stop: CancellationToken,
    ended: CancellationToken,
    product: Arc<Mutex<Option<Pid>>>,
}

impl Service {
    /// Boots a machine.
    pub(crate) fn boot(stand: &Stand, id: &str, machine: &Machine) -> Self {
        let service = Self { stop: CancellationToken::new(), ended: CancellationToken::new(), product: Arc::default() };
        let home = Home {
            folder: disks::machine(&stand.folder, id),
            path: format!(
                "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                disks::shims(&stand.folder).display()
            ),
            address: machine.address.to_string(),
            has_store: machine.has_store(),
            stop: service.stop.clone(),
            product: Arc::clone(&service.product),
        };
        let (user_data, ended) = (machine.user_data.clone(), service.ended.clone().drop_guard());
        stand.spawn(async move {
            if let Err(error) = home.live(&user_data).await {
                home.log(&format!("the machine does not boot: {error}"));
            }
            drop(ended);
        });
        service
    }

    /// Ends it, and waits for that.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }

    /// The product, while it runs.
    pub(crate) fn product(&self) -> Option<Pid> {
        *locked(&self.product)
    }

    /// Kills the product alone.
    pub(crate) fn kill(&self) -> Result<(), String> {
        let pid = self.product().ok_or("no product runs")?;
        kill_process(pid, Signal::KILL).map_err(|error| format!("the product was not killed: {error}"))
    }
}

/// A machine from within.
struct Home {
    folder: PathBuf,
    path: String,
    address: String,
    has_store: bool,
    stop: CancellationToken,
    product: Arc<Mutex<Option<Pid>>>,
}

impl Home {
    /// Everything from the boot to the stop.
    async fn live(&self, user_data: &str) -> io::Result<()> {
        fs::create_dir_all(self.root())?;
        if self.has_store {
            fs::write(self.folder.join("store"), "")?;
        }
        let script = disks::unpacked(user_data);
        let is_first = !self.folder.join("user-data").exists();
        if script.is_empty() || (!is_first && !script.starts_with(b"#cloud-boothook")) {
            // Any other script runs at the first boot alone.
            return Ok(());
        }
        let file = self.folder.join("user-data");
        fs::write(&file, script)?;
        let started = self.folder.join("started");
        disks::remove(&started)?;
        match self.run(self.command(&file)?, Duration::ZERO).await? {
            None => return Ok(()),
            Some(status) if !status.success() => self.log(&format!("user data: {status}")),
            Some(_) => {}
        }
        if !started.exists() {
            return Ok(());
        }
        loop {
            let mut command = self.command(&self.root().join("etc/provisioner/start"))?;
            command.env("ADDRESS", &self.address);
            let Some(status) = self.run(command, self.grace()).await? else { return Ok(()) };
            self.log(&format!("the product has ended: {status}"));
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }

    /// Runs a command until it ends; nothing, when the machine is stopped before.
    async fn run(&self, mut command: Command, grace: Duration) -> io::Result<Option<ExitStatus>> {
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let pid = pid.ok_or_else(|| io::Error::other("a child without a number"))?;
        // Whoever cleans up after a test that was killed finds it there.
        let group = self.folder.join("group");
        fs::write(&group, pid.to_string())?;
        *locked(&self.product) = Some(pid);
        let status = tokio::select! {
            status = child.wait() => Some(status?),
            () = self.stop.cancelled() => {
                Self::stop(&mut child, pid, grace).await?;
                None
            }
        };
        *locked(&self.product) = None;
        // Children that it left; mostly there are none.
        let _ = kill_process_group(pid, Signal::KILL);
        disks::remove(&group)?;
        Ok(status)
    }

    async fn stop(child: &mut Child, pid: Pid, grace: Duration) -> io::Result<()> {
        // It may have ended just now.
        let _ = kill_process_group(pid, Signal::TERM);
        if tokio::time::timeout(grace, child.wait()).await.is_err() {
            let _ = kill_process_group(pid, Signal::KILL);
            child.wait().await?;
        }
        Ok(())
    }

    fn command(&self, script: &Path) -> io::Result<Command> {
        let console = fs::OpenOptions::new().create(true).append(true).open(self.console())?;
        let mut command = Command::new("/bin/sh");
        command.arg(script).current_dir(self.root()).env_clear();
        command.env("PATH", &self.path).env("PROVISIONER_ROOT", self.root());
        command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console);
        command.process_group(0).kill_on_drop(true);
        Ok(command)
    }

    /// What the unit says.
    fn grace(&self) -> Duration {
        let units = fs::read_dir(self.root().join("etc/systemd/system")).into_iter().flatten().flatten();
        let texts = units.filter_map(|unit| fs::read_to_string(unit.path()).ok());
        let seconds = texts.flat_map(|text| {
            let lines = text.lines().filter_map(|line| line.strip_prefix("TimeoutStopSec=")?.trim().parse().ok());
            lines.collect::<Vec<u64>>()
        });
        seconds.last().map_or(GRACE, Duration::from_secs)
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    fn log(&self, line: &str) {
        use io::Write as _;

        let file = fs::OpenOptions::new().create(true).append(true).open(self.console());
        // The folder is gone when the stand has ended.
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
}
