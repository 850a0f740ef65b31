//! Right bytes under load? Many readers of many images with too little of everything: block cache, idle decoders, room for
//! indexes.
//!
//! `CINDERFS_STRESS_SECONDS` says how long, 8 unless told. A failure prints the seed; `CINDERFS_STRESS_SEED` sets it. A whole minute:
//!
//! ```text
//! CINDERFS_STRESS_SECONDS=60 cargo test --release --test restart_stress -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(clippy::print_stderr, reason = "what the stress did, for whoever looks")]

#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::seek_indexes::SeekIndexStore;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::Image;

use cinderfs::store::memory::MemoryStore;
use store_kit::{ObjectSpec, Packing, digests_of};
use volume::{BLOCK, MIB, Random, full, id, mixed};

const THREADS: u64 = 8;
const IMAGES: usize = 20;
const IMAGE_BYTES: usize = 6 * MIB;

/// Bounds, each below what the images together would fill.
const CACHE_BYTES: u64 = 8 << 20;
const DECODER_BYTES: usize = 1 << 20;
const INDEX_BYTES: u64 = 512 << 10;

/// What the process may grow by while it reads, in bytes: the bounds above, states of restart points (32 MiB), what decoders
/// that run hold, and what the allocator keeps for each thread. It comes to 100 to 180 MiB, however long it goes on.
const GROWTH_MAX: u64 = 256 << 20;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// The resident size of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Five chains of four backups: a full one of one object, and incrementals of one object each.
fn build(store: &MemoryStore) -> Vec<(String, Vec<u8>)> {
    let packings = [
        Packing::Zlib { level: 6, junk: 0 },
        Packing::Bz2 { level: 1, streams: 2 },
        Packing::Zstd { level: 3, frames: 1 },
        Packing::Plain("none"),
        Packing::Zlib { level: 9, junk: 5 },
    ];
    let mut images = Vec::new();
    for (chain, &packing) in packings.iter().enumerate() {
        let mut plain = mixed(chain as u64 + 1, IMAGE_BYTES);
        let name = |n: usize| format!("{chain}{n}");
        let first = full(&name(0), &plain, packing);
        first.write_to_memory(store);
        images.push((first.id.clone(), plain.clone()));
        for n in 1..IMAGES / packings.len() {
            // One run of blocks that begins elsewhere each time, and overlaps the one before.
            let (at, len) = (n * 37 * BLOCK, IMAGE_BYTES / 3 / BLOCK * BLOCK);
            let change = mixed((chain * 10 + n + 100) as u64, len);
            plain[at..at + len].copy_from_slice(&change);
            let mut spec = full(&name(n), &plain, packing);
            spec.volume_id = first.volume_id.clone();
            spec.parent_id = Some(id(&name(n - 1)));
            spec.created_at = format!("2024-01-{:02} 03:04:05+00:00", n + 3);
            let packing = packings[(chain + n) % packings.len()];
            spec.objects = vec![ObjectSpec { offset: at, plain: change, packing }];
            spec.digests = Some((BLOCK, digests_of(&plain, BLOCK)));
            spec.write_to_memory(store);
            images.push((spec.id, plain.clone()));
        }
    }
    images
}

