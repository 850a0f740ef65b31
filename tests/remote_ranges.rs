//! What is fetched of an object store for a read: what it needs, at once, and no more.

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
use std::time::Duration;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::Image;

use fake_swift::{FakeSwift, Object};
use restart_kit::{Kit, ZLIB, options, read_all};
use volume::{MIB, Random, full, mixed};

/// Stored bytes at each end of an object by which its index is found.
const SAMPLE_BYTES: u64 = 4096;

/// The kit's backup in a server.
fn served(kit: &Kit, options: CatalogOptions) -> (Arc<FakeSwift>, Catalog, Arc<Image>) {
    let (server, store) = FakeSwift::start(Duration::from_secs(30));
    let spec = full("a", &kit.plain, ZLIB);
    for (name, bytes) in spec.files_with(&ZLIB.pack(&kit.plain)) {
        let modified = "2026-02-03T04:05:06.000000".to_owned();
        server.objects.lock().unwrap().insert(name, Object { bytes, modified });
    }
    let catalog = Catalog::open(store, options).unwrap();
    let image = catalog.image(catalog.snapshot().get(&kit.id).unwrap()).unwrap();
    (server, catalog, image)
}

/// What was asked for of the object so far.
fn asked(server: &FakeSwift, kit: &Kit) -> Vec<(u64, u64)> {
    let ranges = server.ranges.lock().unwrap();
    let name = kit.object.to_string();
    ranges.iter().filter(|(of, ..)| *of == name).map(|(_, from, to)| (*from, *to)).collect()
}

#[test]
fn a_random_read_fetches_nothing_beyond_its_two_restart_points() {
    let kit = Kit::new("a", mixed(5, 24 * MIB), ZLIB);
    let points: Vec<_> =
        kit.make_index().points().iter().map(|point| (point.plain_offset, point.stored_bits)).collect();
    assert!(points.len() > 6, "{}", points.len());
    let indexes = Some(kit.indexes());
    let (server, _catalog, image) = served(&kit, CatalogOptions { seek_indexes: indexes, ..options() });
    let (mut random, mut allowed, mut distances) = (Random::new(1), Vec::new(), 0);
    for round in 0..40 {
        // Also before the first point.
        let at = if round % 8 == 0 { MIB } else { random.below(kit.plain.len() - 4096) / 4096 * 4096 };
        // Whole blocks are decoded.
        let (from, to) = (at as u64 / 32_768 * 32_768, (at as u64 + 4096).next_multiple_of(32_768));
        let before = points.iter().rfind(|point| point.0 <= from);
        let after = points.iter().find(|point| point.0 >= to);
        let range = before.map_or(0, |point| point.1 / 8)
            ..after.map_or(kit.stored_bytes, |point| point.1.div_ceil(8));
        distances += range.end - range.start;
        allowed.push(range);
        let mut buf = [0; 4096];
        image.read_at(&mut buf, at as u64).unwrap();
        assert!(buf[..] == kit.plain[at..at + 4096], "wrong bytes at {at}");
    }
    let asked = asked(&server, &kit);
    for (from, to) in &asked {
        let is_sample = *to < SAMPLE_BYTES || *from >= kit.stored_bytes - SAMPLE_BYTES;
        let is_needed = allowed.iter().any(|range| range.start <= *from && *to < range.end);
        assert!(is_sample || is_needed, "{from} to {to} is of no use");
    }
    let fetched: u64 = asked.iter().map(|(from, to)| to + 1 - from).sum();
    assert!(fetched <= distances / 5 * 6, "{fetched} bytes for {distances} between the points");
    assert!(fetched >= distances / 8, "{fetched} bytes: the reads came from elsewhere");
}

#[test]
fn who_reads_on_asks_seldom_and_for_nothing_twice() {
    let kit = Kit::new("a", mixed(6, 24 * MIB), ZLIB);
    // Restart points are noted and packed on the way.
    let (server, _catalog, image) = served(&kit, CatalogOptions { workers: 2, ..options() });
    read_all(&image, &kit.plain);
    let asked = asked(&server, &kit);
    let fetched: u64 = asked.iter().map(|(from, to)| to + 1 - from).sum();
    assert!(asked.len() <= 20, "{} requests", asked.len());
    assert!(fetched <= kit.stored_bytes + 2 * SAMPLE_BYTES, "{fetched} bytes of {}", kit.stored_bytes);
}
