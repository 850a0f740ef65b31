//! What is told of one container, when what its backups need lies in another one, and is it made where it is missing?

#![cfg(all(feature = "remote", feature = "fuse"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/whole.rs"]
mod whole;

use std::sync::Arc;

use mount::Setup;
use serde_json::Value;
use whole::{World, spanning};

fn report(world: &World, store: &str, code: i32) -> Value {
    serde_json::from_str(&world.run(&["verify", "-q", store, "-f", "json"], code).0).unwrap()
}

// > Of a backup in one container whose parent is in none that is seen, `verify` says that it does not know: it is `unchecked`, and that is no damage.
#[test]
fn a_parent_in_another_container_is_no_damage() {
    for is_swift in [true, false] {
        let (world, [base, child]) = spanning(is_swift);
        let store = world.word(is_swift, "c2");
        let seen = report(&world, &store, 1);
        assert_eq!(
            (&seen["backups"][0]["verdict"], &seen["backups"][0]["cinder"]),
            (&"unchecked".into(), &"unknown".into())
        );
        assert_eq!(seen["findings"].as_array().unwrap().len(), 1, "{seen}");
        assert_eq!(
            (&seen["findings"][0]["kind"], &seen["findings"][0]["severity"]),
            (&"parent_elsewhere".into(), &"warning".into())
        );
        assert_eq!(seen["summary"]["objects"], 1, "its own objects are looked at: {seen}");
        let (text, told) = world.run(&["verify", "-q", &store], 1);
        assert!(text.contains("would Cinder restore it: unknown"), "{text}");
        let whole = world.word(is_swift, "");
        assert!(
            told.contains(&format!("{base} is not in \"c2\"; it may lie")) && told.contains(&whole),
            "{told}"
        );

        // Everywhere the same story.
        let (listed, _) = world.run(&["list", &store, "-f", "value", "-c", "Status"], 0);
        assert_eq!(listed, "error\n");
        let shown: Value =
            serde_json::from_str(&world.run(&["show", &store, &child, "-f", "json"], 0).0).unwrap();
        let reason = shown["fail_reason"].as_str().unwrap();
        assert!(
            reason.contains(&format!("{base} is not in \"c2\"; it may lie in another container")),
            "{reason}"
        );
        let mount = Setup::default().environment(&world.environment()).mount(store.as_ref());
        assert_eq!(mount.document(&child)["fail_reason"], reason);
        drop(mount);
        let target = world.folder.path().join("target");
        let (_, told) = world.run(&["restore", "-q", &store, &child, target.to_str().unwrap()], 1);
        assert!(told.contains("it may lie in another container"), "{told}");

        // And all of it is good.
        assert_eq!(report(&world, &world.word(is_swift, ""), 0)["backups"].as_array().unwrap().len(), 2);
        // What of it lies here and is damaged is damage all the same.
        let object = world.server.names("c2", "-00001").remove(0);
        let mut bytes = world.server.all()["c2"][&object].to_vec();
        bytes[20] ^= 1;
        world.server.all().get_mut("c2").unwrap().insert(object, Arc::new(bytes));
        let seen = report(&world, &store, 3);
        assert_eq!(seen["backups"][0]["verdict"], "damaged", "{seen}");
        // Where all is seen, what is not there is gone.
        world.server.all().get_mut("c1").unwrap().clear();
        let seen = report(&world, &world.word(is_swift, ""), 3);
        assert_eq!(seen["backups"][0]["verdict"], "unusable", "{seen}");
    }
}

// > `create` makes the container of Swift that STORE names where there is none, as Cinder's driver does; buckets are for others to make.
#[test]
fn a_container_is_made_and_a_bucket_is_not() {
    let world = World::new(&["other"]);
    let source = world.file("disk", &[7; 100_000]);
    let (_, told) = world.run(&["create", "swift:new", &source, "--incremental"], 10);
    assert!(told.contains("no store \"swift:new\""), "{told}");
    world.run(&["create", "swift:new", "/nowhere/disk"], 10);
    let (_, told) = world.run(&["create", &world.word(false, "new"), &source], 10);
    assert!(told.contains("buckets are not made by cinderfs"), "{told}");
    assert!(!world.server.all().contains_key("new"));
    world.run(&["create", "swift:new", &source], 0);
    let (listed, _) = world.run(&["list", "swift:new", "-f", "value", "-c", "Status"], 0);
    assert_eq!(listed, "available\n");
    let conf = "[DEFAULT]\nbackup_driver = cinder.backup.drivers.swift.SwiftBackupDriver\nbackup_swift_container = told\n";
    world.run(&["create", &world.file("cinder.conf", conf.as_bytes()), &source], 0);
    assert_eq!(world.server.names("told", "_metadata").len(), 1);
}
