//! Is a store that cannot take a backup told of, and left as it was?
//!
//! Needs root and /dev/loop-control.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/staging_kit.rs"]
mod staging_kit;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cinderfs::ErrorKind;
use cinderfs::writer::staging::{FileName, Hook, Step, remove_leftovers};

use staging_kit::{Backup, SmallFileSystem, errno, hidden_folders, ours, run, store, tree};

#[test]
fn a_missing_store_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert_eq!(ours()[0].begin(&missing).unwrap_err().kind(), ErrorKind::StoreNotFound);
    assert_eq!(remove_leftovers(&missing).unwrap_err().kind(), ErrorKind::StoreNotFound);
}

#[test]
fn a_full_file_system_is_told_and_gets_its_room_back() {
    let small = SmallFileSystem::new(8 << 20, 40);
    let other = Backup::new("11111111-other", "team/one");
    other.write(small.root(), None).unwrap();
    let (before, room) = (tree(small.root()), small.free_bytes());
    for backup in ours() {
        let staging = backup.begin(small.root()).unwrap();
        let mut file = staging.create_file(FileName::Object(1)).unwrap();
        let error = (0..1000).find_map(|_| file.append(&[7; 65536]).err()).expect("8 MiB hold no 64 MiB");
        assert_eq!(error.kind(), ErrorKind::Target);
        assert!(error.to_string().contains("cannot write an object at byte"), "{error}");
        assert!(error.to_string().contains("the store's file system is full"), "{error}");
        drop(file);
        drop(staging);
        assert_eq!(tree(small.root()), before);
        // Out of files, wherever that happens: while they are written, or while their container is made.
        let mut refused = 0;
        for spare in 0..16 {
            let filler = tempfile::tempdir_in(small.root()).unwrap();
            let full = (0..1000).find(|i| fs::write(filler.path().join(i.to_string()), "").is_err());
            for i in 0..spare.min(full.unwrap()) {
                fs::remove_file(filler.path().join(i.to_string())).unwrap();
            }
            let written = backup.write(small.root(), None);
            filler.close().unwrap();
            match written {
                Ok(()) => {
                    assert_eq!(tree(small.root()), backup.added_to(&before));
                    backup.remove_from(small.root(), &before);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Target, "{error}");
                    assert!(error.to_string().contains("full"), "{error}");
                    refused += 1;
                }
            }
            assert_eq!(tree(small.root()), before, "{} {spare}", backup.container);
        }
        assert!((5..16).contains(&refused), "{refused}");
    }
    other.check_image(small.root());
    let deadline = Instant::now() + Duration::from_secs(10);
    while small.free_bytes() + (64 << 10) < room {
        assert!(Instant::now() < deadline, "{} of {room} bytes", small.free_bytes());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_store_that_may_not_be_written_is_told() {
    let small = SmallFileSystem::new(8 << 20, 64);
    Backup::new("11111111-other", "team/one").write(small.root(), None).unwrap();
    let before = tree(small.root());
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(small.root()));
    for backup in ours() {
        let error = backup.begin(small.root()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Target);
        assert!(error.to_string().contains("the store is read-only"), "{error}");
    }
    run(Command::new("mount").args(["-o", "remount,rw"]).arg(small.root()));
    // What even root may not change.
    let immutable =
        |on: bool, path: &Path| run(Command::new("chattr").arg(if on { "+i" } else { "-i" }).arg(path));
    immutable(true, small.root());
    let error = ours()[0].begin(small.root()).unwrap_err();
    immutable(false, small.root());
    assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
    assert!(error.to_string().contains("may not write"), "{error}");
    let container = small.root().join("team/one");
    immutable(true, &container);
    let written = ours()[0].write(small.root(), None);
    immutable(false, &container);
    assert_eq!(written.unwrap_err().kind(), ErrorKind::AccessDenied);
    assert_eq!(tree(small.root()), before);
}

#[test]
fn a_container_on_another_file_system_is_refused_at_once() {
    let folder = store();
    let mounted = folder.path().join("elsewhere");
    fs::create_dir(&mounted).unwrap();
    let small = SmallFileSystem::at(8 << 20, 64, &mounted);
    for container in ["elsewhere", "elsewhere/a/b"] {
        let error = Backup::new("abcd1234-ours", container).begin(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Target);
        assert!(error.to_string().contains("lies on another file system"), "{error}");
    }
    assert_eq!(hidden_folders(folder.path()), BTreeSet::new());
    drop(small);
}

#[test]
fn a_quota_is_told() {
    let folder = store();
    let before = tree(folder.path());
    let hook: Hook = Arc::new(|step, name| match (step, name) {
        (Step::Write, "-00002") => Err(errno(122)), // EDQUOT
        _ => Ok(()),
    });
    let error = ours()[0].write(folder.path(), Some(hook)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(error.to_string().contains("cannot write an object"), "{error}");
    assert!(error.to_string().contains("quota on the store's file system is used up"), "{error}");
    assert_eq!(tree(folder.path()), before);
}
