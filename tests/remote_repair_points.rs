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
use cinderfs::writer::repair::{Finding, RepairOptions, repair};

use fake_swift::{FakeSwift, Fault};
use new_backup::{MemorySource, volume};
use repair_kit::{DEADLINE, Damaged, OBJECT_BYTES, bytes, content, is_all_repaired, options, read};

/// Plain bytes of a block.
const BLOCK_BYTES: u64 = 32 << 10;

fn create_of(store: &Arc<dyn Store>, content: Vec<u8>, level: i32, block_bytes: u64) -> String {
    let objects = store.clone().into_objects().unwrap();
    let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
    let now = "2026-02-03T04:05:06Z".parse().unwrap();
    let new = NewBackup {
        codec: Codec::Zlib,
        level: Some(level),
        object_bytes: Some(OBJECT_BYTES as u64),
        block_bytes,
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
    let id = create_of(&store, content(), 12, BLOCK_BYTES);
    // It has what is lost, and nothing of what lies behind.
    let mut other = content();
    other[begin + OBJECT_BYTES / 2..].iter_mut().for_each(|byte| *byte ^= 0x55);
    create_of(&store, other, 12, BLOCK_BYTES);
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

/// The digest of a block that is right in the store comes wrong for once, when all were compared and another one is mended.
#[test]
fn a_digest_that_comes_wrong_for_once_is_not_put_in() {
    let (server, store) = FakeSwift::start(DEADLINE);
    // Digests that no window holds all of.
    let id = create_of(&store, content(), 1, 512);
    let right = bytes(&server);
    let digests = right.keys().find(|name| name.ends_with("_sha256file")).unwrap().clone();
    let other = |digit: u8| if digit == b'0' { b'1' } else { b'0' };
    let digit_at = |from: usize| {
        let begin = right[&digests][from..].iter().position(|byte| *byte == b'"').unwrap() + from;
        (begin..).find(|at| right[&digests][*at].is_ascii_digit()).unwrap()
    };
    let len = right[&digests].len();
    let (damaged, wrong) = (digit_at(len / 2), digit_at(len / 4));
    server.objects.lock().unwrap().get_mut(&digests).unwrap().bytes[damaged] =
        other(right[&digests][damaged]);
    let come_wrong = |done, total| {
        let mut place = server.wrong.lock().unwrap();
        if done == total && place.is_none() {
            *server.wrong_byte.lock().unwrap() = Some(other(right[&digests][wrong]));
            *place = Some((digests.clone(), wrong, 1));
        }
    };
    let never = AtomicBool::new(false);
    let objects = server.client(DEADLINE).into_objects().unwrap();
    let options_of_run = RepairOptions { progress: &come_wrong, ..options(&never) };
    let error = repair(&objects, &BackupId::parse(&id).unwrap(), &options_of_run).unwrap_err();
    assert_eq!(server.wrong.lock().unwrap().as_ref().unwrap().2, 0, "nothing was wrong");
    assert!(error.to_string().contains("other bytes each time"), "{error}");
    assert!(is_all_repaired(&repair_once(&server, &id).unwrap()));
    assert!(bytes(&server) == right, "the digests are as they were made");
}
