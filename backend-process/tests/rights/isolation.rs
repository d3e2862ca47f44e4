//! What keeps one customer's instance from another's, and from the control plane.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::PathBuf,
    process::{Child, Command},
};

use provisioner_core::{
    ErrorKind, Provisioner, Retry,
    types::{DataDisposition, DataId, DataSource, Observed, Phase, Present, Target},
};

use crate::support::{Site, change, get};

/// A line of `/proc/PID/status`.
fn status(seen: &Present, name: &str) -> Vec<String> {
    let status = get(seen, "/status");
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

/// A folder that only its owner may enter.
fn closed_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    folder
}

fn named(site: &Site, name: &str) -> Target {
    let mut target = site.target(&[]);
    target.id = name.parse().unwrap();
    target
}

/// A process of a user that is nothing of ours. Dropping it ends it.
struct Stranger(Child);

impl Stranger {
    fn of(user: u32) -> Self {
        Self(Command::new(&*crate::support::PRODUCT).arg("sleep").uid(user).gid(user).spawn().unwrap())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) async fn each_instance_is_a_user_of_its_own_that_cannot_reach_the_others() {
    let site = Site::new();
    let targets = [named(&site, "one"), named(&site, "two")];
    let [one, two] = [site.running(&targets[0]).await, site.running(&targets[1]).await];
    let users: Vec<u32> = [&one, &two].map(|seen| status(seen, "Uid")[0].parse().unwrap()).into();
    let range = site.config.users.clone().unwrap();
    assert!(users[0] != users[1] && users.iter().all(|user| range.contains(user)), "{users:?}");
    for (seen, user) in [&one, &two].into_iter().zip(&users) {
        let user = user.to_string();
        assert_eq!(status(seen, "Uid"), vec![user.clone(); 4]);
        assert_eq!(status(seen, "Gid"), vec![user; 4]);
        assert_eq!(status(seen, "Groups"), Vec::<String>::new());
        assert_eq!(status(seen, "CapEff"), ["0000000000000000"]);
    }
    // Its own data is its own.
    assert_eq!(fs::metadata(site.files(&targets[0])).unwrap().mode() & 0o777, 0o700);
    let own = site.files(&targets[0]).join("starts");
    assert_eq!(get(&one, &format!("/write?{}", own.display())), "done");
    // The other one's is not, nor what the control plane keeps.
    let store = site.instance_folder(&targets[0]);
    for path in [
        site.files(&targets[1]).join("starts"),
        site.files(&targets[1]),
        site.instance_folder(&targets[1]).join("record.json"),
        site.instance_folder(&targets[1]).join("log"),
        store.join("record.json"),
        store.join("pid"),
        site.root().join(".lock"),
        site.root().join("plane/data"),
        format!("/proc/{}/environ", site.process(&targets[1])).into(),
    ] {
        for how in ["read", "write"] {
            let told = get(&one, &format!("/{how}?{}", path.display()));
            assert!(!told.is_empty() && told != "done", "{how} {}: {told}", path.display());
        }
    }
    assert_eq!(get(&one, &format!("/kill?{}", site.process(&targets[0]))), "done", "itself it may");
    for other in [site.process(&targets[1]), i32::try_from(std::process::id()).unwrap()] {
        assert_eq!(get(&one, &format!("/kill?{other}")), "no");
    }
}

pub(crate) async fn no_instance_gains_rights() {
    let site = Site::new();
    let seen = site.running(&site.target(&[])).await;
    assert_eq!(status(&seen, "NoNewPrivs"), ["1"]);
}

pub(crate) async fn data_keeps_its_user_for_as_long_as_it_lives_and_gives_it_back() {
    let site = Site::new();
    let reserved = || reserved_users(&site).len();
    let first = site.target(&[]);
    let user = status(&site.running(&first).await, "Uid");
    site.backend.destroy(&site.cx, &first, DataDisposition::Retain).await.unwrap();
    site.until_absent(&first).await;
    assert_eq!(reserved(), 1, "the files are still somebody's");
    let mut second = site.target(&[]);
    second.id = "heir".parse().unwrap();
    second.data = DataSource::Existing(first.data.id().clone());
    let seen = site.running(&second).await;
    assert_eq!(status(&seen, "Uid"), user);
    assert_eq!(get(&seen, "/starts").lines().count(), 2);
    site.backend.destroy(&site.cx, &second, DataDisposition::Delete).await.unwrap();
    site.until_absent(&second).await;
    assert_eq!(reserved(), 0);
}

pub(crate) async fn data_from_before_there_were_users_is_handed_over_once() {
    let mut site = Site::with(|config| config.users = None);
    let target = site.target(&[]);
    let seen = site.running(&target).await;
    assert_eq!(status(&seen, "Uid")[0], rustix::process::geteuid().as_raw().to_string());
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::symlink(outside.path(), site.files(&target).join("link")).unwrap();
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    site.config.users = Some(1_900_100_000..=1_900_100_009);
    site.restart();
    site.backend.resume(&site.cx, &target).await.unwrap();
    let seen = site.until_phase(&target, Phase::Running).await;
    let user: u32 = status(&seen, "Uid")[0].parse().unwrap();
    assert!(site.config.users.as_ref().unwrap().contains(&user));
    for entry in fs::read_dir(site.files(&target)).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().uid(), user, "{:?}", entry.file_name());
    }
    assert_eq!(outside.as_file().metadata().unwrap().uid(), 0, "what a link names is left alone");
    assert_eq!(get(&seen, "/starts").lines().count(), 2);
}

