//! Starts an instance, or decides that there is nothing to start. Blocking; never waits for readiness.

use std::{
    fs::File,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use provisioner_core::{
    Effect, ErrorKind,
    types::{DataSource, Reason, Target},
};
use rustix::{fs::Access, io::Errno, process::Resource};

use crate::{
    cgroup::{Groups, Limits},
    convert::{Order, Plan, plan},
    data::{self, Claimed},
    error::{Problem, Result, exec_problem},
    instance::{Instance, Motion, Shared, View},
    layout::{Patience, make_folder, open_private, remove_file, remove_folder, try_lock},
    ports,
    process::{self, Process},
    records::{Intended, Record, digest, write_outcome},
    spawn::{self, Stage, Start},
    stop, supervise, users,
};

/// How long the lock of a dead instance may be held by somebody who only looks, or is between fork and exec.
const LIFE_LOCK_WAIT_MAX: Duration = Duration::from_secs(2);

/// What [`run`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acted {
    /// All that could be done now.
    Done,
    /// Nothing, as there is no such instance.
    Absent,
    /// Nothing yet: it takes an order.
    NeedsOrder,
}

/// Converges an instance on a running target. Without an order it only finds out whether it needs one, so that secrets
/// are resolved only for a start. Call in the instance's turn.
pub(crate) fn run(
    shared: &Arc<Shared>,
    instance: &Arc<Instance>,
    target: &Target,
    order: Option<Order>,
    make: bool,
    patience: Patience,
) -> Result<Acted> {
    let folder = &instance.folder;
    if let Some(order) = &order {
        // Before anything is touched: an update to a program that is not there must not stop the one that runs.
        check_program(order.program(), order.path(&shared.config.path), shared.users.is_some())?;
        if make && !folder.exists()? {
            shared.layout.make_root()?;
            // Beforehand: a removal has to get by on a full disk.
            make_folder(&shared.layout.removed(&instance.key.control_plane))?;
            make_folder(folder.path())?;
        }
    }
    // Held to the end: another process on the same root neither starts nor changes anything between look and act.
    let Some(_turn) = folder.turn(patience)? else {
        return Ok(if make { Acted::NeedsOrder } else { Acted::Absent });
    };
    let Some(view) = instance.look(shared)? else {
        return Ok(Acted::Absent);
    };
    let plan = plan(&view, target)?;
    if plan == Plan::Report {
        warn_of_another_spec(&view, target);
        return Ok(Acted::Done);
    }
    let Some(order) = order else {
        return Ok(Acted::NeedsOrder);
    };
    if plan == Plan::Start {
        start(shared, instance, view.record, order, patience)?;
        return Ok(Acted::Done);
    }
    if let Some(record) = &view.record {
        if !data::is_whole(&shared.layout.data(&record.control_plane, &record.data))? {
            return Err(data::missing(&record.data));
        }
        if record.intended != Intended::Running {
            record.with_intended(Intended::Running).write(folder)?;
        }
    }
    // What was wrong with the last start is history once the next is decided.
    remove_file(&folder.outcome())?;
    stop::begin(shared, instance, view.record.as_ref(), Motion { order: Some(order), ..Motion::default() });
    Ok(Acted::Done)
}

fn warn_of_another_spec(view: &View, target: &Target) {
    let other =
        |record: &&Record| record.generation == target.generation && record.started_with != digest(&target.spec);
    if let Some(record) = view.record.as_ref().filter(other) {
        tracing::warn!(instance = %record.id, generation = %record.generation, "started with another spec of this generation");
    }
}

/// Starts what is known to be dead. Call in the instance's turn, with the folder's turn held.
pub(crate) fn start(
    shared: &Arc<Shared>,
    instance: &Arc<Instance>,
    record: Option<Record>,
    order: Order,
    patience: Patience,
) -> Result<()> {
    let first = record.is_none();
    let data = order.data.clone();
    let started = claim(shared, instance, record, &order, patience).and_then(|Claim { record, user, data }| {
        if first && data == Claimed::Found {
            process::end_strays(&shared.data_path(&record))?;
            let user = shared.user(&record.control_plane, &record.data, Some(&instance.key))?;
            user.map_or(Ok(()), process::end_user)?;
        }
        if let Some(user) = user {
            let layout = &shared.layout;
            users::hand_over(layout, &record.control_plane, &layout.data(&record.control_plane, &record.data), user)?;
        }
        launch(shared, instance, &record, user, order, patience)
    });
    if let Err(problem) = &started
        && first
        && let Err(error) = undo(shared, instance, &data, patience)
    {
        tracing::warn!(instance = %instance.key.id, %problem, %error, "a half-made instance was left behind");
    }
    started
}

