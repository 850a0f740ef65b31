//! Reflinks and btrfs snapshots, on real file systems.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use cinderfs::ErrorKind;
use cinderfs::writer::snapshot::{Prepared, SnapshotKind, prepare};

use crate::kit::{Disk, MIB, call, soon};

const LEN: usize = 3 * MIB as usize + 123;

fn source(path: &Path) -> Vec<u8> {
    let bytes: Vec<u8> = (0..LEN).map(|i| (i / 511 + i) as u8).collect();
    fs::write(path, &bytes).unwrap();
    bytes
}

/// Writes to the source through a descriptor that is open all the while, and reads what the snapshot has.
fn holds_still(path: &Path, kind: SnapshotKind, before: &[u8]) -> Prepared {
    let writer = OpenOptions::new().write(true).open(path).unwrap();
    assert!(prepare(path, SnapshotKind::None, false).is_err(), "it is in use");
    let prepared = prepare(path, kind, false).unwrap();
    assert!(prepared.snapshot().is_some() && prepared.warnings().is_empty(), "{prepared:?}");
    writer.write_at(&[0xee; 100_000], MIB).unwrap();
    writer.set_len(2 * MIB).unwrap();
    assert!(fs::read(prepared.path_to_read()).unwrap() == before, "{kind}");
    prepared.check_unchanged().unwrap();
    prepared
}

#[test]
fn a_reflink_holds_still_and_leaves_no_name() {
    for (file_system, mib) in [("xfs", 320), ("btrfs", 128)] {
        let disk = Disk::new(file_system, mib);
        let path = disk.path().join("volume.img");
        for kind in [SnapshotKind::Auto, SnapshotKind::Reflink] {
            let before = source(&path);
            let prepared = holds_still(&path, kind, &before);
            assert_eq!(prepared.snapshot(), Some("a reflink"));
            assert_eq!(disk.names(), ["volume.img"], "not even while it is read");
            let opened = File::open(prepared.path_to_read()).unwrap();
            prepared.finish().unwrap();
            // Whoever still has it open reads on.
            assert_eq!(opened.metadata().unwrap().len(), LEN as u64);
        }
        assert_eq!(disk.names(), ["volume.img"]);
    }
}

#[test]
fn files_exempt_from_copy_on_write_are_reflinked_too() {
    let disk = Disk::new("btrfs", 128);
    let (plain, exempt) = (disk.path().join("plain"), disk.path().join("exempt"));
    for (name, attribute) in [(&plain, "-C"), (&exempt, "+C")] {
        let path = name.join("volume.img");
        fs::create_dir(name).unwrap();
        File::create(&path).unwrap();
        call("chattr", &[&attribute, &path]);
        // The folder has it the other way round, and new files take it from there.
        call("chattr", &[&if attribute == "+C" { "-C" } else { "+C" }, name]);
        let before = source(&path);
        holds_still(&path, SnapshotKind::Reflink, &before).finish().unwrap();
    }
}

#[test]
fn a_btrfs_snapshot_holds_still_and_is_dropped_in_every_outcome() {
    let disk = Disk::new("btrfs", 128);
    let subvolume = disk.path().join("sub volume");
    call("btrfs", &[&"subvolume", &"create", &subvolume]);
    let folder = subvolume.join("images");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("volume.img");
    let names = || fs::read_dir(&subvolume).unwrap().count();
    for finish in [true, false] {
        let before = source(&path);
        let prepared = holds_still(&path, SnapshotKind::Btrfs, &before);
        assert!(prepared.path_to_read().starts_with(&subvolume));
        assert_eq!(names(), 2);
        assert!(OpenOptions::new().write(true).open(prepared.path_to_read()).is_err(), "it is read-only");
        match finish {
            true => prepared.finish().unwrap(),
            false => drop(prepared),
        }
        assert_eq!(names(), 1);
    }
    let before = source(&path);
    let panicked = std::panic::catch_unwind(|| {
        let _prepared = holds_still(&path, SnapshotKind::Btrfs, &before);
        panic!("a bug");
    });
    assert!(panicked.is_err());
    assert_eq!(names(), 1);
}