pub(crate) async fn data_whose_user_is_of_another_range_is_handed_over_and_nothing_else_is() {
    let mut site = Site::with(|config| config.users = Some(1_900_100_020..=1_900_100_029));
    let target = site.target(&[]);
    site.running(&target).await;
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    // What a product could make in its data, to have somebody else's file given to it.
    let outside = tempfile::tempdir_in(site.root()).unwrap();
    let foreign = outside.path().join("foreign");
    fs::write(&foreign, "").unwrap();
    let below = site.files(&target).join("below");
    fs::create_dir(&below).unwrap();
    fs::hard_link(&foreign, site.files(&target).join("hard")).unwrap();
    std::os::unix::fs::symlink(outside.path(), site.files(&target).join("link")).unwrap();
    let had = site.files(&target).metadata().unwrap().uid();
    std::os::unix::fs::chown(&below, Some(had), None).unwrap();
    site.config.users = Some(1_900_100_030..=1_900_100_039);
    site.restart();
    site.backend.resume(&site.cx, &target).await.unwrap();
    let seen = site.until_phase(&target, Phase::Running).await;
    let user: u32 = status(&seen, "Uid")[0].parse().unwrap();
    assert!(site.config.users.as_ref().unwrap().contains(&user));
    for own in [site.files(&target), below, site.files(&target).join("starts")] {
        assert_eq!(own.metadata().unwrap().uid(), user, "{own:?}");
    }
    assert_eq!((foreign.metadata().unwrap().uid(), outside.path().metadata().unwrap().uid()), (0, 0));
}

pub(crate) async fn a_user_is_given_again_as_late_as_can_be() {
    let site = Site::with(|config| config.users = Some(1_900_100_040..=1_900_100_042));
    let mut users = Vec::new();
    for _ in 0..4 {
        let target = site.target(&[]);
        users.push(status(&site.running(&target).await, "Uid")[0].clone());
        site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
        site.until_absent(&target).await;
    }
    assert_eq!(users.iter().take(3).collect::<BTreeSet<_>>().len(), 3, "{users:?}");
    assert_eq!(users[3], users[0]);
}

pub(crate) async fn when_there_are_no_more_users_it_is_told_and_nothing_is_left_behind() {
    let site = Site::with(|config| config.users = Some(1_900_100_010..=1_900_100_010));
    let first = named(&site, "one");
    site.running(&first).await;
    let second = named(&site, "two");
    let error = site.backend.create(&site.cx, &second).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CapacityExhausted, "{error}");
    // Its own alone: those of the first may still be coming.
    let marks = [second.incarnation.to_string(), second.data.id().to_string()];
    let names_it = |(path, content): &(PathBuf, Vec<u8>)| {
        let text = format!("{} {}", path.display(), String::from_utf8_lossy(content));
        marks.iter().any(|mark| text.contains(mark))
    };
    let left: Vec<_> = site.all_files().into_iter().filter(names_it).map(|(path, _)| path).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    assert!(!site.instance_folder(&second).exists());
    site.backend.destroy(&site.cx, &first, DataDisposition::Delete).await.unwrap();
    site.until_absent(&first).await;
    site.running(&named(&site, "two")).await;
}

pub(crate) async fn no_new_data_gets_a_user_that_something_on_the_machine_runs_as() {
    let range = 1_900_100_011..=1_900_100_012;
    let site = Site::with(|config| config.users = Some(range.clone()));
    let mut strangers: Vec<_> = range.clone().map(Stranger::of).collect();
    let error = site.backend.create(&site.cx, &site.target(&[])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CapacityExhausted, "{error}");
    drop(strangers.pop());
    let target = site.target(&[]);
    let user = range.end().to_string();
    assert_eq!(status(&site.running(&target).await, "Uid")[0], user);
    // Data keeps its user, whatever else runs as it.
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    strangers.push(Stranger::of(*range.end()));
    site.backend.resume(&site.cx, &target).await.unwrap();
    assert_eq!(status(&site.until_phase(&target, Phase::Running).await, "Uid")[0], user);
}