/// What was reserved for a start.
struct Claim {
    /// To be written.
    record: Record,
    /// Who it runs as.
    user: Option<u32>,
    data: Claimed,
}

/// Reserves what the instance needs.
fn claim(
    shared: &Shared,
    instance: &Instance,
    record: Option<Record>,
    order: &Order,
    patience: Patience,
) -> Result<Claim> {
    let (layout, key) = (&shared.layout, &instance.key);
    // Data that an instance has had must be there again: nobody starts empty in silence.
    let source = record.as_ref().map_or_else(|| order.data.clone(), |record| DataSource::Existing(record.data.clone()));
    let (port, user, data) = {
        let _lock = layout.lock(patience)?;
        let (user, data) = claim_data(shared, instance, &source, order)?;
        let had = record.as_ref().map(|record| record.port);
        let port = ports::claim(layout, key, had, shared.config.address, &shared.config.ports)?;
        (port, user, data)
    };
    let record = Record::new(key, order.tenant.clone(), source.id().clone(), port, order.generation);
    Ok(Claim { record: record.started_with(&order.spec), user, data })
}

/// Takes the data, with a user of its own where there are such. Call with the lock of the root held.
fn claim_data(
    shared: &Shared,
    instance: &Instance,
    source: &DataSource,
    order: &Order,
) -> Result<(Option<u32>, Claimed)> {
    let (layout, key, data) = (&shared.layout, &instance.key, source.id());
    let user = shared.users.as_ref().map(|range| users::claim(layout, &key.control_plane, data, range)).transpose()?;
    let claimed = data::claim(layout, key, &order.tenant, source, user);
    if claimed.is_err()
        && let Some(user) = user
        && !layout.data(&key.control_plane, data).path().exists()
    {
        users::release(layout, &key.control_plane, data, user)?;
    }
    claimed.map(|claimed| (user, claimed))
}

/// Removes what [`claim`] made for an instance that never ran.
fn undo(shared: &Shared, instance: &Instance, source: &DataSource, patience: Patience) -> Result<()> {
    let (layout, key) = (&shared.layout, &instance.key);
    data::delete_taken(layout, &key.control_plane, source.id())?;
    {
        let _lock = layout.lock(patience)?;
        match source {
            DataSource::Fresh(id) => data::disown(layout, key, id)?,
            // It was there before, and has to be there for the next try, empty or not.
            DataSource::Existing(id) => data::retain(layout, key, id)?,
        }
        let port = Record::read(&instance.folder, key).ok().flatten().map(|record| record.port);
        ports::release(layout, key, port)?;
        remove_folder(instance.folder.path())?;
    }
    data::delete_taken(layout, &key.control_plane, source.id())
}

fn launch(
    shared: &Arc<Shared>,
    instance: &Arc<Instance>,
    record: &Record,
    user: Option<u32>,
    order: Order,
    patience: Patience,
) -> Result<()> {
    let folder = &instance.folder;
    let life_lock = take_life_lock(instance, patience)?;
    // Before the process: a crash right after the start must find out what was started.
    record.write(folder)?;
    for path in [folder.pid(), folder.outcome(), folder.ready()] {
        remove_file(&path)?;
    }
    {
        let mut live = instance.live();
        // From here on the lock says that it is being started; before, the stop that this ends did.
        live.motion = None;
        live.watched = None;
        live.blocked = None;
    }
    // Since it was claimed. Whoever takes it from here on is found out before the instance is called ready.
    if !ports::is_free(shared.config.address, record.port) {
        let message = format!("somebody else listens on port {}, which is this instance's", record.port);
        return write_outcome(folder, &Reason::new("port-taken", message));
    }
    let log = open_log(instance, user)?;
    let log_start = log.metadata().map_or(0, |file| file.len());
    let data_path = shared.data_path(record);
    let open = |path: &Path| spawn::open_folder(path).map_err(|error| Problem::io("open", path, error));
    let limits = Limits { size: order.spec.size, processes: shared.config.processes_max };
    let groups = match shared.groups.make(&shared.group(&instance.key), &limits) {
        Ok(groups) => groups,
        Err(problem) => {
            write_outcome(folder, &Reason::new("not-started", problem.to_string()))?;
            return Err(problem);
        }
    };
    let started = spawn::spawn(Start {
        program: order.program(),
        arguments: order.arguments(),
        environment: order.environment(record.port, &data_path, order.path(&shared.config.path)),
        folder: open(folder.path())?,
        data: open(Path::new(&data_path))?,
        log,
        life_lock,
        boot_line: format!("{}\n", process::boot_id()?),
        groups,
        limits: limits_of_processes(&shared.groups, &limits, user),
        user,
    });
    match started {
        Ok(child) => {
            tracing::info!(instance = %record.id, generation = %record.generation, pid = child.id(), "started");
            // A process that is gone already is seen as that by the next look.
            if let Some(process) = Process::of(child.id()) {
                supervise::watch(shared, instance, process, record, Some((order.values(), log_start)));
            }
            Ok(())
        }
        Err(error) => {
            remove_file(&folder.pid())?;
            let problem = start_problem(order.program(), error);
            write_outcome(folder, &Reason::new("not-started", problem.to_string()))?;
            Err(problem)
        }
    }
}

