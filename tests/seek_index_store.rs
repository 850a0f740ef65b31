//! Do saved restart points survive everything that can happen to a cache directory?
//!
//! Each state is derived from the place of its point, so whoever reads one knows what it must be.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "seek_index_store/files.rs"]
mod files;
#[path = "seek_index_store/room.rs"]
mod room;
#[path = "seek_index_store/sharing.rs"]
mod sharing;

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::seek_indexes::{
    POINTS_MAX, STATE_BYTES_MAX, SavedIndex, SeekIndexKey, SeekIndexStore,
};
use cinderfs::codec::RestartPoint;
use cinderfs::{Error, ErrorKind, Result};
use tempfile::TempDir;

const PLENTY: u64 = 1 << 30;

fn key(n: u8) -> SeekIndexKey {
    SeekIndexKey([n; 32])
}

fn name(key: &SeekIndexKey) -> String {
    key.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The state of a point at this place: pseudo-random bytes, up to `len_max` of them, at times none.
fn state(key: &SeekIndexKey, plain_offset: u64, stored_bits: u64, len_max: u64) -> Vec<u8> {
    let mut x =
        plain_offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stored_bits ^ u64::from(key.0[0]) << 56 | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let len = if next() % 5 == 0 { 0 } else { next() % (len_max + 1) };
    (0..len).map(|_| next() as u8).collect()
}

/// What the `generation`th writer knows of an object: more than the one before, at other bits.
fn points(key: &SeekIndexKey, generation: u64, count: u64, len_max: u64) -> Vec<RestartPoint> {
    each_point(*key, generation, count, len_max).collect()
}

/// The same, made one by one.
fn each_point(
    key: SeekIndexKey,
    generation: u64,
    count: u64,
    len_max: u64,
) -> impl Iterator<Item = RestartPoint> {
    (0..count).map(move |n| {
        let (plain_offset, stored_bits) = (n << 22, n * 1_234_567 + generation);
        let state = state(&key, plain_offset, stored_bits, len_max).into();
        RestartPoint { plain_offset, stored_bits, state }
    })
}

fn save(
    store: &SeekIndexStore,
    key: &SeekIndexKey,
    known_to: u64,
    points: &[RestartPoint],
) -> Result<SavedIndex> {
    store.save(key, known_to, &mut points.iter().cloned().map(Ok))
}

/// Whether the index holds exactly these points. A state that cannot be read is none of these, and false.
fn holds(saved: &SavedIndex, known_to: u64, points: &[RestartPoint]) -> bool {
    assert_eq!(saved.known_to(), known_to);
    assert_eq!(saved.points().len(), points.len());
    let mut all = true;
    for (n, (found, expected)) in saved.points().iter().zip(points).enumerate() {
        assert_eq!((found.plain_offset, found.stored_bits), (expected.plain_offset, expected.stored_bits));
        match saved.state(n) {
            Ok(found) => assert_eq!(found, expected.state, "point {n}"),
            Err(_) => all = false,
        }
    }
    all
}

struct World {
    root: TempDir,
}

impl World {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    fn store(&self, bytes_max: u64) -> SeekIndexStore {
        open(&self.cache(), bytes_max)
    }
}

fn open(cache: &Path, bytes_max: u64) -> SeekIndexStore {
    SeekIndexStore::open(&CacheDir::open(cache).unwrap(), bytes_max).unwrap()
}

fn names(store: &SeekIndexStore) -> HashSet<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    fs::read_dir(store.path()).unwrap().map(name).collect()
}

fn age(path: &Path, by: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - by).unwrap();
}

fn hours(n: u64) -> Duration {
    Duration::from_secs(3600 * n)
}

