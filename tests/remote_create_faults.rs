//! Is a backup whole or not there at all, when the server and the way to it fail while it is written?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/swift_store.rs"]
mod swift_store;
#[path = "common/fake_swift.rs"]
mod fake_swift;
#[path = "common/new_backup.rs"]
mod new_backup;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::codec::Codec;
use cinderfs::store::Store;
use cinderfs::types::BackupId;
use cinderfs::writer::create::{Base, Created, NewBackup, create};
use cinderfs::writer::delete::{self, DeleteOptions};

use fake_swift::{FakeSwift, Fault, Object};
use new_backup::{MemorySource, volume};

const OBJECT_BYTES: usize = 128 << 10;

/// Long enough for a busy machine, short enough to wait for.
const DEADLINE: Duration = Duration::from_secs(4);

fn content() -> Vec<u8> {
    (0..10 * OBJECT_BYTES as u32 + 700).map(|i| (i.wrapping_mul(2_654_435_761) >> 21) as u8).collect()
}

fn settings() -> NewBackup {
    NewBackup { codec: Codec::Zlib, object_bytes: Some(OBJECT_BYTES as u64), ..NewBackup::full(volume()) }
}

fn make_with(
    store: &Arc<dyn Store>,
    bytes: Vec<u8>,
    new: &NewBackup,
    cancel: &AtomicBool,
) -> cinderfs::Result<Created> {
    let objects = store.clone().into_objects().unwrap();
    let catalog = Catalog::open(store.clone(), CatalogOptions::default())?;
    let now = "2026-02-03T04:05:06Z".parse().unwrap();
    create(&objects, &catalog, &MemorySource::new(bytes), new, now, cancel, &|_| {})
}

fn make(store: &Arc<dyn Store>) -> cinderfs::Result<Created> {
    make_with(store, content(), &settings(), &AtomicBool::new(false))
}

fn check(store: &Arc<dyn Store>, created: &Created, bytes: &[u8]) {
    check_id(store, created.id.as_str(), bytes);
}

fn check_id(store: &Arc<dyn Store>, id: &str, bytes: &[u8]) {
    let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
    let entry = catalog.snapshot().get(id).unwrap().clone();
    let image = catalog.image(&entry).unwrap();
    let mut read = vec![1; bytes.len()];
    let mut at = 0;
    while at < read.len() {
        at += image.read_at(&mut read[at..], at as u64).unwrap();
    }
    assert!(read == bytes, "the image is another one");
}

#[test]
fn what_passes_is_not_seen_in_the_backup() {
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
        Fault::Status(422),
        Fault::Reset,
        Fault::NoAnswer,
        Fault::WrongEtag,
        Fault::Expired,
    ] {
        for ending in ["-00007", "_metadata"] {
            let (server, store) = FakeSwift::start(DEADLINE);
            server.fail(ending, fault);
            let created = make(&store).unwrap_or_else(|error| panic!("{fault:?} of {ending}: {error}"));
            assert_eq!(server.faults_left(), 0, "{fault:?} of {ending} was not met");
            check(&store, &created, &content());
            assert_eq!(server.names().len() as u64, created.objects + 2, "{fault:?} of {ending}");
        }
    }
}

// > In an object store a run puts in its marker, `.cinderfs-<backup id>`, first and `_metadata` last, so that one that is killed at any moment leaves a whole backup in sight, or none.
#[test]
fn the_order_is_marker_objects_digests_metadata() {
    let (server, store) = FakeSwift::start(DEADLINE);
    let created = make(&store).unwrap();
    let requests = server.requests.lock().unwrap();
    let puts: Vec<_> = requests.iter().filter_map(|request| request.strip_prefix("PUT ")).collect();
    assert_eq!(puts.len() as u64, created.objects + 3);
    assert_eq!(puts[0], format!(".cinderfs-{}", created.id));
    assert!(puts[puts.len() - 2].ends_with("_sha256file") && puts[puts.len() - 1].ends_with("_metadata"));
    assert_eq!(requests.last().unwrap(), &format!("DELETE .cinderfs-{}", created.id));
}