#[test]
fn many_readers_of_many_images_get_the_right_bytes() {
    let seconds = number("CINDERFS_STRESS_SECONDS", 8);
    let seed = number("CINDERFS_STRESS_SEED", u64::from(std::process::id()));
    let store = Arc::new(MemoryStore::new());
    let expected = build(&store);
    let folder = tempfile::tempdir().unwrap();
    let dir = CacheDir::open(folder.path()).unwrap();
    let before = resident_bytes();
    let (reads, bytes, peak) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let evicted = AtomicU64::new(0);
    let of_each: Vec<AtomicU64> = expected.iter().map(|_| AtomicU64::new(0)).collect();
    let mut seen = HashSet::new();
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let mut round = 0;
    // Each round is a process of its own, as far as memory goes; the cache directory stays.
    while Instant::now() < deadline {
        round += 1;
        let indexes = Arc::new(SeekIndexStore::open(&dir, INDEX_BYTES).unwrap());
        let options = CatalogOptions {
            cache_bytes_max: CACHE_BYTES,
            idle_decoder_bytes_max: DECODER_BYTES,
            seek_indexes: Some(indexes.clone()),
            restart_spacing_bytes: Some(100_000),
            workers: 2,
            ..CatalogOptions::default()
        };
        let catalog = Catalog::open(store.clone(), options).unwrap();
        let images: Vec<Arc<Image>> = expected
            .iter()
            .map(|(id, _)| catalog.image(catalog.snapshot().get(id).unwrap()).unwrap())
            .collect();
        let until = deadline.min(Instant::now() + Duration::from_secs(3));
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (images, expected, reads, bytes, peak) = (&images, &expected, &reads, &bytes, &peak);
                let of_each = &of_each;
                scope.spawn(move || {
                    let mut random = Random::new(seed * 1000 + round * 10 + thread);
                    let mut buf = vec![0; MIB];
                    let mut goes_on = (0, 0);
                    while Instant::now() < until {
                        let magnitude = random.below(21);
                        let len = (1 + random.below(1 << magnitude)).min(MIB);
                        // Every third one reads on where it was, so that there is something to be read ahead.
                        let (n, at) = match random.below(3) {
                            0 if goes_on.1 < IMAGE_BYTES => goes_on,
                            _ => (random.below(images.len()), random.below(IMAGE_BYTES)),
                        };
                        let (image, (id, plain)) = (&images[n], &expected[n]);
                        let end = IMAGE_BYTES.min(at + len);
                        image.read_ahead(at as u64..end as u64);
                        let read = image.read_at(&mut buf[..len], at as u64);
                        let read = read
                            .unwrap_or_else(|error| panic!("seed {seed}: {len} at {at} of {id}: {error}"));
                        assert_eq!(read, end - at, "seed {seed}: {len} at {at} of {id}");
                        assert!(
                            buf[..read] == plain[at..end],
                            "seed {seed}: wrong bytes: {len} at {at} of {id}"
                        );
                        goes_on = (n, end);
                        of_each[n].fetch_add(1, Ordering::Relaxed);
                        bytes.fetch_add(read as u64, Ordering::Relaxed);
                        if reads.fetch_add(1, Ordering::Relaxed).is_multiple_of(64) {
                            peak.fetch_max(resident_bytes(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        catalog.keep_indexes();
        drop((images, catalog));
        let files: Vec<_> = fs::read_dir(indexes.path()).unwrap().map(|file| file.unwrap()).collect();
        let now: HashSet<_> = files.iter().map(|file| file.file_name()).collect();
        evicted.fetch_add(seen.difference(&now).count() as u64, Ordering::Relaxed);
        seen = now;
        let held: u64 = files.iter().map(|file| file.metadata().map_or(0, |metadata| metadata.len())).sum();
        let most = INDEX_BYTES + INDEX_BYTES / 4;
        assert!(held <= most, "seed {seed}: indexes take {held} bytes, expected at most {most}");
    }
    let (reads, bytes) = (reads.into_inner(), bytes.into_inner());
    let growth = peak.into_inner().saturating_sub(before);
    eprintln!(
        "{seconds} s, {round} rounds: {reads} reads, {} MiB, grown by {} MiB, {} indexes evicted between rounds",
        bytes >> 20,
        growth >> 20,
        evicted.into_inner()
    );
    assert!(reads > 100, "{reads} reads are no stress");
    let of_each: Vec<u64> = of_each.into_iter().map(AtomicU64::into_inner).collect();
    assert!(of_each.len() == IMAGES && of_each.iter().all(|reads| *reads > 0), "reads of each: {of_each:?}");
    assert!(growth < GROWTH_MAX, "grown by {growth} bytes, expected at most {GROWTH_MAX}");
}