#[test]
fn what_is_saved_is_loaded() {
    let world = World::new();
    let store = world.store(PLENTY);
    for (n, count) in [(1, 0), (2, 1), (3, 1000)] {
        let points = points(&key(n), 7, count, 10_000);
        assert!(store.load(&key(n)).is_none() && store.known_to(&key(n)).is_none());
        assert!(holds(&save(&store, &key(n), count << 22, &points).unwrap(), count << 22, &points));
        for store in [&store, &world.store(PLENTY)] {
            let saved = store.load(&key(n)).unwrap();
            assert!(holds(&saved, count << 22, &points));
            assert_eq!(store.known_to(&key(n)), Some(count << 22));
            assert_eq!(saved.state(count as usize).unwrap_err().kind(), ErrorKind::NoData);
        }
    }
    store.forget(&key(2));
    store.forget(&key(2));
    assert!(store.load(&key(2)).is_none());
    assert!(store.load(&key(3)).is_some());
    assert_eq!(names(&store), HashSet::from([name(&key(1)), name(&key(3))]));
    let mode = fs::metadata(store.path().join(name(&key(3)))).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let world = World::new();
    let store = world.store(PLENTY);
    let points = points(&key(1), 3, 6, 20);
    save(&store, &key(1), 77, &points).unwrap();
    let path = store.path().join(name(&key(1)));
    let good = fs::read(&path).unwrap();
    assert!(good.len() < 1000, "{}", good.len());
    for at in 0..good.len() {
        for bits in [1 << (at % 8), 0xff] {
            let mut bad = good.clone();
            bad[at] ^= bits;
            fs::write(&path, &bad).unwrap();
            // In the head or the table nothing is loaded, in a state that state alone is not.
            let is_whole = store.load(&key(1)).is_some_and(|saved| holds(&saved, 77, &points));
            assert!(!is_whole, "byte {at} ^ {bits:x}");
            // Of another magic or version it may be somebody else's, a damaged head or table costs the file.
            let is_state = (96..good.len() - 36 * points.len()).contains(&at);
            assert_eq!(path.exists(), at < 12 || is_state, "byte {at} ^ {bits:x}");
            if is_state {
                // What is left is whole.
                let left = store.load(&key(1)).unwrap();
                assert_eq!(left.points().len(), points.len() - 1, "byte {at} ^ {bits:x}");
                for (n, point) in left.points().iter().enumerate() {
                    let same = points.iter().find(|other| other.plain_offset == point.plain_offset).unwrap();
                    assert_eq!(left.state(n).unwrap(), same.state, "byte {at} ^ {bits:x}");
                }
            }
        }
    }
    fs::write(&path, &good).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert!(holds(&store.load(&key(1)).unwrap(), 77, &points));
}

#[test]
fn who_knows_more_wins() {
    let world = World::new();
    let store = world.store(PLENTY);
    let all = points(&key(1), 3, 20, 20);
    // (known to, points) before and then offered, and whether the offer is taken.
    for (there, offered, is_taken) in [
        ((10, 5), (10, 5), false),
        ((10, 5), (9, 5), false),
        ((10, 5), (10, 4), false),
        ((10, 5), (9, 9), false),
        ((10, 5), (10, 6), true),
        ((10, 5), (11, 4), true),
    ] {
        store.forget(&key(1));
        save(&store, &key(1), there.0, &all[..there.1]).unwrap();
        let expected = if is_taken { offered } else { there };
        let mut packed = 0;
        // Once with a known count, once without.
        let mut counted = all[..offered.1].iter().cloned().map(|point| {
            packed += 1;
            Ok(point)
        });
        let saved = store.save(&key(1), offered.0, &mut counted).unwrap();
        assert!(holds(&saved, expected.0, &all[..expected.1]), "{there:?} {offered:?}");
        assert_eq!(packed > 0, is_taken, "{there:?} {offered:?}");
        let mut uncounted = all.iter().cloned().take_while(|point| point != &all[offered.1]).map(Ok);
        let saved = store.save(&key(1), offered.0, &mut uncounted).unwrap();
        assert!(holds(&saved, expected.0, &all[..expected.1]), "{there:?} {offered:?}");
        assert_eq!(names(&store).len(), 1);
    }
}

#[test]
fn a_failed_save_leaves_the_old_file_and_nothing_else() {
    let world = World::new();
    let store = world.store(300_000);
    let good = points(&key(1), 3, 5, 1000);
    save(&store, &key(1), 5, &good).unwrap();
    let empty = |plain_offset| RestartPoint { plain_offset, stored_bits: 0, state: [].into() };
    let sized = |len| Ok(RestartPoint { plain_offset: 0, stored_bits: 0, state: vec![0; len].into() });
    let broken = || Err(Error::new(ErrorKind::Codec, "no such window"));
    type Points = Box<dyn Iterator<Item = Result<RestartPoint>>>;
    let attempts: [(ErrorKind, Points); 5] = [
        (ErrorKind::Codec, Box::new((0..9).map(empty).map(Ok).chain([broken()]))),
        (ErrorKind::Malformed, Box::new([0, 2, 2].into_iter().map(empty).map(Ok))),
        (ErrorKind::LimitExceeded, Box::new([sized(300_000)].into_iter())),
        (ErrorKind::LimitExceeded, Box::new([sized(STATE_BYTES_MAX + 1)].into_iter())),
        (ErrorKind::LimitExceeded, Box::new((0..=POINTS_MAX as u64).map(empty).map(Ok))),
    ];
    for (kind, mut points) in attempts {
        let error = store.save(&key(1), 100, &mut points).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(names(&store), HashSet::from([name(&key(1))]));
        assert!(holds(&store.load(&key(1)).unwrap(), 5, &good));
    }
    // The bounds themselves are no error.
    let large = world.store(PLENTY);
    large.save(&key(2), 9, &mut [sized(STATE_BYTES_MAX)].into_iter()).unwrap();
    large.save(&key(3), 9, &mut (0..POINTS_MAX as u64).map(empty).map(Ok)).unwrap();
    assert_eq!(large.load(&key(2)).unwrap().state(0).unwrap().len(), STATE_BYTES_MAX);
    assert_eq!(large.load(&key(3)).unwrap().points().len(), POINTS_MAX);
}