#[test]
fn what_lasts_leaves_nothing() {
    for (ending, fault) in [("-00003", 500), ("-00003", 413), ("_sha256file", 503), ("_metadata", 403)] {
        let (server, store) = FakeSwift::start(Duration::from_secs(1));
        (0..1000).for_each(|_| server.fail(ending, Fault::Status(fault)));
        let error = make(&store).unwrap_err();
        let expected = match fault {
            413 => ErrorKind::Target,
            403 => ErrorKind::AccessDenied,
            _ => ErrorKind::StoreIo,
        };
        assert_eq!(error.kind(), expected, "{error}");
        assert!(error.to_string().contains(&fault.to_string()), "{error}");
        assert_eq!(server.names(), [""; 0], "{fault} of {ending}");
    }
}

// > A backup is finished only when the store has confirmed each object by its digest, where it does not encrypt it, and a listing has shown all of them as they were confirmed; else there is no backup, and what was put in is taken out.
#[test]
fn bytes_that_changed_behind_the_servers_own_back_are_found_before_anything_is_visible() {
    for ending in ["-00001", "-00011", "_sha256file"] {
        let (server, store) = FakeSwift::start(DEADLINE);
        server.fail(ending, Fault::Rot);
        let error = make(&store).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}");
        assert!(error.to_string().contains(ending), "{error}");
        assert!(
            !server
                .requests
                .lock()
                .unwrap()
                .iter()
                .any(|request| { request.starts_with("PUT") && request.ends_with("_metadata") })
        );
        assert_eq!(server.names(), [""; 0]);
    }
}

