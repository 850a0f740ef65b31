//! Is a read deep inside a giant object cheap, and are its bytes right whatever the saved restart points say?
//!
//! Cost is asserted as stored bytes fetched, which no other load on the machine changes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;
#[path = "common/watched_store.rs"]
mod watched_store;

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::seek_indexes::{SavedIndex, SeekIndexKey, SeekIndexStore};
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::codec::RestartPoint;
use cinderfs::image::{Image, Part};
use cinderfs::store::Store;
use cinderfs::types::ObjectName;
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use cases::Watchdog;
use store_kit::{BackupSpec, Packing};
use volume::{BLOCK, MIB, Random, full, id, mixed};
use watched_store::WatchedStore;

const ZLIB: Packing = Packing::Zlib { level: 6, junk: 0 };

/// Stored bytes that a decoder reads at once, at most: what may be fetched beside what is needed.
const INPUT_BYTES: u64 = 128 << 10;

/// One volume in one object, and a cache directory.
struct Kit {
    store: WatchedStore,
    plain: Vec<u8>,
    stored_bytes: u64,
    object: ObjectName,
    id: String,
    cache: TempDir,
    /// Instead of what suits the codec.
    spacing: Option<u64>,
}

impl Kit {
    fn new(name: &str, plain: Vec<u8>, packing: Packing) -> Self {
        let store = WatchedStore::default();
        let spec = full(name, &plain, packing);
        let object = put(&store, &spec);
        let stored_bytes = store.inner.open(&object).unwrap().stat().len_bytes;
        let cache = tempfile::tempdir().unwrap();
        Self { store, plain, stored_bytes, object, id: spec.id, cache, spacing: None }
    }

    fn spaced(self, spacing: Option<u64>) -> Self {
        Self { spacing, ..self }
    }

    fn indexes(&self) -> Arc<SeekIndexStore> {
        indexes(self.cache.path())
    }

    /// The object's image in a process of its own, with nothing in memory.
    fn open(&self, indexes: Option<Arc<SeekIndexStore>>) -> (Catalog, Arc<Image>) {
        let restart_spacing_bytes = self.spacing;
        self.open_with(CatalogOptions { seek_indexes: indexes, restart_spacing_bytes, ..options() })
    }

    fn open_with(&self, options: CatalogOptions) -> (Catalog, Arc<Image>) {
        let catalog = Catalog::open(Arc::new(self.store.clone()), options).unwrap();
        let image = catalog.image(catalog.snapshot().get(&self.id).unwrap()).unwrap();
        (catalog, image)
    }

    /// Reads everything once in order and keeps what was learnt.
    fn make_index(&self) -> SavedIndex {
        let indexes = self.indexes();
        let (catalog, image) = self.open(Some(indexes.clone()));
        read_all(&image, &self.plain);
        catalog.keep_indexes();
        indexes.load(&self.key()).expect("an index that can be loaded after keep_indexes")
    }

    /// The only index in the cache directory.
    fn index_path(&self) -> PathBuf {
        let folder = self.indexes().path().to_owned();
        let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [file] = &files[..] else { panic!("expected one index, found {files:?}") };
        file.clone()
    }

    fn key(&self) -> SeekIndexKey {
        let name = self.index_path().file_name().unwrap().to_str().unwrap().to_owned();
        SeekIndexKey(std::array::from_fn(|n| u8::from_str_radix(&name[2 * n..2 * n + 2], 16).unwrap()))
    }

    #[track_caller]
    fn check(&self, image: &Image, at: usize, len: usize) {
        let mut buf = vec![0xEE; len];
        let n = image.read_at(&mut buf, at as u64);
        let n = n.unwrap_or_else(|error| panic!("{len} bytes at {at} of {}: {error}", self.id));
        assert_eq!(n, len.min(self.plain.len() - at), "bytes read at {at}");
        assert!(buf[..n] == self.plain[at..at + n], "wrong bytes: {len} at {at} of {}", self.id);
    }

