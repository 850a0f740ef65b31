//! Does the metadata of a repaired backup stay true, and the way to what lies behind the damage open, whatever fails?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/fake_swift.rs"]
mod fake_swift;
#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/new_backup.rs"]
mod new_backup;
#[path = "common/repair_kit.rs"]
mod repair_kit;
#[path = "common/swift_store.rs"]
mod swift_store;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::codec::Codec;
use cinderfs::store::Store;
use cinderfs::types::BackupId;
use cinderfs::writer::create::{NewBackup, create};
use cinderfs::writer::repair::{Finding, repair};

use fake_swift::{FakeSwift, Fault};
use new_backup::{MemorySource, volume};
use repair_kit::{DEADLINE, Damaged, OBJECT_BYTES, content, is_all_repaired, options, read};

fn create_of(store: &Arc<dyn Store>, content: Vec<u8>, level: i32) -> String {
    let objects = store.clone().into_objects().unwrap();
    let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
    let now = "2026-02-03T04:05:06Z".parse().unwrap();
    let new = NewBackup {
        codec: Codec::Zlib,
        level: Some(level),
        object_bytes: Some(OBJECT_BYTES as u64),
        ..NewBackup::full(volume())
    };
    let (source, never) = (MemorySource::new(content), AtomicBool::new(false));
    create(&objects, &catalog, &source, &new, now, &never, &|_| {}).unwrap().id.to_string()
}

fn repair_once(server: &FakeSwift, id: &str) -> cinderfs::Result<Vec<Finding>> {
    let objects = server.client(DEADLINE).into_objects().unwrap();
    repair(&objects, &BackupId::parse(id).unwrap(), &options(&AtomicBool::new(false)))
}

// > `repair` tells restart points anew behind the objects that they lead into: until an object is replaced, what lies behind its damage is
// > found by the old ones.
#[test]
fn an_object_that_cannot_be_put_in_is_read_behind_its_damage_as_before() {
    let (server, store) = FakeSwift::start(DEADLINE);
    let begin = OBJECT_BYTES + 64 * 1024;
    let id = create_of(&store, content(), 12);
    // It has what is lost, and nothing of what lies behind.
    let mut other = content();
    other[begin + OBJECT_BYTES / 2..].iter_mut().for_each(|byte| *byte ^= 0x55);
    create_of(&store, other, 12);
    let names = server.names();
    let prefix = names.iter().find_map(|name| name.strip_suffix(&format!("{id}_metadata"))).unwrap();
    let (object, document) = (format!("{prefix}{id}-00002"), format!("{prefix}{id}_metadata"));
    let points_before = {
        let mut objects = server.objects.lock().unwrap();
        objects.get_mut(&object).unwrap().bytes[..40].iter_mut().for_each(|byte| *byte ^= 0x5a);
        objects[&document].bytes.clone()
    };
    assert!(read(&server.client(DEADLINE), &id).unwrap() == content(), "healed");

    (0..1000).for_each(|_| server.fail("-00002", Fault::Status(507)));
    repair_once(&server, &id).unwrap_err();
    server.forgive();
    assert!(read(&server.client(DEADLINE), &id).is_ok_and(|bytes| bytes == content()), "healed as before");

    let findings = repair_once(&server, &id).unwrap();
    assert!(findings.len() == 1 && is_all_repaired(&findings), "{findings:?}");
    let points = server.objects.lock().unwrap()[&document].bytes.clone();
    assert!(points != points_before, "another level makes other points");
    server.objects.lock().unwrap().retain(|name, _| name.contains(&id));
    assert!(read(&server.client(DEADLINE), &id).unwrap() == content());
}

/// The name of an object, in which a byte is another one on its way once the objects are put in.
#[test]
fn metadata_that_comes_wrong_for_once_is_not_put_in() {
    let damaged = Damaged::new();
    let document = format!("{}_metadata", damaged.prefix);
    let at = {
        let text = &damaged.right[&document];
        let name = format!("{}-00001", damaged.prefix).into_bytes();
        text.windows(name.len()).position(|part| part == name).unwrap()
    };
    let server = Arc::downgrade(&damaged.server);
    *damaged.server.on_put.lock().unwrap() = Some(Box::new(move |put, _| {
        if put.ends_with("-00004") {
            *server.upgrade().unwrap().wrong.lock().unwrap() = Some((document.clone(), at, 1));
        }
    }));
    let findings = damaged.repair().unwrap();
    assert!(is_all_repaired(&findings), "{findings:?}");
    assert_eq!(damaged.server.wrong.lock().unwrap().as_ref().unwrap().2, 0, "nothing was wrong");
    damaged.check_whole("repaired");
}
