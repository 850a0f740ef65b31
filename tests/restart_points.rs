//! Is a read deep inside a giant object cheap?
//!
//! Cost is asserted as stored bytes fetched, which no other load on the machine changes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/restart_kit.rs"]
mod restart_kit;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;
#[path = "common/watched_store.rs"]
mod watched_store;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use cinderfs::cache_dir::seek_indexes::SavedIndex;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::types::ObjectName;

use cases::Watchdog;
use restart_kit::*;
use store_kit::Packing;
use volume::{BLOCK, MIB, Random, full, id, mixed};
use watched_store::WatchedStore;

/// Stored bytes between the points around the block of `at`.
fn stored_between(saved: &SavedIndex, at: usize, stored_bytes: u64) -> (u64, u64) {
    let (start, end) = ((at / BLOCK * BLOCK) as u64, (at / BLOCK * BLOCK + BLOCK) as u64);
    let before = saved.points().iter().rfind(|point| point.plain_offset <= start);
    let after = saved.points().iter().find(|point| point.plain_offset >= end);
    (
        before.map_or(0, |point| point.stored_bits / 8),
        after.map_or(stored_bytes, |p| p.stored_bits.div_ceil(8)),
    )
}

/// What codecs restart, with a spacing that gives some dozen points; `None` is the usual spacing.
const RESTARTED: &[(&str, Packing, usize, Option<u64>)] =
    &[("zlib", ZLIB, 40 * MIB, None), ("fast", Packing::Zlib { level: 3, junk: 7 }, 12 * MIB, Some(300_000))];

// > Restart points that reads have found are kept in the cache directory and serve later mounts; those that `create` wrote into the metadata serve all mounts, without a cache directory and with `seek_index=off` too. Points that are damaged, foreign or wrong cost time and never a byte.
#[test]
fn a_later_run_fetches_what_lies_between_two_points() {
    for &(name, packing, len, spacing) in RESTARTED {
        let kit = Kit::new(name, mixed(1, len), packing);
        let indexes = kit.indexes();
        let options = |with_index: bool| CatalogOptions {
            seek_indexes: with_index.then(|| indexes.clone()),
            restart_spacing_bytes: spacing,
            ..options()
        };
        {
            let (catalog, image) = kit.open_with(options(true));
            read_all(&image, &kit.plain);
            let read = kit.store.take_read_bytes();
            // Its ends are looked at to identify it.
            let most = kit.stored_bytes + 3 * INPUT_BYTES;
            assert!(read <= most, "{name}: a first pass fetched {read} bytes, expected at most {most}");
            catalog.keep_indexes();
        }
        let saved = indexes.load(&kit.key()).unwrap();
        assert_eq!(saved.known_to(), len as u64, "{name}: restart points are known of all that was read");
        let usual = spacing.unwrap_or(2 << 20);
        let count = saved.points().len() as u64;
        assert!(count >= len as u64 / usual / 2, "{name}: {count} points are too few");

        let (_catalog, image) = kit.open_with(options(true));
        kit.check(&image, 0, 1); // finds the index
        let mut random = Random::new(7);
        for _ in 0..150 {
            let at = random.below(len / 4096) * 4096;
            kit.store.take_read_bytes();
            kit.check(&image, at, 4096);
            let read = kit.store.take_read_bytes();
            let (from, to) = stored_between(&saved, at, kit.stored_bytes);
            let most = (to - from) * 12 / 10 + INPUT_BYTES;
            assert!(
                read <= most,
                "{name}: 4 KiB at {at} fetched {read} bytes; {from}..{to} lie between points"
            );
        }
        // What that is worth.
        for at in [len / 2, len - 2 * MIB] {
            let (_catalog, image) = kit.open_with(CatalogOptions { restart_points: false, ..options(false) });
            kit.store.take_read_bytes();
            kit.check(&image, at, 1);
            let zeros =
                kit.plain[at / BLOCK * BLOCK..at / BLOCK * BLOCK + BLOCK].iter().all(|&byte| byte == 0);
            let (read, (from, _)) =
                (kit.store.take_read_bytes(), stored_between(&saved, at, kit.stored_bytes));
            assert!(
                zeros || read >= from,
                "{name}: without points {read} bytes were fetched for those at {from}"
            );
        }
    }
}

