//! What runs of a site: its product, started again when it ends, behind the site's front door.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    process::{Child, Command},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    front::Front,
    program::{Program, Wanted},
    site::Site,
    stand::{Stand, locked},
};

/// How long after its end a product is started again: twice as long each time, and no longer than that.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// What a product has to end, beside what the options say.
const GRACE: Duration = Duration::from_secs(2);

/// What runs of a site, from its creation to its end.
#[derive(Debug)]
pub(crate) struct Service {
    wanted: watch::Sender<Arc<Wanted>>,
    /// That of the product, and that of the front door.
    ended: [CancellationToken; 2],
    product: Arc<Mutex<Option<Pid>>>,
}

impl Service {
    /// Opens the front door of a site, and runs what is wanted of it.
    pub(crate) fn start(stand: &Stand, site: &Site) -> Result<Self, String> {
        let wanted = watch::Sender::new(Arc::new(Wanted::of(site)));
        let service = Self { wanted, ended: Default::default(), product: Arc::default() };
        let port = stand.take_port();
        let front = Front {
            address: SocketAddr::from((site.address, stand.front)),
            product: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            acceptor: TlsAcceptor::from(stand.authority.server(site.address.into())?),
            wanted: service.wanted.subscribe(),
        };
        let [ended, closed] = service.ended.clone().map(CancellationToken::drop_guard);
        stand.spawn(async move {
            front.serve().await;
            drop(closed);
        });
        let home = Home {
            stand: stand.shared(),
            name: site.name.clone(),
            host: stand.host(site),
            folder: stand.site_folder(&site.name, site.address),
            port,
            product: Arc::clone(&service.product),
        };
        let mut wanted = service.wanted.subscribe();
        stand.spawn(async move {
            home.live(&mut wanted).await;
            home.stand.free_port(home.port);
            drop(ended);
        });
        Ok(service)
    }

    /// Has it follow its site. What is the same goes on.
    pub(crate) fn follow(&self, site: &Site) {
        let wanted = Wanted::of(site);
        self.wanted.send_if_modified(|now| {
            let differs = **now != wanted;
            if differs {
                *now = Arc::new(wanted);
            }
            differs
        });
    }

    /// Ends it, and waits for that.
    pub(crate) async fn end(self) {
        let ended = self.ended.clone();
        // This one is dropped with it, and does the same.
        drop(self);
        for part in ended {
            part.cancelled().await;
        }
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

impl Drop for Service {
    fn drop(&mut self) {
        self.wanted.send_replace(Arc::new(Wanted::Gone));
    }
}

/// A site from within.
struct Home {
    stand: Arc<Stand>,
    name: String,
    host: String,
    folder: PathBuf,
    port: u16,
    product: Arc<Mutex<Option<Pid>>>,
}

impl Home {
    /// Everything from the creation to the end.
    async fn live(&self, wanted: &mut watch::Receiver<Arc<Wanted>>) {
        loop {
            let now = Arc::clone(&wanted.borrow_and_update());
            match &*now {
                Wanted::Run(program) => self.run(program, wanted).await,
                Wanted::Stopped => changed(wanted).await,
                Wanted::Gone => return,
            }
        }
    }

    /// Runs a program, over and over, until something else is wanted.
    async fn run(&self, program: &Program, wanted: &mut watch::Receiver<Arc<Wanted>>) {
        let mut again = AGAIN;
        let mut wait = self.stand.options.start;
        loop {
            tokio::select! {
                () = changed(wanted) => return,
                () = tokio::time::sleep(wait) => {}
            }
            let began = Instant::now();
            match self.run_once(program, wanted).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(reason) => self.log(&format!("the product does not start: {reason}")),
            }
            if began.elapsed() > AGAIN_MAX {
                again = AGAIN;
            }
            wait = again;
            again = (again * 2).min(AGAIN_MAX);
        }
    }

    /// Runs a program until it ends. Whether that was because something else is wanted.
    async fn run_once(&self, program: &Program, wanted: &mut watch::Receiver<Arc<Wanted>>) -> Result<bool, String> {
        let mut command = self.command(program)?;
        let words = |error: io::Error| error.to_string();
        let mut child = command.spawn().map_err(words)?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).ok_or("it has no number")?;
        // Whoever cleans up after a test that was killed finds it there.
        let group = self.folder.join("group");
        fs::write(&group, pid.as_raw_nonzero().to_string()).map_err(words)?;
        *locked(&self.product) = Some(pid);
        let status = tokio::select! {
            status = child.wait() => Some(status),
            () = changed(wanted) => None,
        };
        if status.is_none() {
            self.stop(&mut child, pid).await.map_err(words)?;
        }
        *locked(&self.product) = None;
        // Children that it left; mostly there are none.
        let _ = kill_process_group(pid, Signal::KILL);
        // It is gone when the stand has ended.
        let _ = fs::remove_file(&group);
        match status {
            None => Ok(true),
            Some(status) => {
                self.log(&format!("the product has ended: {}", status.map_err(words)?));
                Ok(false)
            }
        }
    }

    async fn stop(&self, child: &mut Child, pid: Pid) -> io::Result<()> {
        // It may have ended just now.
        let _ = kill_process_group(pid, Signal::TERM);
        if tokio::time::timeout(self.stand.options.stop + GRACE, child.wait()).await.is_err() {
            let _ = kill_process_group(pid, Signal::KILL);
            child.wait().await?;
        }
        Ok(())
    }

    /// How a program is started.
    ///
    /// # Errors
    /// When the real service would not start it.
    fn command(&self, program: &Program) -> Result<Command, String> {
        if !program.has_image() {
            return Err("there is no such image".to_owned());
        }
        for mount in &program.mounts {
            let is_share = locked(&self.stand.world).shares.get(&mount.share).is_some();
            match self.stand.mount_state(is_share, mount) {
                "Ok" => {}
                state => return Err(format!("{} can not be mounted: {state}", mount.path)),
            }
        }
        let placed = |text: &str| program.placed(text, |share| self.stand.share_folder(share));
        let words = program.words(self.stand.options.product.as_deref());
        let [file, arguments @ ..] = &*words else { return Err("it has no command".to_owned()) };
        fs::create_dir_all(&self.folder).map_err(|error| error.to_string())?;
        let console = fs::OpenOptions::new().create(true).append(true).open(self.console());
        let console = console.and_then(|console| Ok((console.try_clone()?, console)));
        let (output, errors) = console.map_err(|error| error.to_string())?;
        let mut command = Command::new(placed(file));
        command.args(arguments.iter().map(|argument| placed(argument))).current_dir(&self.folder).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        for (name, value) in &program.settings {
            // A container has a network of its own. Here, all addresses are also those that strangers reach.
            let is_open = name == "ADDRESS" && value == "0.0.0.0";
            command.env(name, if is_open { "127.0.0.1".to_owned() } else { placed(value) });
        }
        command.env("WEBSITE_SITE_NAME", &self.name).env("WEBSITE_HOSTNAME", &self.host);
        // All products share one machine, so none can have the port that it names.
        command.env("PORT", self.port.to_string());
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        command.process_group(0).kill_on_drop(true);
        Ok(command)
    }

    fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    fn log(&self, line: &str) {
        use io::Write as _;

        let file = fs::create_dir_all(&self.folder)
            .and_then(|()| fs::OpenOptions::new().create(true).append(true).open(self.console()));
        // The folder is gone when the stand has ended.
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
}

/// Waits until something else is wanted.
async fn changed(wanted: &mut watch::Receiver<Arc<Wanted>>) {
    // It fails when the site is gone; that was wanted before.
    let _ = wanted.changed().await;
}