    /// `threads` readers of random places at once.
    fn check_at_random(&self, image: &Image, threads: u64, reads: usize, seed: u64) {
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

fn put(store: &WatchedStore, spec: &BackupSpec) -> ObjectName {
    spec.write_to_memory(&store.inner);
    ObjectName::parse(&spec.object_path(0)).unwrap()
}

/// Nothing of one read serves another, and only readers read.
fn options() -> CatalogOptions {
    CatalogOptions { cache_bytes_max: 0, idle_decoder_bytes_max: 0, workers: 0, ..CatalogOptions::default() }
}

fn indexes(folder: &Path) -> Arc<SeekIndexStore> {
    Arc::new(SeekIndexStore::open(&CacheDir::open(folder).unwrap(), 1 << 30).unwrap())
}

fn read_all(image: &Image, plain: &[u8]) {
    let mut buf = vec![0; MIB];
    for at in (0..plain.len()).step_by(MIB) {
        let n = image.read_at(&mut buf, at as u64).unwrap();
        assert!(buf[..n] == plain[at..at + n], "wrong bytes at {at}");
    }
}

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

/// Each codec with at least some points in a dozen MiB.
const HARMED: &[(&str, Packing, Option<u64>)] = &[
    ("zlib", ZLIB, None),
    ("bz", Packing::Bz2 { level: 9, streams: 1 }, None),
    ("zstd", Packing::Zstd { level: 3, frames: 1 }, Some(2 << 20)),
];

// > Restart points that reads have found are kept in the cache directory and serve later mounts; points that are damaged, foreign or wrong cost time and never a byte.
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

/// As in a cache directory that was copied from another machine by name, or after a collision of keys.
#[test]
fn points_of_another_object_are_found_out_by_many_readers_at_once() {
    let _watchdog = Watchdog::new();
    let kit = Kit::new("a", mixed(3, 16 * MIB), ZLIB);
    let other = Kit::new("b", mixed(4, 16 * MIB), ZLIB);
    let (own, foreign) = (kit.make_index(), other.make_index());
    let key = kit.key();
    for threads in [1, 4] {
        let store = kit.indexes();
        store.forget(&key);
        let points = foreign.points().iter().enumerate().map(|(n, point)| {
            let (plain_offset, stored_bits) = (point.plain_offset, point.stored_bits);
            Ok(RestartPoint { plain_offset, stored_bits, state: foreign.state(n)? })
        });
        store.save(&key, foreign.known_to(), &mut points.collect::<Vec<_>>().into_iter()).unwrap();
        let (catalog, image) = kit.open(Some(store.clone()));
        kit.check_at_random(&image, threads, 40, threads);
        if let Some(left) = store.load(&key) {
            assert_ne!(left.points(), foreign.points(), "the wrong index is still there");
        }
        read_all(&image, &kit.plain);
        catalog.keep_indexes();
        drop((catalog, image));
        let rebuilt = store.load(&key).expect("a new index after the wrong one");
        assert_eq!(rebuilt.known_to(), own.known_to());
        let own_bits = |at| own.points().iter().find(|p| p.plain_offset == at).map(|p| p.stored_bits);
        let is_own = |p: &cinderfs::cache_dir::seek_indexes::SavedPoint| {
            own_bits(p.plain_offset).is_none_or(|bits| bits == p.stored_bits)
        };
        assert!(rebuilt.points().iter().all(is_own), "the new index has points of the wrong one");
    }
}

/// What a bug of a writer, or somebody with a purpose, might leave: right checksums over wrong points.
// > Restart points that reads have found are kept in the cache directory and serve later mounts; points that are damaged, foreign or wrong cost time and never a byte.
#[test]
fn points_that_are_wrong_under_right_checksums_never_reach_a_reader() {
    for &(name, packing, spacing) in HARMED {
        let _watchdog = Watchdog::new();
        check_wrong_points(&Kit::new(name, mixed(5, 12 * MIB), packing).spaced(spacing));
    }
}

fn check_wrong_points(kit: &Kit) {
    let own = kit.make_index();
    let key = kit.key();
    let states: Vec<Arc<[u8]>> = (0..own.points().len()).map(|n| own.state(n).unwrap()).collect();
    let count = states.len();
    assert!(count >= 4, "{count} points");
    type Change = fn(&mut RestartPoint, usize, &[Arc<[u8]>]);
    let changes: [(&str, Change); 8] = [
        ("bits up", |point, _, _| point.stored_bits += 1),
        ("bits down", |point, _, _| point.stored_bits -= 3),
        ("bits far", |point, n, _| point.stored_bits += 8 * 4321 * n as u64),
        ("bits beyond", |point, _, _| point.stored_bits = u64::MAX),
        ("offset", |point, _, _| point.plain_offset += 32768),
        ("offset by one", |point, _, _| point.plain_offset -= 1),
        ("state of another", |point, n, states| point.state = states[(n + 1) % states.len()].clone()),
        ("state of noise", |point, n, _| {
            let mut state = point.state.to_vec();
            let mut random = Random::new(n as u64 + 1);
            for _ in 0..state.len().min(20) {
                let at = random.below(state.len());
                state[at] ^= 1 << random.below(8);
            }
            point.state = state.into();
        }),
    ];
    for (seed, (what, change)) in changes.into_iter().enumerate() {
        for every in [1, 2] {
            let store = kit.indexes();
            store.forget(&key);
            let points = own.points().iter().enumerate().map(|(n, point)| {
                let (plain_offset, stored_bits) = (point.plain_offset, point.stored_bits);
                let mut point = RestartPoint { plain_offset, stored_bits, state: states[n].clone() };
                if n % every == 0 {
                    change(&mut point, n, &states);
                }
                Ok(point)
            });
            let points: Vec<_> = points.collect();
            store.save(&key, own.known_to(), &mut points.into_iter()).unwrap();
            let (_catalog, image) = kit.open(Some(store.clone()));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                kit.check_at_random(&image, 4, 10, seed as u64);
            }));
            assert!(result.is_ok(), "{}, {what}, every {every}: expected right bytes, see above", kit.id);
        }
    }
}