#[test]
fn an_opened_index_follows_its_file() {
    let world = World::new();
    let (ours, theirs) = (world.store(PLENTY), world.store(PLENTY));
    let all = points(&key(1), 3, 100, 1000);
    let few: Vec<_> = all.iter().step_by(10).cloned().collect();
    let saved = save(&ours, &key(1), 5, &few).unwrap();
    save(&theirs, &key(1), 5, &all).unwrap();
    assert!(holds(&saved, 5, &few), "the same points lie elsewhere in the new file");
    // A file of other points.
    save(&theirs, &key(1), 6, &points(&key(1), 4, 100, 1000)).unwrap();
    let with_state = few.iter().position(|point| !point.state.is_empty()).unwrap();
    assert_eq!(saved.state(with_state).unwrap_err().kind(), ErrorKind::NoData);
    assert!(theirs.load(&key(1)).is_some(), "a replaced file is not a damaged one");
    theirs.forget(&key(1));
    assert_eq!(saved.state(with_state).unwrap_err().kind(), ErrorKind::NoData);
}

#[test]
fn a_damaged_state_costs_that_point_and_no_other() {
    let world = World::new();
    let store = world.store(PLENTY);
    let all: Vec<_> =
        points(&key(1), 3, 20, 1000).into_iter().filter(|point| !point.state.is_empty()).collect();
    assert!(all.len() > 6);
    let saved = save(&store, &key(1), 1 << 40, &all).unwrap();
    let other = world.store(PLENTY).load(&key(1)).unwrap();
    // In the third state.
    let at = 96 + all[..2].iter().map(|point| point.state.len() as u64).sum::<u64>();
    let path = store.path().join(name(&key(1)));
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    assert_eq!(saved.state(2).unwrap_err().kind(), ErrorKind::HashMismatch);
    let left: Vec<_> =
        all.iter().enumerate().filter(|(n, _)| *n != 2).map(|(_, point)| point.clone()).collect();
    let loaded = store.load(&key(1)).expect("the other points");
    assert!(
        holds(&loaded, all[1].plain_offset, &left),
        "all but the damaged one, and what it led to is not known"
    );
    assert!((0..all.len()).all(|n| n == 2 || saved.state(n).unwrap() == all[n].state), "whoever has it open");
    assert_eq!(other.state(2).unwrap_err().kind(), ErrorKind::NoData);
    assert_eq!(names(&store), HashSet::from([name(&key(1))]), "nothing is left behind");
    // And it is learnt again.
    assert!(holds(&save(&store, &key(1), 1 << 40, &all).unwrap(), 1 << 40, &all));
}

#[test]
fn wrong_points_are_taken_out() {
    let world = World::new();
    let store = world.store(PLENTY);
    let all = points(&key(1), 3, 20, 1000);
    save(&store, &key(1), 1 << 40, &all).unwrap();
    let before = fs::metadata(store.path().join(name(&key(1)))).unwrap().ino();
    store.keep_some(&key(1), &mut |_| true);
    assert_eq!(fs::metadata(store.path().join(name(&key(1)))).unwrap().ino(), before, "nothing was wrong");
    store.keep_some(&key(1), &mut |point| point.plain_offset != all[5].plain_offset);
    let left: Vec<_> = all.iter().filter(|point| **point != all[5]).cloned().collect();
    assert!(holds(&store.load(&key(1)).unwrap(), all[4].plain_offset, &left));
    store.keep_some(&key(1), &mut |_| false);
    assert!(names(&store).is_empty());
    store.keep_some(&key(1), &mut |_| false);
}