pub(crate) async fn data_keeps_its_user_when_the_one_it_asked_for_first_gets_free() {
    let site = Site::with(|config| config.users = Some(1_900_100_013..=1_900_100_014));
    let [mut goes, mut keeps] = ["goes", "keeps"].map(|name| named(&site, name));
    // The end of an id tells where the search begins: both begin at the same number.
    goes.data = DataSource::Fresh(DataId::from_random(1));
    keeps.data = DataSource::Fresh(DataId::from_random(1 << 100 | 1));
    let first = status(&site.running(&goes).await, "Uid");
    let user = status(&site.running(&keeps).await, "Uid");
    assert_ne!(user, first);
    site.backend.destroy(&site.cx, &goes, DataDisposition::Delete).await.unwrap();
    site.until_absent(&goes).await;
    site.backend.scale_to_zero(&site.cx, &keeps).await.unwrap();
    site.until_phase(&keeps, Phase::Zero).await;
    site.backend.resume(&site.cx, &keeps).await.unwrap();
    assert_eq!(status(&site.until_phase(&keeps, Phase::Running).await, "Uid"), user);
    assert_eq!(reserved_users(&site), [user[0].clone()]);
}

pub(crate) async fn a_sleepers_user_is_given_to_nobody_when_its_reservation_is_lost() {
    let range = 1_900_100_015..=1_900_100_016;
    let site = Site::with(|config| config.users = Some(range.clone()));
    let mut sleeper = named(&site, "sleeper");
    sleeper.data = DataSource::Fresh(DataId::from_random(1));
    let user = status(&site.running(&sleeper).await, "Uid")[0].clone();
    site.backend.scale_to_zero(&site.cx, &sleeper).await.unwrap();
    site.until_phase(&sleeper, Phase::Zero).await;
    fs::remove_file(site.root().join(".users").join(&user)).unwrap();
    // Its search begins at the number that is lost.
    let mut second = named(&site, "second");
    second.data = DataSource::Fresh(DataId::from_random(1 << 100 | 1));
    let other = status(&site.running(&second).await, "Uid")[0].clone();
    assert_ne!(other, user);
    let error = site.backend.create(&site.cx, &named(&site, "third")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CapacityExhausted, "{error}");
    site.backend.resume(&site.cx, &sleeper).await.unwrap();
    assert_eq!(status(&site.until_phase(&sleeper, Phase::Running).await, "Uid")[0], user);
    let mut both = vec![user, other];
    both.sort_unstable();
    assert_eq!(reserved_users(&site), both, "and it is reserved again");
}

/// In order.
fn reserved_users(site: &Site) -> Vec<String> {
    let reserved = fs::read_dir(site.root().join(".users")).unwrap();
    let names = reserved.map(|user| user.unwrap().file_name().into_string().unwrap());
    let mut users: Vec<_> = names.filter(|name| name.parse::<u32>().is_ok()).collect();
    users.sort_unstable();
    users
}

pub(crate) async fn nothing_that_the_control_plane_inherited_is_handed_down() {
    let site = Site::new();
    let planted = tempfile::NamedTempFile::new().unwrap();
    // A copy is inherited by whatever is started.
    let inherited = rustix::io::dup(planted.as_file()).unwrap();
    let target = site.target(&[]);
    site.running(&target).await;
    drop(inherited);
    let open: Vec<_> = fs::read_dir(format!("/proc/{}/fd", site.process(&target)))
        .unwrap()
        .filter_map(|descriptor| fs::read_link(descriptor.unwrap().path()).ok())
        .collect();
    assert!(!open.contains(&planted.path().to_owned()), "{open:?}");
    assert!(open.contains(&site.instance_folder(&target).join("lock")), "{open:?}");
}

pub(crate) async fn a_program_that_not_everybody_may_execute_is_refused_before_anything_is_touched() {
    let site = Site::new();
    let closed = closed_folder();
    let program = closed.path().join("product");
    fs::copy(&*crate::support::PRODUCT, &program).unwrap();
    let mut target = site.target(&[]);
    change(&mut target, |spec| spec.workload.command = vec![program.display().to_string()]);
    let error = site.backend.create(&site.cx, &target).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some("workload.command[0]")));
    assert_eq!(error.retry(), Retry::Never);
    assert!(error.to_string().contains(&closed.path().display().to_string()), "{error}");
    assert_eq!(site.observe(&target).await, Observed::Absent);
}

pub(crate) async fn a_root_that_users_cannot_get_to_is_told() {
    let closed = closed_folder();
    let site = Site::with(|config| config.root = closed.path().join("root"));
    let error = site.backend.create(&site.cx, &site.target(&[])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(error.to_string().contains("above the root"), "{error}");
    assert!(!error.customer_message().contains("root"), "{}", error.customer_message());
}

pub(crate) async fn what_it_prints_can_be_opened_again_by_itself_alone() {
    let site = Site::new();
    let mut target = site.target(&[]);
    let script = "echo first; echo second >>/dev/stdout; echo third >>/dev/stderr; exec \"$0\"";
    change(&mut target, |spec| {
        spec.workload.command = ["/bin/sh", "-c", script, &crate::support::PRODUCT].map(Into::into).into();
    });
    site.running(&target).await;
    let log = fs::read_to_string(site.instance_folder(&target).join("log")).unwrap();
    assert!(["first", "second", "third"].iter().all(|line| log.contains(line)), "{log}");
}
