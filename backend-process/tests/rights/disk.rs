//! A disk that is full, and one that may only be read.

use std::{fs, path::Path, process::Command};

use provisioner_core::{
    ErrorKind, Provisioner, Retry,
    types::{DataDisposition, Observed, Phase},
};

use crate::support::{Site, get};

/// A small disk under the root of a site. Taken away when dropped.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    fn under(site: &'a Site) -> Self {
        assert!(mount(&["-t", "tmpfs", "-o", "size=512k,mode=0711", "tmpfs"], site.root()));
        Self(site.root())
    }

    fn fill(&self) {
        let filler = self.0.join("filler");
        // To the last byte: whole pages do not fit any more, and neither does a part of one.
        let full = fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }

    fn set_writable(&self, writable: bool) {
        assert!(mount(&["-o", if writable { "remount,rw" } else { "remount,ro" }], self.0));
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // What still runs there keeps it only for as long as it runs.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

fn mount(options: &[&str], at: &Path) -> bool {
    let mounted = Command::new("mount").args(options).arg(at).output();
    mounted.is_ok_and(|mounted| mounted.status.success())
}

pub(crate) async fn on_a_full_disk_nothing_is_half_made_and_with_room_it_goes_on() {
    let site = Site::new();
    let disk = Disk::under(&site);
    let target = site.target(&[]);
    site.backend.identity(&site.cx).await.unwrap();
    disk.fill();
    for _ in 0..3 {
        let error = site.backend.create(&site.cx, &target).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CapacityExhausted, "{error}");
        assert_ne!(error.retry(), Retry::Never);
        assert_eq!(site.processes(), Vec::<i32>::new());
    }
    disk.free();
    site.running(&target).await;
    // What runs goes on, and is not said to sleep before that is written down.
    disk.fill();
    let error = site.backend.scale_to_zero(&site.cx, &target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CapacityExhausted, "{error}");
    let seen = site.observe(&target).await;
    assert_eq!(seen.phase(), Some(Phase::Running));
    get(seen.present().unwrap(), "/healthz");
    disk.free();
    site.backend.scale_to_zero(&site.cx, &target).await.unwrap();
    site.until_phase(&target, Phase::Zero).await;
    // Nor is it woken without a record of it.
    disk.fill();
    let error = site.backend.resume(&site.cx, &target).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CapacityExhausted, "{error}");
    assert_eq!(site.observe(&target).await.phase(), Some(Phase::Zero));
    disk.free();
    site.backend.resume(&site.cx, &target).await.unwrap();
    let seen = site.until_phase(&target, Phase::Running).await;
    assert_eq!(get(&seen, "/starts").lines().count(), 2);
    // Removing is what makes room.
    disk.fill();
    site.backend.destroy(&site.cx, &target, DataDisposition::Delete).await.unwrap();
    site.until_absent(&target).await;
    assert_eq!(site.processes(), Vec::<i32>::new());
    assert!(!site.files(&target).exists());
}

pub(crate) async fn on_a_disk_that_may_only_be_read_it_is_told_and_nothing_changes() {
    let site = Site::new();
    let disk = Disk::under(&site);
    let (asleep, never) = (site.target(&[]), {
        let mut never = site.target(&[]);
        never.id = "never".parse().unwrap();
        never
    });
    site.running(&asleep).await;
    site.backend.scale_to_zero(&site.cx, &asleep).await.unwrap();
    site.until_phase(&asleep, Phase::Zero).await;
    disk.set_writable(false);
    for target in [&asleep, &never] {
        let error = site.backend.create(&site.cx, target).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(!error.customer_message().contains(site.root().to_str().unwrap()));
    }
    assert_eq!(site.processes(), Vec::<i32>::new());
    disk.set_writable(true);
    assert_eq!(site.observe(&asleep).await.phase(), Some(Phase::Zero));
    assert_eq!(site.observe(&never).await, Observed::Absent);
    site.running(&asleep).await;
    site.running(&never).await;
}