/// The deadline is far away: without being stopped at once this would go on for an hour.
#[test]
fn an_interruption_ends_a_request_that_hangs() {
    for ending in [".cinderfs-", "-00002", "_sha256file"] {
        let (server, store) = FakeSwift::start(Duration::from_secs(3600));
        let cancel = AtomicBool::new(false);
        match ending {
            // The marker's name ends with an id that nobody knows yet.
            ".cinderfs-" => server.fail("", Fault::Hang),
            _ => server.fail(ending, Fault::Hang),
        }
        let error = std::thread::scope(|scope| {
            let run = scope.spawn(|| make_with(&store, content(), &settings(), &cancel));
            server.wait_for_hang();
            cancel.store(true, Ordering::Relaxed);
            run.join().unwrap().unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::Interrupted, "{ending}: {error}");
        assert_eq!(server.names(), [""; 0], "{ending}");
    }
}

/// A store as a run leaves it that is killed when some objects are there; the id of the backup.
fn left(server: &Arc<FakeSwift>, store: &Arc<dyn Store>) -> String {
    // On a busy machine the deadline of an earlier request may be over before.
    while !server.is_down.load(Ordering::Relaxed) {
        server.objects.lock().unwrap().clear();
        let shared = Arc::downgrade(server);
        *server.on_put.lock().unwrap() = Some(Box::new(move |name, _| {
            // Nothing can be taken back either.
            if name.ends_with("-00003") {
                shared.upgrade().unwrap().is_down.store(true, Ordering::Relaxed);
            }
        }));
        make(store).unwrap_err();
    }
    *server.on_put.lock().unwrap() = None;
    server.is_down.store(false, Ordering::Relaxed);
    let names = server.names();
    let marker = names.iter().find_map(|name| name.strip_prefix(".cinderfs-")).expect("the marker is there");
    assert!(names.len() > 1, "no object was left: {names:?}");
    marker.to_owned()
}

fn change_marker(server: &FakeSwift, id: &str, change: impl FnOnce(&mut Object)) {
    change(server.objects.lock().unwrap().get_mut(&format!(".cinderfs-{id}")).unwrap());
}

/// The marker's run becomes a process that is no more.
fn kill(object: &mut Object) {
    change_run(object, 3, "7ffffff0");
}

/// The marker's run becomes one of another start of this machine.
fn restart(object: &mut Object) {
    change_run(object, 5, "00000001");
}

fn change_run(object: &mut Object, from_end: usize, part: &str) {
    let mut claim: serde_json::Value = serde_json::from_slice(&object.bytes).unwrap();
    let run = claim["run"].as_str().unwrap().to_owned();
    let mut parts: Vec<&str> = run.split('-').collect();
    let at = parts.len() - from_end;
    parts[at] = part;
    claim["run"] = parts.join("-").into();
    object.bytes = claim.to_string().into_bytes();
}

// > What a run that is dead left in an object store is removed by the next `create`, `consolidate` or `delete` that writes into the same bucket or container: at once when it ran on the same machine, else when its marker is an hour old; nothing is removed that no marker tells of.
#[test]
fn what_a_killed_run_left_goes_with_the_next_one_and_not_before_it_is_dead() {
    let (server, store) = FakeSwift::start(Duration::from_secs(1));
    let id = left(&server, &store);
    let before: Vec<_> = server.names().into_iter().filter(|name| name.contains(&id)).collect();
    // Cinder is just writing this one, and it looks the same but for the marker.
    let others = format!("volume_v/20260203040506/az_nova_backup_{}", "0".repeat(36));
    let object = Object { bytes: b"x".to_vec(), modified: "2026-02-03T04:05:06".into() };
    server.objects.lock().unwrap().insert(format!("{others}-00001"), object);

    let created = make(&store).unwrap();
    let is_there = || before.iter().all(|name| server.names().contains(name));
    assert!(is_there(), "its process lives");
    check(&store, &created, &content());

    change_marker(&server, &id, kill);
    let created = make(&store).unwrap();
    assert!(!server.names().iter().any(|name| name.contains(&id)), "{:?}", server.names());
    assert!(server.names().contains(&format!("{others}-00001")));
    check(&store, &created, &content());
}

// > What a run that is dead left in an object store is removed by the next `create`, `consolidate` or `delete` that writes into the same bucket or container: at once when it ran on the same machine, else when its marker is an hour old; nothing is removed that no marker tells of.
#[test]
fn a_run_of_another_machine_is_dead_when_its_marker_is_old() {
    let (server, store) = FakeSwift::start(Duration::from_secs(1));
    let id = left(&server, &store);
    for (modified, stays) in [("2026-02-03T03:05:07", true), ("2026-02-03T03:05:06", false)] {
        change_marker(&server, &id, |object| {
            object.modified = modified.to_owned();
            object.bytes =
                String::from_utf8(object.bytes.clone()).unwrap().replace("\"run\":\"", "\"run\":\"x").into();
        });
        make(&store).unwrap();
        assert_eq!(server.names().iter().any(|name| name.contains(&id)), stays, "{modified}");
    }
}

#[test]
fn a_marker_removes_nothing_but_its_own_backups_objects() {
    let (server, store) = FakeSwift::start(DEADLINE);
    let others = ["volume_v/1/az_nova_backup_b-2-00001", "volume_v/1/az_nova_backup_b-1x", "photo", "-00001"];
    let claims = [
        ("volume_v/1/az_nova_backup_b-2", "-00001"),
        ("volume_v/1/az_nova_backup_b-1", "x"),
        ("volume_v/1/az_nova_backup_", "b-2-00001"),
        ("ph", "oto"),
        ("", "photo"),
        ("", "-00001"),
    ];
    for (prefix, name) in claims {
        let object = |bytes: &str| Object { bytes: bytes.into(), modified: "2026-01-01T00:00:00".into() };
        let claim = serde_json::json!({"cinderfs": 1, "prefix": prefix, "run": "", "names": [name]});
        let mut objects = server.objects.lock().unwrap();
        objects.insert(".cinderfs-b-1".into(), object(&claim.to_string()));
        objects.extend(others.iter().map(|&other| (other.to_owned(), object("x"))));
        drop(objects);
        make(&store).unwrap();
        let names = server.names();
        assert!(others.iter().all(|&other| names.iter().any(|name| name == other)), "{prefix}: {names:?}");
    }
}

#[test]
fn what_is_listed_beside_the_prefix_stays() {
    let (server, store) = FakeSwift::start(DEADLINE);
    let object = Object { bytes: b"x".to_vec(), modified: "2026-01-01T00:00:00".into() };
    server.objects.lock().unwrap().insert("photo".into(), object);
    server.is_blind_to_prefixes.store(true, Ordering::Relaxed);
    let created = make(&store).unwrap();
    check(&store, &created, &content());
    let before = server.names();
    server.fail("-00003", Fault::Status(403));
    make(&store).unwrap_err();
    assert_eq!(server.names(), before);
}

#[test]
fn a_name_that_cannot_be_one_stops_no_backup() {
    let (server, store) = FakeSwift::start(DEADLINE);
    let object = Object { bytes: Vec::new(), modified: "2026-02-03T04:05:06.000000".to_owned() };
    server.objects.lock().unwrap().insert(".cinderfs-a/../b".to_owned(), object);
    let created = make(&store).unwrap();
    check(&store, &created, &content());
}

#[test]
fn metadata_that_arrives_late_finds_its_objects() {
    for arrives in [true, false] {
        let (server, store) = FakeSwift::start(Duration::from_secs(1));
        let cancel = AtomicBool::new(false);
        server.fail("_metadata", Fault::Hang);
        let error = std::thread::scope(|scope| {
            let run = scope.spawn(|| make_with(&store, content(), &settings(), &cancel));
            server.wait_for_hang();
            cancel.store(true, Ordering::Relaxed);
            run.join().unwrap().unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}");
        assert!(error.to_string().contains("may be complete"), "{error}");
        let names = server.names();
        let id = names.iter().find_map(|name| name.strip_prefix(".cinderfs-")).unwrap();
        if arrives {
            server.arrive();
            check_id(&store, id, &content());
        }
        change_marker(&server, id, kill);
        let created = make(&store).unwrap();
        check(&store, &created, &content());
        assert!(!server.names().iter().any(|name| name.starts_with('.')), "{:?}", server.names());
        match arrives {
            true => check_id(&store, id, &content()),
            false => assert!(!server.names().iter().any(|name| name.contains(id))),
        }
    }
}

/// Cloned machines have one name, and each its own start.
#[test]
fn a_run_of_another_start_is_dead_only_when_its_marker_was_not_put_in_for_a_while() {
    let (server, store) = FakeSwift::start(Duration::from_secs(1));
    let id = left(&server, &store);
    for (modified, stays) in [("2026-02-03T03:45:07", true), ("2026-02-03T03:45:06", false)] {
        change_marker(&server, &id, |object| {
            restart(object);
            object.modified = modified.to_owned();
        });
        make(&store).unwrap();
        assert_eq!(server.names().iter().any(|name| name.contains(&id)), stays, "{modified}");
    }
}

#[test]
fn a_run_that_another_took_for_dead_takes_its_metadata_back() {
    for ending in ["_sha256file", "_metadata"] {
        let (server, store) = FakeSwift::start(DEADLINE);
        server.take_over_with(ending);
        let error = make(&store).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Target, "{ending}: {error}");
        assert!(error.to_string().contains("for dead"), "{error}");
        assert!(!server.names().iter().any(|name| name.ends_with("_metadata")), "{:?}", server.names());
    }
}

#[test]
fn a_claim_is_put_in_the_markers_place_before_anything_is_removed() {
    let (server, store) = FakeSwift::start(Duration::from_secs(1));
    let id = left(&server, &store);
    change_marker(&server, &id, kill);
    server.requests.lock().unwrap().clear();
    make(&store).unwrap();
    let requests = server.requests.lock().unwrap();
    let first = |start: &str| {
        requests.iter().position(|request| request.starts_with(start) && request.contains(&id)).unwrap()
    };
    assert!(first("PUT .cinderfs-") < first("DELETE volume_"), "{requests:?}");
}

#[test]
fn a_backup_that_is_complete_stays_when_its_run_was_killed_before_the_marker_went() {
    let (server, store) = FakeSwift::start(DEADLINE);
    let first = make(&store).unwrap();
    let metadata = server.names().into_iter().find(|name| name.ends_with("_metadata")).unwrap();
    let prefix = metadata.strip_suffix("_metadata").unwrap();
    let claim = serde_json::json!({"cinderfs": 1, "prefix": prefix, "run": ""}).to_string();
    let marker = Object { bytes: claim.into(), modified: "2026-01-01T00:00:00".into() };
    server.objects.lock().unwrap().insert(format!(".cinderfs-{}", first.id), marker);
    let mut bytes = content();
    bytes[300_000] ^= 1;
    let newest = NewBackup { base: Base::Newest, ..settings() };
    let second = make_with(&store, bytes.clone(), &newest, &AtomicBool::new(false)).unwrap();
    assert!(!server.names().iter().any(|name| name.starts_with('.')), "{:?}", server.names());
    check(&store, &first, &content());
    check(&store, &second, &bytes);
}

fn deleted(store: &Arc<dyn Store>, created: &Created) -> cinderfs::Result<()> {
    deleted_with(store, std::slice::from_ref(&created.id), &mut || ())
}

/// Deletes backups; something happens behind each.
fn deleted_with(store: &Arc<dyn Store>, ids: &[BackupId], behind: &mut dyn FnMut()) -> cinderfs::Result<()> {
    let objects = store.clone().into_objects().unwrap();
    let catalog = Catalog::open(store.clone(), CatalogOptions::default())?;
    let options = DeleteOptions::default();
    let plan = delete::plan(&catalog, &objects, ids, &options)?;
    delete::delete(&objects, &plan, &options, &|| false, &mut |_| behind())
}

// > `delete` puts a marker that names everything first, takes out `_metadata` next, and the marker last; killed, it leaves a backup whole or out of sight, and the next run removes the rest.
#[test]
fn a_deletion_takes_the_metadata_first_and_the_marker_last() {
    let (server, store) = FakeSwift::start(DEADLINE);
    let created = make(&store).unwrap();
    server.requests.lock().unwrap().clear();
    deleted(&store, &created).unwrap();
    assert_eq!(server.names(), [""; 0]);
    let requests = server.requests.lock().unwrap();
    let changes: Vec<_> = requests
        .iter()
        .filter(|request| request.starts_with("PUT") || request.starts_with("DELETE"))
        .collect();
    assert_eq!(changes[0], &format!("PUT .cinderfs-{}", created.id));
    assert!(changes[1].starts_with("DELETE volume_") && changes[1].ends_with("_metadata"), "{}", changes[1]);
    assert_eq!(*changes.last().unwrap(), &format!("DELETE .cinderfs-{}", created.id));
    assert_eq!(changes.len() as u64, created.objects + 4);
}

#[test]
fn a_deletion_that_is_cut_is_finished_by_the_next_run_once_it_is_dead() {
    let (server, store) = FakeSwift::start(Duration::from_secs(1));
    let created = make(&store).unwrap();
    let id = created.id.to_string();
    server.down_after("_metadata");
    let error = deleted(&store, &created).unwrap_err();
    assert!(error.to_string().contains("next run"), "{error}");
    server.is_down.store(false, Ordering::Relaxed);
    let left = server.names().iter().filter(|name| name.contains(&id)).count() as u64;
    assert_eq!(left, created.objects + 2, "objects, digests, marker: {:?}", server.names());
    change_marker(&server, &id, kill);
    make(&store).unwrap();
    assert!(!server.names().iter().any(|name| name.contains(&id)), "{:?}", server.names());
}

#[test]
fn a_deletion_leaves_an_object_that_was_put_in_since_it_was_looked_at() {
    let (server, store) = FakeSwift::start(DEADLINE);
    let ids = [make(&store).unwrap().id, make(&store).unwrap().id];
    // Both are looked at before the first goes; then an object of the other changes.
    let mut changed = String::new();
    deleted_with(&store, &ids, &mut || {
        let mut objects = server.objects.lock().unwrap();
        if let Some((name, object)) = objects.iter_mut().find(|(name, _)| name.ends_with("-00001")) {
            object.bytes.push(0);
            changed.clone_from(name);
        }
    })
    .unwrap();
    assert!(!changed.is_empty());
    assert_eq!(server.names(), [changed]);
}

#[test]
fn a_deletion_that_cannot_see_whether_another_runs_deletes_nothing() {
    let (server, store) = FakeSwift::start(Duration::from_secs(1));
    let created = make(&store).unwrap();
    let before = server.names();
    server.refuse_to_show(".cinderfs-");
    let error = deleted(&store, &created).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}");
    assert_eq!(server.names(), before);
}
