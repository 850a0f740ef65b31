//! How often an object store is asked by who restores or hydrates: each object is opened once, digests come a hundred kilobytes at a time, and
//! the first object before anybody waits for it.

#![cfg(feature = "remote")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]

#[path = "common/fake_swift.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod fake_swift;
#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/restart_kit.rs"]
mod restart_kit;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/swift_store.rs"]
mod swift_store;
#[path = "common/volume.rs"]
mod volume;
#[path = "common/watched_store.rs"]
mod watched_store;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::images::Images;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::hydrate::{HydrateOptions, Hydrated, hydrate};
use cinderfs::frontend::restore::{OnDamage, RestoreOptions, Target, restore};
use cinderfs::store::Store;
use cinderfs::store::deadline::DeadlineStore;

use fake_swift::{FakeSwift, Object};
use restart_kit::{Kit, ZLIB, options};
use store_kit::{BackupSpec, ObjectSpec, digests_of};
use volume::{BLOCK, MIB, full, mixed};

const DEADLINE: Duration = Duration::from_secs(30);

/// The kit's backup in a server.
fn served(kit: &Kit) -> (Arc<FakeSwift>, Catalog) {
    serving(full("a", &kit.plain, ZLIB).files_with(&ZLIB.pack(&kit.plain)))
}

/// Files of a store in a server.
fn serving(files: Vec<(String, Vec<u8>)>) -> (Arc<FakeSwift>, Catalog) {
    let (server, store) = FakeSwift::start(DEADLINE);
    for (name, bytes) in files {
        let modified = "2026-02-03T04:05:06.000000".to_owned();
        server.objects.lock().unwrap().insert(name, Object { bytes, modified });
    }
    // As the commands have it.
    let store = Arc::new(DeadlineStore::new(store, DEADLINE));
    store.arm();
    let options = CatalogOptions { workers: 4, cache_bytes_max: 64 << 20, ..options() };
    (server, Catalog::open(store as Arc<dyn Store>, options).unwrap())
}

fn opened(server: &FakeSwift, kit: &Kit) -> usize {
    let head = format!("HEAD {}", kit.object);
    server.requests.lock().unwrap().iter().filter(|request| **request == head).count()
}

/// What was asked for of objects whose name ends so.
fn asked(server: &FakeSwift, ending: &str) -> Vec<(u64, u64)> {
    let ranges = server.ranges.lock().unwrap();
    ranges.iter().filter(|(of, ..)| of.ends_with(ending)).map(|(_, from, to)| (*from, *to)).collect()
}

#[test]
fn threads_that_restore_open_an_object_once_and_ask_for_digests_seldom() {
    let kit = Kit::new("a", mixed(7, 160 * MIB), ZLIB);
    let (server, catalog) = served(&kit);
    let image = catalog.image(catalog.snapshot().get(&kit.id).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image");
    let options = RestoreOptions {
        force: false,
        on_damage: OnDamage::Stop,
        threads: 8,
        cancel: &AtomicBool::new(false),
    };
    restore(&image, Target::Path(target.clone()), &options, &|_| ()).unwrap();
    assert!(std::fs::read(target).unwrap() == kit.plain, "wrong bytes");
    assert_eq!(opened(&server, &kit), 1);
    let digests = asked(&server, "_sha256file");
    let len = server
        .objects
        .lock()
        .unwrap()
        .iter()
        .find(|(name, _)| name.ends_with("_sha256file"))
        .unwrap()
        .1
        .bytes
        .len();
    let fetched: u64 = digests.iter().map(|(from, to)| to + 1 - from).sum();
    // The head, the rest of its window, the tail, and what lies between in pieces of 256 KiB.
    assert!(digests.len() <= 6 && fetched <= len as u64 + 8192, "{digests:?} of {len} bytes");
}

#[test]
fn what_will_be_restored_is_sent_before_its_image_is_opened() {
    let kit = Kit::new("a", mixed(8, 24 * MIB), ZLIB);
    let (server, catalog) = served(&kit);
    assert_eq!(opened(&server, &kit), 0);
    catalog.expect(catalog.snapshot().get(&kit.id).unwrap());
    let until = Instant::now() + DEADLINE;
    while !asked(&server, kit.object.as_str()).iter().any(|(from, to)| *from == 0 && *to > 1 << 20) {
        assert!(Instant::now() < until, "nothing of the object is asked for");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(asked(&server, "_sha256file").is_empty(), "nobody has opened the image");
    assert_eq!(opened(&server, &kit), 1);
}

/// What was asked of the objects of one backup, each by its number.
fn asked_of(server: &FakeSwift, spec: &BackupSpec) -> Vec<usize> {
    let requests = server.requests.lock().unwrap();
    let of = |index| requests.iter().filter(|request| request.ends_with(&spec.object_path(index))).count();
    (0..spec.objects.len()).map(of).collect()
}

#[test]
fn objects_that_hold_only_zeros_are_not_asked_for() {
    let holds_data = [true, false, false, true, false, true, true, false, false, false];
    let (mut plain, each) = (mixed(9, holds_data.len() * 4 * MIB), 4 * MIB);
    let mut spec = full("a", &plain, ZLIB);
    spec.objects.clear();
    for (n, holds_data) in holds_data.iter().enumerate() {
        let part = &mut plain[n * each..(n + 1) * each];
        if !holds_data {
            part.fill(0);
        }
        spec.objects.push(ObjectSpec { offset: n * each, plain: part.to_vec(), packing: ZLIB });
    }
    spec.digests = Some((BLOCK, digests_of(&plain, BLOCK)));
    let (server, catalog) = serving(spec.files());
    let image = catalog.image(catalog.snapshot().get(&spec.id).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("image");
    let options = RestoreOptions {
        force: false,
        on_damage: OnDamage::Stop,
        threads: 2,
        cancel: &AtomicBool::new(false),
    };
    restore(&image, Target::Path(target.clone()), &options, &|_| ()).unwrap();
    assert!(std::fs::read(target).unwrap() == plain, "wrong bytes");
    let asked = asked_of(&server, &spec);
    let fitting = asked.iter().zip(holds_data).all(|(&asked, holds_data)| (asked > 0) == holds_data);
    assert!(fitting, "requests of each object: {asked:?}");
}

#[test]
fn who_hydrates_asks_for_each_digest_once_and_not_again_for_what_is_there() {
    let kit = Kit::new("a", mixed(10, 96 * MIB), ZLIB);
    let (server, catalog) = served(&kit);
    let folder = tempfile::tempdir().unwrap();
    let images = Images::of(&CacheDir::open(folder.path()).unwrap());
    let options = HydrateOptions {
        threads: 4,
        cancel: &AtomicBool::new(false),
        waiting: &|| (),
        observer: &|_| (),
        origin: None,
    };
    let image = catalog.image(catalog.snapshot().get(&kit.id).unwrap()).unwrap();
    let hydrated = hydrate(&image, None, &images, &options).unwrap();
    assert!(matches!(hydrated, Hydrated::Written(_)), "{hydrated:?}");
    assert!(std::fs::read(images.path(&image.key())).unwrap() == kit.plain, "wrong bytes");
    let digests = asked(&server, "_sha256file");
    let fetched: u64 = digests.iter().map(|(from, to)| to + 1 - from).sum();
    // Beside each of them, what opening the image reads at both ends.
    let len = kit.plain.len().div_ceil(BLOCK) as u64 * 72;
    assert!(fetched <= len + (32 << 10), "{digests:?} for {len} bytes");
    let again = hydrate(&image, None, &images, &options).unwrap();
    assert_eq!((again, asked(&server, "_sha256file")), (Hydrated::There, digests));
}