/// Opens the log. It is the user's own: a product that opens `/dev/stdout` opens it anew, with the rights it has then.
fn open_log(instance: &Instance, user: Option<u32>) -> Result<File> {
    let path = instance.folder.log();
    let log = open_private(&path)?;
    if let Some(user) = user {
        std::os::unix::fs::fchown(&log, Some(user), Some(user))
            .map_err(|error| Problem::io("give away", &path, error))?;
    }
    Ok(log)
}

/// What each process is held to, where no control group holds all of them.
fn limits_of_processes(groups: &Groups, limits: &Limits, user: Option<u32>) -> Vec<(Resource, u64)> {
    // A core file would hold secrets.
    let mut each = vec![(Resource::Core, 0)];
    if !groups.bounds_memory() {
        // Not the address space, of which many runtimes reserve far more than they use.
        each.push((Resource::Data, u64::from(limits.size.memory_mib) << 20));
    }
    if !groups.bounds_processes() && user.is_some() {
        // Counted over all processes of a user, so only where that is one instance.
        each.push((Resource::Nproc, limits.processes.into()));
    }
    each
}

fn start_problem(program: &str, error: std::io::Error) -> Problem {
    if let Some((stage, why)) = Stage::of(&error) {
        let message = format!("the process could not be {}", stage.as_str());
        return Problem::new(ErrorKind::Unavailable, message).with_effect(Effect::Unknown).with_source(why);
    }
    if let Some(problem) = exec_problem(program, &error) {
        return problem;
    }
    let (kind, message) = match Errno::from_io_error(&error) {
        Some(Errno::AGAIN | Errno::NOMEM) => (ErrorKind::CapacityExhausted, "the machine has no room for a process"),
        _ => (ErrorKind::Unavailable, "the process could not be started"),
    };
    Problem::new(kind, message).with_effect(Effect::Unknown).with_source(error)
}

/// Takes the lock that the process will inherit. Whoever has it is alive, so without it nothing is started.
fn take_life_lock(instance: &Instance, patience: Patience) -> Result<File> {
    let path = instance.folder.life_lock();
    let deadline = patience.end().min(Instant::now() + LIFE_LOCK_WAIT_MAX);
    loop {
        if let Some(lock) = try_lock(&path)? {
            return Ok(lock);
        }
        if Instant::now() > deadline {
            let holders = process::holders(&instance.folder);
            let message = format!("something of an earlier start lives: processes {holders:?} hold its lock");
            return Err(Problem::new(ErrorKind::Unavailable, message));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the program is there and may be executed, by this process or by everybody.
fn check_program(program: &str, path: &str, by_everybody: bool) -> Result<()> {
    let executable = |file: &Path| {
        let file_is_there = file.metadata()?.is_file();
        rustix::fs::access(file, Access::EXEC_OK)?;
        if file_is_there { Ok(()) } else { Err(std::io::Error::from(Errno::ISDIR)) }
    };
    let (found, file) = if program.starts_with('/') {
        (executable(Path::new(program)), program.into())
    } else {
        let mut files = path.split(':').map(|folder| Path::new(folder).join(program));
        files
            .find(|file| executable(file).is_ok())
            .map_or((Err(Errno::NOENT.into()), program.into()), |file| (Ok(()), file))
    };
    found.map_err(|error| {
        exec_problem(program, &error).unwrap_or_else(|| Problem::io("look at", Path::new(program), error))
    })?;
    match users::keeps_from_executing(&file).filter(|_| by_everybody) {
        Some(why) => Err(Problem::spec("workload.command[0]", format!("{program:?} may not be executed: {why}"))),
        None => Ok(()),
    }
}
