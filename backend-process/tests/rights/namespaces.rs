//! Control planes in containers, of which they have to know.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    process::{Child, Command, Stdio},
};

use provisioner_core::types::{DataId, DataSource, Incarnation, Target};

use crate::support::{CONTROL_PLANE, PRODUCT, Site, eventually};

/// The options for a container in which the control plane is the first process.
const FIRST: [&str; 3] = ["--pid", "--fork", "--mount-proc"];

/// A command that runs the control plane as root of a namespace that has no other user.
fn contained(options: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).args(options).arg(CONTROL_PLANE);
    command
}

/// What a control plane says of itself.
fn told_by(mut control_plane: Command, site: &Site) -> String {
    let told = control_plane.arg(site.root()).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8(told.stdout).unwrap()
}

/// A control plane that works. Killed when dropped.
struct Working(Child);

impl Working {
    fn start(mut control_plane: Command, site: &Site) -> Self {
        control_plane.arg(site.root()).args(site.ports.ends());
        Self(control_plane.args([PRODUCT.as_str(), "1"]).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) async fn what_ends_with_the_first_process_of_a_container_is_not_said_to_go_on() {
    let site = Site::new();
    let told = told_by(contained(&FIRST), &site);
    assert!(told.contains("survives: false"), "{told}");
    // And so it is. The command itself is outside, and is told to take the container with it.
    let control_plane = Working::start(contained(&[&FIRST[..], &["--kill-child"]].concat()), &site);
    eventually(|| !site.processes().is_empty()).await;
    drop(control_plane);
    eventually(|| site.processes().is_empty()).await;
}

pub(crate) async fn root_of_a_namespace_that_lacks_the_users_runs_instances_as_itself_and_says_so() {
    let site = Site::new();
    let told = told_by(contained(&[]), &site);
    assert!(told.contains("users: false"), "{told}");
    let _control_plane = Working::start(contained(&[]), &site);
    let (incarnation, data) = (Incarnation::new(1, 1), DataSource::Fresh(DataId::from_random(1)));
    let target = Target { incarnation, data, ..site.target(&[]) };
    eventually(|| site.starts(&target) > 0).await;
    assert_eq!(fs::metadata(site.files(&target)).unwrap().uid(), rustix::process::geteuid().as_raw());
}
