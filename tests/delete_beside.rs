//! Does a backup stay on which others build that lie in other containers?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/whole.rs"]
mod whole;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use whole::{VOLUME, spanning};

// > `delete` looks through the other containers of the account, or the other buckets of the server, for backups that build on one that is to go, and refuses it where there are any, also with `--force`.
#[test]
fn what_others_in_another_container_build_on_is_refused() {
    for is_swift in [true, false] {
        let (world, [base, child]) = spanning(is_swift);
        let before = world.server.all().clone();
        world.server.listed.lock().unwrap().clear();
        let (store, whole) = (world.word(is_swift, "c1"), world.word(is_swift, ""));
        for words in [&["base"][..], &["base", "--force"], &["base", "--cascade"], &["base", "--dry-run"]] {
            let (_, told) = world.run(&[&["delete", &store], words].concat(), 2);
            assert!(told.contains(&format!("{child} (\"inc\") in \"c2\"")), "{told}");
            assert!(told.contains(&format!("STORE {whole} is all")), "{told}");
            assert!(*world.server.all() == before, "{words:?}");
        }
        // Nothing is listed there but what can be meant.
        let listed = std::mem::take(&mut *world.server.listed.lock().unwrap());
        let beside: BTreeSet<_> = listed.iter().filter(|listed| !listed.starts_with("c1")).collect();
        assert!(!beside.is_empty());
        assert!(
            beside.iter().all(|listed| listed.contains(&format!("prefix=volume_{VOLUME}"))),
            "{beside:#?}"
        );
        // Neither has the child a child, nor what builds on nothing.
        world.run(&["delete", &world.word(is_swift, "c2"), "inc"], 0);
        let (_, told) = world.run(&["delete", &store, &base], 0);
        assert!(told.contains("2 other containers hold no backup"), "{told}");
        assert!(world.server.all().values().all(|objects| objects.is_empty()));
    }
}

// > Where these cannot be listed, or one of them not be looked into, `delete` removes nothing without `--force`.
#[test]
fn where_other_containers_cannot_be_seen_nothing_goes_unless_told() {
    for is_swift in [true, false] {
        for hides in [true, false] {
            let (world, _) = spanning(is_swift);
            world.server.hides_containers.store(hides, Ordering::SeqCst);
            if !hides {
                world.server.closed.lock().unwrap().insert("c2".to_owned());
            }
            let before = world.server.all().clone();
            let store = world.word(is_swift, "c1");
            let (_, told) = world.run(&["delete", &store, "base"], 12);
            assert!(told.contains("may lie in other containers of"), "{told}");
            assert!(told.contains("--force deletes all the same"), "{told}");
            assert!(*world.server.all() == before);
            world.run(&["delete", &store, "base", "--force"], 0);
            assert!(world.server.all()["c1"].is_empty());
        }
    }
}

/// What a copy of a bucket holds needs nothing of the bucket, as long as the copy is whole.
#[test]
fn a_copy_of_the_whole_chain_is_no_child() {
    let (world, [base, _]) = spanning(true);
    let mut all = world.server.all().clone();
    let chain: Vec<_> = [&all["c1"], &all["c2"]].into_iter().flat_map(|of| of.clone()).collect();
    all.get_mut("c2").unwrap().clear();
    all.insert("mirror".to_owned(), chain.into_iter().collect());
    *world.server.all() = all.clone();
    world.run(&["delete", "swift:c1", "base", "--dry-run"], 0);
    let object = world.server.names("mirror", &format!("{base}-")).remove(0);
    world.server.all().get_mut("mirror").unwrap().remove(&object);
    let (_, told) = world.run(&["delete", "swift:c1", "base"], 2);
    assert!(told.contains("in \"mirror\""), "{told}");
    world.run(&["list", "swift:mirror"], 0);
}

/// As cinder-backup is told to write with the credentials of each project: one container of that project's account.
#[test]
fn a_cinder_conf_with_one_container_looks_beside_it_too() {
    let (world, _) = spanning(true);
    let conf = "[DEFAULT]\nbackup_driver = cinder.backup.drivers.swift.SwiftBackupDriver\nbackup_swift_container = c1\n";
    let conf = world.file("cinder.conf", conf.as_bytes());
    let (listed, _) = world.run(&["list", &conf, "-f", "value", "-c", "Name"], 0);
    assert_eq!(listed, "base\n");
    let (_, told) = world.run(&["delete", &conf, "base"], 2);
    assert!(told.contains("in \"c2\""), "{told}");
    let conf = format!(
        "[DEFAULT]\nbackup_driver = cinder.backup.drivers.s3.S3BackupDriver\nbackup_s3_endpoint_url = {}\n\
         backup_s3_store_bucket = c1\nbackup_s3_store_access_key = a\nbackup_s3_store_secret_key = s\n",
        world.base
    );
    let conf = world.file("s3.conf", conf.as_bytes());
    let (_, told) = world.run(&["delete", &conf, "base"], 2);
    assert!(told.contains("in \"c2\""), "{told}");
}

/// What shows all containers shows the child, and takes it along.
#[test]
fn the_whole_takes_children_along() {
    for is_swift in [true, false] {
        let (world, _) = spanning(is_swift);
        let whole = world.word(is_swift, "");
        world.run(&["delete", &whole, "base"], 2);
        world.run(&["delete", &whole, "base", "--cascade"], 0);
        assert!(world.server.all().values().all(|objects| objects.is_empty()));
    }
}
