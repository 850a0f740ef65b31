//! Objects whose zstd frames ask for windows of 128 MiB: the process holds one such window at a time, and all readers come to their bytes.
//!
//! That it is one at a time shows in `tests/damage/bomb-zstd-wide-windows`, which bounds the memory of a restore and a mount.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/store_kit.rs"]
mod store_kit;

use std::io::Write as _;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::Image;
use cinderfs::store::memory::MemoryStore;
use cinderfs::types::ObjectName;
use store_kit::{BackupSpec, ObjectSpec, Packing, digests_of};

const OBJECT_BYTES: usize = 3 << 20;
const OBJECTS: usize = 3;
const BLOCK_BYTES: usize = 32 << 10;
const READERS: usize = 8;

/// A hang is a failure, however busy the machine is.
const WATCHDOG: Duration = Duration::from_secs(300);

/// Bytes that compress a little, in which no block equals another.
fn volume() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8 & 0x3F
    };
    (0..OBJECTS * OBJECT_BYTES).map(|_| next()).collect()
}

/// Frames of windows of 128 MiB, each over a part of `plain`.
fn wide(plain: &[u8], frames: usize) -> Vec<u8> {
    let one = |part: &[u8]| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(part).unwrap();
        encoder.finish().unwrap()
    };
    plain.chunks(plain.len() / frames).flat_map(one).collect()
}

/// An image whose objects are such frames: one, two, three.
fn image(plain: &[u8]) -> Arc<Image> {
    let mut spec =
        BackupSpec::new("11111111-0000-4000-8000-000000000001", "22222222-0000-4000-8000-000000000002");
    let packing = Packing::Zstd { level: 1, frames: 1 };
    let parts = plain.chunks(OBJECT_BYTES).enumerate();
    spec.objects = parts
        .map(|(i, part)| ObjectSpec { offset: i * OBJECT_BYTES, plain: part.to_vec(), packing })
        .collect();
    spec.digests = Some((BLOCK_BYTES, digests_of(plain, BLOCK_BYTES)));
    let memory = MemoryStore::new();
    spec.write_to_memory(&memory);
    for (i, part) in plain.chunks(OBJECT_BYTES).enumerate() {
        memory.insert(ObjectName::parse(&spec.object_path(i)).unwrap(), wide(part, i + 1));
    }
    // Without a cache, so that every read decodes; with threads that read ahead.
    let options = CatalogOptions { cache_bytes_max: 0, workers: 2, ..CatalogOptions::default() };
    let catalog = Catalog::open(Arc::new(memory), options).unwrap();
    catalog.image(catalog.snapshot().get("11111111-0000-4000-8000-000000000001").unwrap()).unwrap()
}

#[test]
fn many_readers_of_many_wide_frames_all_get_their_bytes() {
    let plain = Arc::new(volume());
    let image = image(&plain);
    let (tell, told) = mpsc::channel();
    for reader in 0..READERS {
        let (plain, image, tell) = (plain.clone(), image.clone(), tell.clone());
        std::thread::spawn(move || {
            // Each begins elsewhere, so that different objects are read at once; half of them go on in order, half jump.
            let step = if reader % 2 == 0 { 256 << 10 } else { 7 * (256 << 10) };
            let pieces = plain.len() / (256 << 10);
            let start = reader * pieces / READERS * (256 << 10);
            for piece in 0..pieces {
                let offset = (start + piece * step) % plain.len();
                let mut bytes = vec![0; (256 << 10).min(plain.len() - offset)];
                image.read_ahead(offset as u64..(offset + bytes.len()) as u64);
                let read = image.read_at(&mut bytes, offset as u64);
                if read.as_ref().ok() != Some(&bytes.len()) || bytes != plain[offset..offset + bytes.len()] {
                    tell.send(Some(format!("reader {reader} at {offset}: {read:?}, or wrong bytes")))
                        .unwrap();
                    return;
                }
            }
            tell.send(None).unwrap();
        });
    }
    for _ in 0..READERS {
        let ended = told.recv_timeout(WATCHDOG).expect("a reader hangs");
        assert_eq!(ended, None);
    }
}
