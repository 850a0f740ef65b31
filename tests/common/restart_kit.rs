//! Giant objects, and what their saved restart points are.

#![allow(dead_code, reason = "each test binary uses its part of the kit")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::seek_indexes::{SavedIndex, SeekIndexKey, SeekIndexStore};
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::{Image, Part};
use cinderfs::store::Store as _;
use cinderfs::types::ObjectName;
use tempfile::TempDir;

use crate::store_kit::{BackupSpec, Packing};
use crate::volume::{MIB, Random, full};
use crate::watched_store::WatchedStore;

pub(crate) const ZLIB: Packing = Packing::Zlib { level: 6, junk: 0 };

/// Stored bytes that a decoder reads at once, at most: what may be fetched beside what is needed.
pub(crate) const INPUT_BYTES: u64 = 128 << 10;

/// One volume in one object, and a cache directory.
pub(crate) struct Kit {
    pub(crate) store: WatchedStore,
    pub(crate) plain: Vec<u8>,
    pub(crate) stored_bytes: u64,
    pub(crate) object: ObjectName,
    pub(crate) id: String,
    pub(crate) cache: TempDir,
    /// Instead of what suits the codec.
    pub(crate) spacing: Option<u64>,
}

impl Kit {
    pub(crate) fn new(name: &str, plain: Vec<u8>, packing: Packing) -> Self {
        let store = WatchedStore::default();
        let spec = full(name, &plain, packing);
        let object = put(&store, &spec);
        let stored_bytes = store.inner.open(&object).unwrap().stat().len_bytes;
        let cache = tempfile::tempdir().unwrap();
        Self { store, plain, stored_bytes, object, id: spec.id, cache, spacing: None }
    }

    pub(crate) fn spaced(self, spacing: Option<u64>) -> Self {
        Self { spacing, ..self }
    }

    pub(crate) fn indexes(&self) -> Arc<SeekIndexStore> {
        indexes(self.cache.path())
    }

    /// The object's image in a process of its own, with nothing in memory.
    pub(crate) fn open(&self, indexes: Option<Arc<SeekIndexStore>>) -> (Catalog, Arc<Image>) {
        let restart_spacing_bytes = self.spacing;
        self.open_with(CatalogOptions { seek_indexes: indexes, restart_spacing_bytes, ..options() })
    }

    pub(crate) fn open_with(&self, options: CatalogOptions) -> (Catalog, Arc<Image>) {
        let catalog = Catalog::open(Arc::new(self.store.clone()), options).unwrap();
        let image = catalog.image(catalog.snapshot().get(&self.id).unwrap()).unwrap();
        (catalog, image)
    }

    /// Reads everything once in order and keeps what was learnt.
    pub(crate) fn make_index(&self) -> SavedIndex {
        let indexes = self.indexes();
        let (catalog, image) = self.open(Some(indexes.clone()));
        read_all(&image, &self.plain);
        catalog.keep_indexes();
        indexes.load(&self.key()).expect("an index that can be loaded after keep_indexes")
    }

    /// The only index in the cache directory.
    pub(crate) fn index_path(&self) -> PathBuf {
        let folder = self.indexes().path().to_owned();
        let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [file] = &files[..] else { panic!("expected one index, found {files:?}") };
        file.clone()
    }

    pub(crate) fn key(&self) -> SeekIndexKey {
        let name = self.index_path().file_name().unwrap().to_str().unwrap().to_owned();
        SeekIndexKey(std::array::from_fn(|n| u8::from_str_radix(&name[2 * n..2 * n + 2], 16).unwrap()))
    }

    #[track_caller]
    pub(crate) fn check(&self, image: &Image, at: usize, len: usize) {
        let mut buf = vec![0xEE; len];
        let n = image.read_at(&mut buf, at as u64);
        let n = n.unwrap_or_else(|error| panic!("{len} bytes at {at} of {}: {error}", self.id));
        assert_eq!(n, len.min(self.plain.len() - at), "bytes read at {at}");
        assert!(buf[..n] == self.plain[at..at + n], "wrong bytes: {len} at {at} of {}", self.id);
    }

    /// `threads` readers of random places at once.
    pub(crate) fn check_at_random(&self, image: &Image, threads: u64, reads: usize, seed: u64) {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    let mut random = Random::new(seed * 100 + thread);
                    for _ in 0..reads {
                        let len = 1 + random.below(60_000);
                        self.check(image, random.below(self.plain.len() - len), len);
                    }
                });
            }
        });
    }
}

pub(crate) fn put(store: &WatchedStore, spec: &BackupSpec) -> ObjectName {
    spec.write_to_memory(&store.inner);
    ObjectName::parse(&spec.object_path(0)).unwrap()
}

/// Nothing of one read serves another, and only readers read.
pub(crate) fn options() -> CatalogOptions {
    CatalogOptions { cache_bytes_max: 0, idle_decoder_bytes_max: 0, workers: 0, ..CatalogOptions::default() }
}

pub(crate) fn indexes(folder: &Path) -> Arc<SeekIndexStore> {
    Arc::new(SeekIndexStore::open(&CacheDir::open(folder).unwrap(), 1 << 30).unwrap())
}

pub(crate) fn read_all(image: &Image, plain: &[u8]) {
    let mut buf = vec![0; MIB];
    for at in (0..plain.len()).step_by(MIB) {
        let n = image.read_at(&mut buf, at as u64).unwrap();
        assert!(buf[..n] == plain[at..at + n], "wrong bytes at {at}");
    }
}

/// Each codec with at least some points in a dozen MiB.
pub(crate) const HARMED: &[(&str, Packing, Option<u64>)] = &[
    ("zlib", ZLIB, None),
    ("bz", Packing::Bz2 { level: 9, streams: 1 }, None),
    ("zstd", Packing::Zstd { level: 3, frames: 1 }, Some(2 << 20)),
];

/// Offsets of lost blocks.
pub(crate) fn lost(image: &Image, plain: &[u8]) -> Vec<u64> {
    let mut lost = Vec::new();
    let visited = image.visit(0..u64::MAX, &mut |range, part| {
        let expected = &plain[range.start as usize..range.end as usize];
        match part {
            Part::Data(bytes) => assert!(bytes == expected, "wrong bytes at {range:?}"),
            Part::Zeros => assert!(expected.iter().all(|&byte| byte == 0), "no zeros at {range:?}"),
            Part::Lost(_) => lost.push(range.start),
        }
        Ok(())
    });
    visited.unwrap();
    lost
}