// > Restart points that reads have found are kept in the cache directory and serve later mounts; points that are damaged, foreign or wrong cost time and never a byte.
#[test]
fn files_that_are_damaged_or_deleted_while_they_are_used_change_no_byte() {
    let _watchdog = Watchdog::new();
    let kit = Kit::new("a", mixed(6, 12 * MIB), ZLIB);
    let _ = kit.make_index();
    let path = kit.index_path();
    let good = fs::read(&path).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(9);
            while !stop.load(Ordering::Relaxed) {
                match random.below(8) {
                    0 => drop(fs::remove_dir_all(path.parent().unwrap())),
                    1 => drop(fs::write(&path, &good[..random.below(good.len())])),
                    2 | 3 => drop(fs::write(&path, &good)),
                    _ => {
                        if let Ok(file) = fs::OpenOptions::new().write(true).open(&path) {
                            let at = random.below(good.len()) as u64;
                            let _ = file.write_at(&[random.next() as u8], at);
                        }
                    }
                }
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 0..6 {
                let (catalog, image) = kit.open_with(CatalogOptions {
                    workers: 2,
                    seek_indexes: Some(kit.indexes()),
                    ..options()
                });
                kit.check_at_random(&image, 4, 20, round);
                catalog.keep_indexes();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        assert!(result.is_ok(), "expected right bytes from each read, see above");
    });
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

/// A file system in memory, unmounted when dropped.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn new(size: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts a file system, which needs root");
        let folder = tempfile::tempdir().unwrap();
        let data = std::ffi::CString::new(format!("size={size},mode=700")).unwrap();
        rustix::mount::mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), data.as_c_str()).unwrap();
        Self(folder)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_or_read_only_cache_directory_changes_no_byte() {
    let _watchdog = Watchdog::new();
    let kit = Kit::new("a", mixed(7, 12 * MIB), ZLIB);
    let _ = kit.make_index();
    let name = kit.index_path().file_name().unwrap().to_owned();
    let index = fs::read(kit.index_path()).unwrap();
    // Too small for the index, and read-only with a damaged one.
    let full = Tmpfs::new("16k");
    let store = indexes(full.0.path());
    for round in 0..2 {
        let (catalog, image) = kit.open(Some(store.clone()));
        read_all(&image, &kit.plain);
        kit.check_at_random(&image, 2, 10, round);
        catalog.keep_indexes();
    }
    let left: u64 =
        fs::read_dir(store.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(left < 16 << 10, "{left} bytes are left of files that did not fit");
    drop((store, full));

    let read_only = Tmpfs::new("64m");
    let store = indexes(read_only.0.path());
    for damaged in [false, true] {
        let mut bytes = index.clone();
        if damaged {
            // One of the states.
            bytes[1000] ^= 1;
        }
        let data = c"size=64m";
        rustix::mount::mount_remount(read_only.0.path(), MountFlags::empty(), data).unwrap();
        fs::write(store.path().join(&name), &bytes).unwrap();
        fs::set_permissions(store.path().join(&name), fs::Permissions::from_mode(0o600)).unwrap();
        rustix::mount::mount_remount(read_only.0.path(), MountFlags::RDONLY, data).unwrap();
        let (catalog, image) = kit.open(Some(store.clone()));
        kit.check_at_random(&image, 4, 10, 5);
        read_all(&image, &kit.plain);
        catalog.keep_indexes();
    }
}

/// Flips a bit in the middle of the stored object; returns the plain bytes that lie between the points around it.
fn damage(kit: &Kit, saved: &SavedIndex) -> std::ops::Range<u64> {
    let source = kit.store.inner.open(&kit.object).unwrap();
    let mut stored = vec![0; kit.stored_bytes as usize];
    assert_eq!(source.read_at(&mut stored, 0).unwrap(), stored.len());
    let at = stored.len() / 2;
    for byte in &mut stored[at..at + 64] {
        *byte ^= 0x5A;
    }
    kit.store.inner.insert(kit.object.clone(), stored);
    let before = saved.points().iter().rfind(|point| point.stored_bits / 8 <= at as u64).unwrap();
    let after = saved.points().iter().find(|point| point.stored_bits / 8 > at as u64).unwrap();
    before.plain_offset..after.plain_offset
}

/// Offsets of lost blocks.
fn lost(image: &Image, plain: &[u8]) -> Vec<u64> {
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

// > In a compressed object with restart points, damage costs what lies between it and the next point.
#[test]
fn damage_costs_the_stretch_that_it_lies_in_and_no_index() {
    for &(name, packing, spacing) in HARMED {
        let _watchdog = Watchdog::new();
        check_damage(&Kit::new(name, mixed(8, 16 * MIB), packing).spaced(spacing));
    }
}

fn check_damage(kit: &Kit) {
    let saved = kit.make_index();
    let stretch = damage(kit, &saved);
    let bytes = fs::read(kit.index_path()).unwrap();
    let block = BLOCK as u64;
    for round in 0..2 {
        let (catalog, image) = kit.open(Some(kit.indexes()));
        let lost = lost(&image, &kit.plain);
        assert!(!lost.is_empty(), "a flipped byte went unnoticed");
        let is_near = |at: &u64| at + block > stretch.start && *at < stretch.end;
        let far: Vec<_> = lost.iter().filter(|at| !is_near(at)).collect();
        assert!(
            far.is_empty(),
            "{}, round {round}: lost outside the damaged stretch {stretch:?}: {far:?}",
            kit.id
        );
        catalog.keep_indexes();
        drop((catalog, image));
        assert!(
            fs::read(kit.index_path()).unwrap() == bytes,
            "{}, round {round}: the index was thrown away",
            kit.id
        );
    }
}

/// An object with a wrong block is opened anew now and then, in case it was repaired; its points stay known.
#[test]
fn points_outlive_the_suspicion_of_their_object_without_a_cache_directory() {
    let _watchdog = Watchdog::new();
    let kit = Kit::new("a", mixed(8, 24 * MIB), ZLIB);
    let mut spec = full("a", &kit.plain, ZLIB);
    let bad =
        (0..300).rev().find(|n| kit.plain[n * BLOCK..(n + 1) * BLOCK].iter().any(|&byte| byte != 0)).unwrap();
    spec.digests.as_mut().unwrap().1[bad] = [1; 32];
    put(&kit.store, &spec);
    let (_catalog, image) = kit.open(None);
    for round in 0..2 {
        assert_eq!(lost(&image, &kit.plain), [(bad * BLOCK) as u64], "round {round}: one block is lost");
        std::thread::sleep(Duration::from_millis(3200));
        kit.store.take_read_bytes();
        kit.check(&image, 20 * MIB, 4096);
        let read = kit.store.take_read_bytes();
        assert!(read < kit.stored_bytes / 4, "round {round}: {read} bytes were fetched for one read");
    }
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
