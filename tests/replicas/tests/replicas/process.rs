//! A replica as a process: asked, killed, paused and ended.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use test_replicas::command::{Answer, Answered, Ask, Asked, Options, UNASKED};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::oneshot,
    time::{Instant, timeout},
};

use crate::{PATIENCE, until};

const REPLICA: &str = env!("CARGO_BIN_EXE_replica");

/// Who waits for which answer; none once there will be none any more.
type Waiting = Arc<Mutex<Option<BTreeMap<u64, oneshot::Sender<Answer>>>>>;

/// A replica that was started. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) name: String,
    pid: Pid,
    child: tokio::sync::Mutex<Child>,
    input: tokio::sync::Mutex<ChildStdin>,
    numbers: AtomicU64,
    waiting: Waiting,
    log: PathBuf,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Replica {
    /// Starts one, and waits until it takes requests.
    pub(crate) async fn start(options: &Options, log: PathBuf) -> Arc<Self> {
        let mut child = Command::new(REPLICA)
            .arg(serde_json::to_string(options).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (ready, starting) = oneshot::channel();
        let waiting = Arc::new(Mutex::new(Some(BTreeMap::from([(UNASKED, ready)]))));
        tokio::spawn(listen(output, Arc::clone(&waiting)));
        let replica = Arc::new(Self {
            name: options.name.clone(),
            pid,
            child: tokio::sync::Mutex::new(child),
            input: tokio::sync::Mutex::new(input),
            numbers: AtomicU64::new(UNASKED + 1),
            waiting,
            log,
        });
        let started = timeout(PATIENCE, starting).await.expect("a replica starts in time");
        assert_eq!(started.ok(), Some(Answer::Ready), "{} does not start:\n{}", replica.name, replica.log());
        replica
    }

    /// Asks it something. `None`: it is gone, and nobody knows whether it has heard.
    pub(crate) async fn ask(&self, ask: Ask) -> Option<Answer> {
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        let (answer, answered) = oneshot::channel();
        locked(&self.waiting).as_mut()?.insert(number, answer);
        let mut line = serde_json::to_string(&Asked { number, ask }).unwrap();
        line.push('\n');
        // What cannot be written will not be answered.
        let _ = self.input.lock().await.write_all(line.as_bytes()).await;
        answered.await.ok()
    }

    /// Asks it something that it must be able to answer.
    pub(crate) async fn answer(&self, ask: Ask) -> Answer {
        let answer = timeout(PATIENCE, self.ask(ask.clone())).await;
        answer.unwrap_or_else(|_| panic!("{}: no answer to {ask:?}", self.name)).expect("it is alive")
    }

    /// The same, asked again while it says that it cannot tell now, as with a database that is busy.
    pub(crate) async fn insist(&self, ask: Ask) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.answer(ask.clone()).await {
                Answer::Failed { kind, text } if kind == "unavailable" => {
                    assert!(Instant::now() < deadline, "{}: no answer to {ask:?}: {text}", self.name);
                }
                answer => return answer,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Kills it as the kernel does, and waits for that.
    pub(crate) async fn kill(&self) {
        let mut child = self.child.lock().await;
        self.signal(Signal::KILL);
        child.wait().await.unwrap();
    }

    /// Has it end gently.
    pub(crate) async fn terminate(&self) -> ExitStatus {
        let mut child = self.child.lock().await;
        self.signal(Signal::TERM);
        let ended = timeout(PATIENCE, child.wait()).await;
        ended.unwrap_or_else(|_| panic!("{} does not end:\n{}", self.name, self.log())).unwrap()
    }

    pub(crate) async fn pause(&self) {
        self.signal(Signal::STOP);
        self.until_paused().await;
    }

    /// Waits until all of it stands still.
    pub(crate) async fn until_paused(&self) {
        until("it stands still", || async { (self.state() == Some('T')).then_some(()) }).await;
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether it runs.
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.state(), None | Some('Z'))
    }

    /// As in `/proc`: after the name, which is in brackets.
    fn state(&self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero())).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of that.
    pub(crate) fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Waits for a line of its log.
    pub(crate) async fn until_logged(&self, text: &str, within: Duration) {
        let logged = async {
            while !self.log().contains(text) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        assert!(timeout(within, logged).await.is_ok(), "{} never said {text:?}:\n{}", self.name, self.last_words());
    }
}

/// Hands out answers until there will be none any more.
async fn listen(output: ChildStdout, waiting: Waiting) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Answered { number, answer } = serde_json::from_str(&line).unwrap();
        if let Some(waits) = locked(&waiting).as_mut().and_then(|waiting| waiting.remove(&number)) {
            let _ = waits.send(answer);
        }
    }
    locked(&waiting).take();
}
