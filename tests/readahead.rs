//! Is what a sequential reader will want next there before he asks, and does nobody else pay for it?
//!
//! Time plays no part: the store holds reads until the test says so, and tells what was fetched.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;
#[path = "common/watched_store.rs"]
mod watched_store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::Image;

use cases::Watchdog;
use store_kit::Packing;
use volume::{BLOCK, MIB, Random, full, id, mixed};
use watched_store::WatchedStore;

const PLAIN: Packing = Packing::Plain("none");
const ZLIB: Packing = Packing::Zlib { level: 6, junk: 0 };

/// What the reader of a mount does for each request.
#[track_caller]
fn read(image: &Arc<Image>, plain: &[u8], at: usize, len: usize) {
    let mut buf = vec![0; len];
    image.read_ahead(at as u64..(at + len) as u64);
    let n = image.read_at(&mut buf, at as u64).unwrap();
    assert!(buf[..n] == plain[at..at + n], "wrong bytes at {at}");
}

fn open(store: &WatchedStore, cache_bytes_max: u64, workers: usize) -> Catalog {
    let options = CatalogOptions { cache_bytes_max, workers, ..CatalogOptions::default() };
    Catalog::open(Arc::new(store.clone()), options).unwrap()
}

fn image(catalog: &Catalog, name: &str) -> Arc<Image> {
    catalog.image(catalog.snapshot().get(&id(name)).unwrap()).unwrap()
}

#[track_caller]
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until nothing is fetched any more; returns how much was in all.
fn settled(store: &WatchedStore) -> u64 {
    let mut last = (store.read_bytes(), Instant::now());
    while last.1.elapsed() < Duration::from_millis(300) {
        std::thread::sleep(Duration::from_millis(10));
        if store.read_bytes() != last.0 {
            last = (store.read_bytes(), Instant::now());
        }
    }
    last.0
}

/// Runs `act` on a thread and demands that it ends, whatever the store holds.
#[track_caller]
fn must_go_on(store: &WatchedStore, what: &str, act: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(act);
        let started = Instant::now();
        while !thread.is_finished() && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let has_ended = thread.is_finished();
        if !has_ended {
            store.release(); // the scope waits for the thread
        }
        assert!(has_ended, "{what} was held up");
    });
}

#[test]
fn a_sequential_reader_finds_what_he_wants_next_in_the_cache() {
    let _watchdog = Watchdog::new();
    for packing in [PLAIN, ZLIB] {
        let store = WatchedStore::default();
        let plain = mixed(1, 32 * MIB);
        full("a", &plain, packing).write_to_memory(&store.inner);
        let catalog = open(&store, 64 << 20, 2);
        let image = image(&catalog, "a");
        let mut at = 0;
        while at < 8 * MIB {
            read(&image, &plain, at, 128 << 10);
            at += 128 << 10;
        }
        let fetched = settled(&store);
        // A quarter of the cache, in plain bytes; he has read 8 MiB.
        let next = MIB;
        while at < 8 * MIB + next {
            let mut buf = vec![0; 128 << 10];
            assert_eq!(image.read_at(&mut buf, at as u64).unwrap(), buf.len());
            at += buf.len();
        }
        let asked = store.read_bytes() - fetched;
        assert_eq!(
            asked, 0,
            "{packing:?}: the next {next} bytes were expected to be there, {asked} were fetched"
        );
        // And each byte is fetched once, in the end, but for what a thread that was held up by others decodes again.
        while at < plain.len() {
            read(&image, &plain, at, 128 << 10);
            at += 128 << 10;
        }
        let stored = packing.pack(&plain).len() as u64;
        let total = settled(&store);
        assert!(
            total <= stored * 13 / 10,
            "{packing:?}: {total} bytes were fetched of {stored}: {:?}",
            store.runs()
        );
    }
}

#[test]
fn what_is_ahead_is_at_most_a_quarter_of_the_cache() {
    let _watchdog = Watchdog::new();
    let store = WatchedStore::default();
    let plain = mixed(2, 32 * MIB);
    full("a", &plain, PLAIN).write_to_memory(&store.inner);
    let cache = 16 << 20;
    let catalog = open(&store, cache, 2);
    let image = image(&catalog, "a");
    let mut furthest = 0;
    for at in (0..16 * MIB).step_by(256 << 10) {
        read(&image, &plain, at, 256 << 10);
        if at % (2 * MIB) == 0 {
            settled(&store);
        }
        furthest = furthest.max(store.read_to("-00001").saturating_sub((at + (256 << 10)) as u64));
    }
    assert!(furthest <= cache / 4, "{furthest} bytes ahead with a cache of {cache}");
    assert!(furthest >= 1 << 20, "{furthest} bytes ahead: nothing was fetched ahead");
}

// > For who reads on, what comes next is fetched ahead into the block cache, at most a quarter of `cache_size` for all readers of a mount together; reads at random places fetch nothing ahead.
#[test]
fn random_readers_cause_none() {
    let _watchdog = Watchdog::new();
    for packing in [PLAIN, ZLIB] {
        let store = WatchedStore::default();
        let plain = mixed(3, 32 * MIB);
        full("a", &plain, packing).write_to_memory(&store.inner);
        let fetched = [0, 4].map(|workers| {
            store.take_read_bytes();
            // Dense points come by themselves where there are threads to pack them; here they are in nobody's way.
            let catalog = open(&store, 64 << 20, workers);
            let image = image(&catalog, "a");
            let mut random = Random::new(5);
            for _ in 0..200 {
                read(&image, &plain, random.below(plain.len() / 4096) * 4096, 4096);
            }
            settled(&store)
        });
        // Packing a point decodes what follows it.
        let most = if packing == PLAIN { fetched[0] } else { fetched[0] * 11 / 10 };
        assert!(
            fetched[1] <= most,
            "{packing:?}: {} bytes with threads that work ahead, {} without",
            fetched[1],
            fetched[0]
        );
    }
}