#[test]
fn points_serve_the_run_that_found_them() {
    for &(name, packing, len, spacing) in RESTARTED {
        let kit = Kit::new(name, mixed(2, len), packing);
        let (_catalog, image) =
            kit.open_with(CatalogOptions { restart_spacing_bytes: spacing, workers: 1, ..options() });
        read_all(&image, &kit.plain);
        let mut random = Random::new(8);
        kit.store.take_read_bytes();
        const READS: u64 = 60;
        for _ in 0..READS {
            kit.check(&image, random.below(len / 4096) * 4096, 4096);
        }
        let read = kit.store.take_read_bytes() / READS;
        let stretch = kit.stored_bytes * spacing.unwrap_or(2 << 20) / len as u64;
        let most = 2 * stretch + INPUT_BYTES;
        assert!(read <= most, "{name}: {read} bytes were fetched for each read, expected at most {most}");
    }
}

/// The file with the states is evicted while an object is open: what is saved afterwards must not claim more than it holds.
#[test]
fn points_that_were_lost_with_their_file_are_found_again() {
    let _watchdog = Watchdog::new();
    let kit = Kit::new("a", mixed(6, 24 * MIB), ZLIB);
    let own = kit.make_index();
    let (key, store) = (kit.key(), kit.indexes());
    let (catalog, image) = kit.open(Some(store.clone()));
    kit.check(&image, 0, 1);
    store.forget(&key);
    kit.check_at_random(&image, 2, 6, 1);
    catalog.keep_indexes();
    let cancel = AtomicBool::new(false);
    let report = cinderfs::frontend::index::index(&[&*image], 1, &cancel, &|_| {}).unwrap();
    assert_eq!((report.objects, report.failed.len()), (1, 0), "{report:?}");
    let found = store.load(&key).unwrap();
    assert_eq!(found.known_to(), own.known_to(), "all is known after an index run");
    let (found, expected) = (found.points().len(), own.points().len());
    assert!(
        found * 10 >= expected * 9,
        "{found} points after an index run, {expected} before the file was lost"
    );
}

/// Many objects at once, none of which has enough points to be packed.
#[test]
fn states_in_memory_are_bounded_and_given_back() {
    const OBJECTS: usize = 600;
    const LEN: usize = 512 << 10;
    let plain = mixed(10, LEN);
    let store = WatchedStore::default();
    let mut spec = full("many", &[], ZLIB);
    spec.objects.clear();
    let stored = ZLIB.pack(&plain);
    let object = store_kit::ObjectSpec { offset: 0, plain: Vec::new(), packing: ZLIB };
    let mut backups = Vec::new();
    for n in 0..OBJECTS {
        // The same bytes under many names: one backup each, so that the documents stay small.
        let name = format!("{n:04}");
        let mut one = spec.clone();
        one.id = id(&name);
        one.objects = vec![store_kit::ObjectSpec { plain: plain.clone(), ..object.clone() }];
        one.digests = Some((BLOCK, store_kit::digests_of(&plain, BLOCK)));
        backups.push(one.id.clone());
        for (file, bytes) in one.files_with(&stored) {
            store.inner.insert(ObjectName::parse(&file).unwrap(), bytes);
        }
    }
    let options = CatalogOptions { restart_spacing_bytes: Some(64 << 10), workers: 1, ..options() };
    let catalog = Catalog::open(Arc::new(store.clone()), options).unwrap();
    let image = |n: usize| catalog.image(catalog.snapshot().get(&backups[n]).unwrap()).unwrap();
    let mut most = 0;
    let read_all = |n: usize| {
        let image = image(n);
        let mut buf = vec![0; LEN];
        image.read_at(&mut buf, 0).unwrap();
        assert!(buf == plain, "wrong bytes in object {n}");
    };
    for n in 0..OBJECTS {
        read_all(n);
        most = most.max(catalog.restart_state_bytes());
    }
    // 16 MiB, and what decoders noted before they heard that it is enough.
    println!("at most {most} bytes of states");
    assert!(most > 8 << 20, "{most} bytes of states: too few for this test");
    assert!(most <= 18 << 20, "{most} bytes of states were in memory at once");
    // The last one's points are known, although there were others before that filled the memory. While it is full nobody notes
    // points, and who makes room has his own time on a busy machine; so it may take some more passes, but not for ever.
    let (started, most) = (Instant::now(), stored.len() as u64 / 2);
    loop {
        let image = image(OBJECTS - 1);
        store.take_read_bytes();
        let mut buf = [0; 1000];
        image.read_at(&mut buf, (LEN - 1000) as u64).unwrap();
        let read = store.take_read_bytes();
        if read < most {
            break;
        }
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{read} bytes were fetched for the end of the last object, expected less than {most}"
        );
        read_all(OBJECTS - 1);
    }
}
