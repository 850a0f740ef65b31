//! Is what is known of an object's restart points true, and is it kept, whatever goes wrong on the way?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests; a panic is the report, and a child tells its parent how far it is"
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
use std::io::{BufRead as _, BufReader, Read as _};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::seek_indexes::{SavedIndex, SeekIndexKey, SeekIndexStore};
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::codec::RestartPoint;
use cinderfs::image::Image;
use cinderfs::store::Store;
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::types::ObjectName;

use cases::Watchdog;
use store_kit::{BackupSpec, Packing};
use volume::{BLOCK, MIB, Random, full, mixed};
use watched_store::WatchedStore;

const ZLIB: Packing = Packing::Zlib { level: 6, junk: 0 };

/// Nothing of one read serves another.
fn options() -> CatalogOptions {
    CatalogOptions { cache_bytes_max: 0, idle_decoder_bytes_max: 0, workers: 1, ..CatalogOptions::default() }
}

fn indexes(folder: &Path) -> Arc<SeekIndexStore> {
    Arc::new(SeekIndexStore::open(&CacheDir::open(folder).unwrap(), 1 << 30).unwrap())
}

/// The only index there is.
fn only_key(indexes: &SeekIndexStore) -> Option<SeekIndexKey> {
    let names = fs::read_dir(indexes.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> =
        names.map(|name| name.into_string().unwrap()).filter(|name| name.len() == 64).collect();
    assert!(names.len() <= 1, "{names:?}");
    let name = names.first()?;
    Some(SeekIndexKey(std::array::from_fn(|n| u8::from_str_radix(&name[2 * n..2 * n + 2], 16).unwrap())))
}

fn only_index(indexes: &SeekIndexStore) -> SavedIndex {
    indexes.load(&only_key(indexes).expect("an index")).expect("an index that can be loaded")
}

fn put(store: &WatchedStore, spec: &BackupSpec) -> ObjectName {
    spec.write_to_memory(&store.inner);
    ObjectName::parse(&spec.object_path(0)).unwrap()
}

fn open(store: impl Store + 'static, id: &str, options: CatalogOptions) -> (Catalog, Arc<Image>) {
    let catalog = Catalog::open(Arc::new(store), options).unwrap();
    let image = catalog.image(catalog.snapshot().get(id).unwrap()).unwrap();
    (catalog, image)
}

/// Reads everything in order, and says which blocks could not be read.
fn lost_in_order(image: &Image, plain: &[u8]) -> Vec<usize> {
    lost_of(image, plain, (0..plain.len().div_ceil(BLOCK)).collect())
}

fn lost_of(image: &Image, plain: &[u8], blocks: Vec<usize>) -> Vec<usize> {
    let mut lost = Vec::new();
    let mut buf = vec![0; BLOCK];
    for block in blocks {
        let at = block * BLOCK;
        match image.read_at(&mut buf, at as u64) {
            Ok(n) => assert!(buf[..n] == plain[at..at + n], "wrong bytes in block {block}"),
            Err(_) => lost.push(block),
        }
    }
    lost
}

/// Bytes in which what is wrong stays wrong for long: pieces that are repeated with changes, among noise that makes for
/// many deflate blocks.
fn echoes(len: usize) -> Vec<u8> {
    let mut random = Random::new(77);
    let mut nibbles = |n: usize| -> Vec<u8> { (0..n).map(|_| random.next() as u8 & 15).collect() };
    let mut echo = nibbles(8 << 10);
    let mut bytes = Vec::new();
    let mut changes = Random::new(78);
    while bytes.len() < len {
        bytes.extend(nibbles(16 << 10));
        for _ in 0..200 {
            let at = changes.below(echo.len());
            echo[at] = changes.next() as u8 & 15;
        }
        bytes.extend(&echo);
    }
    bytes.truncate(len);
    bytes
}

/// A stored bit whose change nothing notices but the digests: the stream goes on to its end, with wrong bytes here and there.
/// Returns the stored byte and its bit.
fn unnoticed_bit(stored: &[u8], plain: &[u8]) -> (u64, u8) {
    let mut random = Random::new(5);
    for _ in 0..4000 {
        let at = stored.len() / 3 + random.below(stored.len() / 10);
        let bit = random.below(8) as u8;
        let mut changed = stored.to_vec();
        changed[at] ^= 1 << bit;
        let mut decoded = Vec::new();
        // The checksum at its end tells.
        let _ = flate2::read::ZlibDecoder::new(&changed[..]).read_to_end(&mut decoded);
        let blocks =
            decoded.chunks(BLOCK).zip(plain.chunks(BLOCK)).filter(|(one, other)| one != other).count();
        if decoded.len() == plain.len() && blocks > 12 {
            return (at as u64, bit);
        }
    }
    panic!("no bit can be changed unnoticed");
}

/// A backup of echoes behind a store that lies once.
fn lying_once(name: &str) -> (FaultStore<WatchedStore>, BackupSpec, Vec<u8>, Rule) {
    let plain = echoes(4 * MIB);
    let spec = full(name, &plain, ZLIB);
    let store = WatchedStore::default();
    put(&store, &spec);
    let (offset_bytes, bit) = unnoticed_bit(&ZLIB.pack(&plain), &plain);
    let lie = Rule::new(Operation::Read, Fault::FlipBit { offset_bytes, bit });
    let lie = lie.names(spec.object_path(0)).bytes(offset_bytes..offset_bytes + 1).times(1);
    (FaultStore::new(store, []), spec, plain, lie)
}

const ECHO_SPACING: Option<u64> = Some(100_000);

#[test]
fn points_noted_while_the_store_lied_once_are_forgotten_when_the_digests_tell() {
    let _watchdog = Watchdog::new();
    let cache = tempfile::tempdir().unwrap();
    for with_file in [false, true] {
        let (store, spec, plain, lie) = lying_once("lie");
        store.set_script([lie]);
        let indexes = indexes(cache.path());
        let (catalog, image) = open(
            store,
            &spec.id,
            CatalogOptions {
                restart_spacing_bytes: ECHO_SPACING,
                seek_indexes: with_file.then(|| indexes.clone()),
                ..options()
            },
        );
        // In one read, so that points are noted far beyond the lie before it is found out.
        let mut all = vec![0; plain.len()];
        let read = image.read_at(&mut all, 0);
        assert!(read.is_ok_and(|n| n == plain.len()) && all == plain, "what was read while the store lied");
        // From the points, backwards.
        let backwards = (0..plain.len() / BLOCK).rev().collect();
        assert_eq!(lost_of(&image, &plain, backwards), [0; 0], "with a file: {with_file}");
        assert_eq!(lost_in_order(&image, &plain), [0; 0]);
        if with_file {
            catalog.keep_indexes();
            let saved = only_index(&indexes);
            assert!(saved.points().len() > 10, "{} points are left", saved.points().len());
        }
    }
}

/// An index run verifies nothing, so nobody knows until somebody reads.
#[test]
fn points_noted_by_an_index_run_while_the_store_lied_cost_no_block() {
    let _watchdog = Watchdog::new();
    let (store, spec, plain, lie) = lying_once("run");
    store.set_script([lie]);
    let (_catalog, image) =
        open(store, &spec.id, CatalogOptions { restart_spacing_bytes: ECHO_SPACING, ..options() });
    let report = cinderfs::frontend::index::index(&[&*image], 1, &AtomicBool::new(false), &|_| {}).unwrap();
    assert_eq!((report.objects, report.failed.len()), (1, 0), "{report:?}");
    let backwards = (0..plain.len() / BLOCK).rev().collect();
    assert_eq!(lost_of(&image, &plain, backwards), [0; 0]);
}

/// An object of 16 MiB with an index of which one point is wrong, and with damage before that point.
struct Damaged {
    store: WatchedStore,
    spec: BackupSpec,
    plain: Vec<u8>,
    indexes: Arc<SeekIndexStore>,
    saved: SavedIndex,
    /// The plain bytes that are lost at most.
    lost: Range<u64>,
    wrong_at: u64,
    _cache: tempfile::TempDir,
}

const DAMAGED_SPACING: Option<u64> = Some(512 << 10);

fn damaged() -> Damaged {
    let (store, plain, cache) = (WatchedStore::default(), mixed(21, 16 * MIB), tempfile::tempdir().unwrap());
    let spec = full("hurt", &plain, ZLIB);
    let object = put(&store, &spec);
    let indexes = indexes(cache.path());
    let with_points = || CatalogOptions {
        seek_indexes: Some(indexes.clone()),
        restart_spacing_bytes: DAMAGED_SPACING,
        ..options()
    };
    {
        let (catalog, image) = open(store.clone(), &spec.id, with_points());
        assert_eq!(lost_in_order(&image, &plain), [0; 0]);
        catalog.keep_indexes();
    }
    let (key, saved) = (only_key(&indexes).unwrap(), only_index(&indexes));
    let wrong = saved.points().iter().position(|point| point.plain_offset > 10 * MIB as u64).unwrap();
    let points = saved.points().iter().enumerate().map(|(n, point)| {
        let stored_bits = point.stored_bits + if n == wrong { 8 * 1000 } else { 0 };
        Ok(RestartPoint { plain_offset: point.plain_offset, stored_bits, state: saved.state(n)? })
    });
    let points: Vec<_> = points.collect();
    indexes.forget(&key);
    indexes.save(&key, saved.known_to(), &mut points.into_iter()).unwrap();

    let mut stored = ZLIB.pack(&plain);
    let at = stored.len() / 3;
    stored[at..at + 64].iter_mut().for_each(|byte| *byte ^= 0x5A);
    store.inner.insert(object, stored);
    let before = saved.points().iter().rfind(|point| point.stored_bits / 8 <= at as u64).unwrap();
    let after = saved.points().iter().find(|point| point.stored_bits / 8 > at as u64).unwrap();
    let (lost, wrong_at) = (before.plain_offset..after.plain_offset, saved.points()[wrong].plain_offset);
    Damaged { store, spec, plain, indexes: indexes.clone(), saved, lost, wrong_at, _cache: cache }
}

#[test]
fn damage_does_not_make_other_points_beyond_doubt_or_of_no_use() {
    let _watchdog = Watchdog::new();
    let kit = damaged();
    let with_points = CatalogOptions {
        seek_indexes: Some(kit.indexes.clone()),
        restart_spacing_bytes: DAMAGED_SPACING,
        ..options()
    };
    let (catalog, image) = open(kit.store.clone(), &kit.spec.id, with_points);
    let in_damage = kit.lost.start / BLOCK as u64..kit.lost.end.div_ceil(BLOCK as u64);
    let hurt = lost_of(&image, &kit.plain, (in_damage.start as usize..in_damage.end as usize).collect());
    assert!(!hurt.is_empty(), "the damage went unnoticed");
    let lost = lost_of(&image, &kit.plain, (0..kit.plain.len() / BLOCK).rev().collect());
    assert_eq!(lost, hurt.iter().rev().copied().collect::<Vec<_>>(), "of damage, wrong at {}", kit.wrong_at);
    // What that costs from now on: no more than the way from the point before.
    let mut random = Random::new(3);
    for _ in 0..30 {
        let block = random.below(kit.plain.len() / BLOCK);
        kit.store.take_read_bytes();
        lost_of(&image, &kit.plain, vec![block]);
        let read = kit.store.take_read_bytes();
        assert!(read < 3 * MIB as u64 / 2, "{read} bytes were fetched for block {block}");
    }
    catalog.keep_indexes();
    let left = only_index(&kit.indexes);
    let is_left = |at: u64| left.points().iter().any(|point| point.plain_offset == at);
    let gone: Vec<_> =
        kit.saved.points().iter().map(|point| point.plain_offset).filter(|at| !is_left(*at)).collect();
    assert!(gone.iter().all(|at| *at == kit.wrong_at), "{gone:?} are gone, wrong was {}", kit.wrong_at);
}

/// One rotten byte under a state, seen through a reader.
#[test]
fn a_damaged_state_in_the_file_costs_one_point() {
    let _watchdog = Watchdog::new();
    let (store, plain, cache) = (WatchedStore::default(), mixed(22, 16 * MIB), tempfile::tempdir().unwrap());
    let spec = full("rot", &plain, ZLIB);
    put(&store, &spec);
    let indexes = indexes(cache.path());
    let with_points = || CatalogOptions {
        seek_indexes: Some(indexes.clone()),
        restart_spacing_bytes: DAMAGED_SPACING,
        ..options()
    };
    {
        let (catalog, image) = open(store.clone(), &spec.id, with_points());
        assert_eq!(lost_in_order(&image, &plain), [0; 0]);
        catalog.keep_indexes();
    }
    let all = only_index(&indexes).points().len();
    let path = fs::read_dir(indexes.path()).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (_catalog, image) = open(store, &spec.id, with_points());
    assert_eq!(lost_of(&image, &plain, (0..plain.len() / BLOCK).rev().collect()), [0; 0]);
    let left = only_index(&indexes).points().len();
    assert!(left + 1 >= all, "{left} of {all} points are left");
}

const CHILD_FOLDER: &str = "RESTART_BOOKKEEPING_FOLDER";
const CHILD_CODEC: &str = "RESTART_BOOKKEEPING_CODEC";

/// What a child reads: enough for some hundred points.
fn read_by_child(codec: &str) -> (BackupSpec, Vec<u8>, Option<u64>) {
    let (packing, len, spacing) = match codec {
        "zlib" => (Packing::Zlib { level: 3, junk: 0 }, 64 * MIB, Some(256 << 10)),
        "bz2" => (Packing::Bz2 { level: 1, streams: 1 }, 24 * MIB, None),
        other => panic!("unknown codec {other}"),
    };
    let plain = mixed(40, len);
    (full("kill", &plain, packing), plain, spacing)
}

#[test]
#[ignore = "started by another test, which kills it"]
fn child_that_reads_on() {
    let folder = std::env::var_os(CHILD_FOLDER).expect("only another test starts this one");
    let (spec, plain, restart_spacing_bytes) = read_by_child(&std::env::var(CHILD_CODEC).unwrap());
    let store = WatchedStore::default();
    put(&store, &spec);
    let seek_indexes = Some(indexes(Path::new(&folder)));
    let options = CatalogOptions { seek_indexes, restart_spacing_bytes, ..options() };
    let (_catalog, image) = open(store, &spec.id, options);
    let mut buf = vec![0; MIB];
    for at in (0..plain.len()).step_by(MIB) {
        image.read_at(&mut buf, at as u64).unwrap();
        println!("\nat {at}");
        // About as fast as a mount is read.
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_secs(60));
}

/// Killed when dropped, if not before.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_killed_in_the_middle_of_a_pass_keeps_nearly_all_points() {
    for codec in ["zlib", "bz2"] {
        let cache = tempfile::tempdir().unwrap();
        let (_, plain, _) = read_by_child(codec);
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_reads_on", "--ignored", "--nocapture"])
            .env(CHILD_FOLDER, cache.path())
            .env(CHILD_CODEC, codec)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut reader = Reader(child);
        let half = plain.len() as u64 / 2;
        let mut lines = BufReader::new(reader.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let at =
            lines.find_map(|line| line.strip_prefix("at ")?.parse::<u64>().ok().filter(|at| *at >= half));
        let at = at.expect("the child to come to the middle");
        reader.0.kill().unwrap();
        reader.0.wait().unwrap();
        let indexes = indexes(cache.path());
        assert!(only_key(&indexes).is_some(), "{codec}: nothing was saved on the way to {at}");
        let saved = only_index(&indexes);
        println!("{codec}: killed at {at}, known to {}, {} points", saved.known_to(), saved.points().len());
        assert!(
            saved.known_to() >= at / 5 * 4,
            "{codec}: known to {} of {at} when it was killed",
            saved.known_to()
        );
        let last = saved.points().last().map_or(0, |point| point.plain_offset);
        assert!(last >= at / 5 * 4, "{codec}: the last point is at {last}");
        assert!((0..saved.points().len()).all(|n| saved.state(n).is_ok()));
    }
}