/// Many sequential readers of different images share the cache; none may drive out what was fetched for another.
// > For who reads on, what comes next is fetched ahead into the block cache, at most a quarter of `cache_size` for all readers of a mount together; reads at random places fetch nothing ahead.
#[test]
fn readers_of_many_images_do_not_fetch_more_ahead_than_the_cache_holds() {
    const IMAGES: usize = 12;
    let _watchdog = Watchdog::new();
    let store = WatchedStore::default();
    let len = 6 * MIB;
    let plains: Vec<_> = (0..IMAGES).map(|n| mixed(10 + n as u64, len)).collect();
    for (n, plain) in plains.iter().enumerate() {
        full(&format!("i{n}"), plain, PLAIN).write_to_memory(&store.inner);
    }
    let catalog = open(&store, 8 << 20, 2);
    let images: Vec<_> = (0..IMAGES).map(|n| image(&catalog, &format!("i{n}"))).collect();
    for at in (0..len).step_by(128 << 10) {
        for (image, plain) in images.iter().zip(&plains) {
            read(image, plain, at, 128 << 10);
        }
    }
    let (fetched, stored) = (settled(&store), (IMAGES * len) as u64);
    assert!(
        fetched <= stored * 15 / 10,
        "{fetched} bytes were fetched of {stored}: they were driven out before use"
    );
}

// > A store that hangs on one image holds up no reader of another.
#[test]
fn a_store_that_hangs_on_one_image_holds_up_no_reader_of_another() {
    let _watchdog = Watchdog::new();
    const WORKERS: usize = 2;
    for packing in [PLAIN, ZLIB] {
        let store = WatchedStore::default();
        let _released = store.released_at_end();
        let (a, b) = (mixed(4, 16 * MIB), mixed(5, 16 * MIB));
        full("a", &a, packing).write_to_memory(&store.inner);
        full("b", &b, packing).write_to_memory(&store.inner);
        let catalog = open(&store, 64 << 20, WORKERS);
        let (image_a, image_b) = (image(&catalog, "a"), image(&catalog, "b"));
        let of_a = id("a");
        let stored = packing.pack(&a).len() as u64;
        read(&image_a, &a, 0, 128 << 10);
        store.hold(&of_a, stored / 4..u64::MAX);
        // A sequential reader of A, up to what is held: whoever works ahead comes to be stuck there.
        for at in (0..MIB).step_by(128 << 10) {
            image_a.read_ahead(at as u64..(at + (128 << 10)) as u64);
        }
        image_a.read_ahead((12 * MIB) as u64..(12 * MIB + 4096) as u64);
        for at in (12 * MIB..13 * MIB).step_by(128 << 10) {
            image_a.read_ahead(at as u64..(at + (128 << 10)) as u64);
        }
        soon("a worker hangs in the store", || store.held() >= 1);
        std::thread::scope(|scope| {
            let foreground = scope.spawn(|| {
                let mut buf = vec![0; 4096];
                image_a.read_at(&mut buf, (13 * MIB) as u64).unwrap();
            });
            must_go_on(&store, "the reader of another image", || {
                for at in (0..b.len()).step_by(256 << 10) {
                    read(&image_b, &b, at, 256 << 10);
                }
            });
            assert!(store.held() >= 1, "{packing:?}: nothing was held any more: the test shows nothing");
            store.release();
            foreground.join().unwrap();
        });
    }
}

#[test]
fn what_is_fetched_ahead_in_one_stretch_holds_up_nobody_in_another() {
    let _watchdog = Watchdog::new();
    let store = WatchedStore::default();
    let _released = store.released_at_end();
    let plain = mixed(6, 24 * MIB);
    full("a", &plain, ZLIB).write_to_memory(&store.inner);
    let stored = ZLIB.pack(&plain).len() as u64;
    let options = CatalogOptions {
        cache_bytes_max: 16 << 20,
        workers: 1,
        idle_decoder_bytes_max: 0,
        ..CatalogOptions::default()
    };
    let catalog = Catalog::open(Arc::new(store.clone()), options).unwrap();
    let image = image(&catalog, "a");
    // All points become known.
    let mut buf = vec![0; MIB];
    for at in (0..plain.len()).step_by(MIB) {
        image.read_at(&mut buf, at as u64).unwrap();
    }
    settled(&store);
    // The cache is smaller than the image: the first half is not in it any more.
    store.hold("-00001", stored / 8..stored / 2);
    for at in (0..3 * MIB).step_by(BLOCK) {
        image.read_ahead(at as u64..(at + BLOCK) as u64);
    }
    soon("the worker hangs in the store", || store.held() >= 1);
    must_go_on(&store, "a reader of another stretch", || {
        let mut random = Random::new(6);
        for _ in 0..40 {
            let at = 15 * MIB + random.below(8 * MIB);
            let mut buf = [0; 4096];
            image.read_at(&mut buf, at as u64).unwrap();
            assert!(buf == plain[at..at + 4096], "wrong bytes at {at}");
        }
    });
    assert_eq!(store.held(), 1, "the worker was not held any more: the test shows nothing");
}