/// The test program itself, as a run that is killed: what it does is told by its environment.
#[test]
fn a_run_that_is_killed() {
    let Some(path) = std::env::var_os("CINDERFS_TEST_KILLED") else { return };
    let kind = std::env::var("CINDERFS_TEST_KIND").unwrap().parse().unwrap();
    let _prepared = prepare(Path::new(&path), kind, false).unwrap();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

fn killed(path: &Path, kind: SnapshotKind) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "snapshots::a_run_that_is_killed"]);
    let status = command
        .env("CINDERFS_TEST_KILLED", path)
        .env("CINDERFS_TEST_KIND", kind.name())
        .output()
        .unwrap()
        .status;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status:?}");
}

#[test]
fn what_a_killed_run_left_is_dropped_by_the_next() {
    let disk = Disk::new("btrfs", 128);
    let path = disk.path().join("volume.img");
    let before = source(&path);
    killed(&path, SnapshotKind::Reflink);
    assert_eq!(disk.names(), ["volume.img"], "a reflink leaves nothing");
    killed(&path, SnapshotKind::Btrfs);
    let left = disk.names();
    assert!(left.len() == 2 && left[0].starts_with(".cinderfs-snapshot-"), "{left:?}");
    // Not ours: a folder with such a name, a snapshot with another.
    let folder = disk.path().join(format!("{}0", left[0]));
    fs::create_dir(&folder).unwrap();
    let theirs = disk.path().join(".cinderfs-snapshot-of-mine");
    call("btrfs", &[&"subvolume", &"snapshot", &disk.path(), &theirs]);

    let first = prepare(&path, SnapshotKind::Btrfs, false).unwrap();
    assert!(!disk.path().join(&left[0]).exists());
    // A run that goes on keeps its own.
    let second = prepare(&path, SnapshotKind::Btrfs, false).unwrap();
    assert!(fs::read(first.path_to_read()).unwrap() == before);
    first.finish().unwrap();
    assert!(fs::read(second.path_to_read()).unwrap() == before);
    drop(second);
    assert!(folder.exists() && theirs.exists());
    assert_eq!(disk.names().len(), 3);
}

#[test]
fn a_file_system_without_reflinks_is_read_as_it_is_or_refused() {
    let disk = Disk::new("ext4", 64);
    let path = disk.path().join("volume.img");
    source(&path);
    let prepared = soon(|| prepare(&path, SnapshotKind::Auto, false));
    assert_eq!((prepared.path_to_read(), prepared.snapshot()), (&*path, None));
    for kind in [SnapshotKind::Reflink, SnapshotKind::Btrfs, SnapshotKind::Zfs, SnapshotKind::Lvm] {
        let error = prepare(&path, kind, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        let error = prepare(&disk.device.0, kind, true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    }
    let _writer = OpenOptions::new().write(true).open(&path).unwrap();
    let error = prepare(&path, SnapshotKind::Auto, false).unwrap_err().to_string();
    assert!(error.contains("is in use") && error.contains("no snapshot of it can be taken"), "{error}");
    assert_eq!(disk.names(), ["volume.img"]);
}

#[test]
fn a_read_only_file_system_needs_no_reflink() {
    let disk = Disk::new("btrfs", 128);
    let path = disk.path().join("volume.img");
    source(&path);
    // A read-only file system needs no snapshot; its files cannot change.
    call("mount", &[&"-o", &"remount,ro", &disk.path()]);
    let prepared = soon(|| prepare(&path, SnapshotKind::Auto, false));
    assert_eq!((prepared.snapshot(), prepared.warnings()), (None, &[][..]));
    let error = prepare(&path, SnapshotKind::Btrfs, false).unwrap_err().to_string();
    assert!(error.contains("btrfs subvolume snapshot -r"), "{error}");
    drop(prepared);
    call("mount", &[&"-o", &"remount,rw", &disk.path()]);
    assert_eq!(disk.names(), ["volume.img"]);
}
