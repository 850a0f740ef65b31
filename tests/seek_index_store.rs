//! Do saved restart points survive everything that can happen to a cache directory?
//!
//! Each state is derived from the place of its point, so whoever reads one knows what it must be.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::seek_indexes::{
    POINTS_MAX, STATE_BYTES_MAX, SavedIndex, SeekIndexKey, SeekIndexStore,
};
use cinderfs::codec::RestartPoint;
use cinderfs::{Error, ErrorKind, Result};
use rustix::mount::{MountFlags, UnmountFlags};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const PLENTY: u64 = 1 << 30;

/// Tells a child process of this test binary which directory to write to.
const CHILD_DIRECTORY: &str = "SEEK_INDEX_TEST_DIRECTORY";

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

/// An index file as its description says, written without the code that is tested.
fn forge(
    key: &SeekIndexKey,
    known_to: u64,
    entries: &[(u64, u64, u32)],
    states: &[u8],
    states_bytes: u64,
) -> Vec<u8> {
    let digest = |bytes: &[u8]| Sha256::digest(bytes)[..16].to_vec();
    let (mut table, mut rest) = (Vec::new(), states);
    for &(plain_offset, stored_bits, len) in entries {
        let (state, behind) = rest.split_at(rest.len().min(len as usize));
        rest = behind;
        table.extend(plain_offset.to_le_bytes());
        table.extend(stored_bits.to_le_bytes());
        table.extend(len.to_le_bytes());
        table.extend(digest(state));
    }
    let mut file = b"cndrSEEK\x01\0\0\0".to_vec();
    file.extend((entries.len() as u32).to_le_bytes());
    file.extend(key.0);
    file.extend(known_to.to_le_bytes());
    file.extend(states_bytes.to_le_bytes());
    file.extend(digest(&table));
    file.extend(digest(&file));
    file.extend(states);
    file.extend(table);
    file
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
fn files_are_as_described() {
    let world = World::new();
    let store = world.store(PLENTY);
    let points = points(&key(1), 3, 9, 50);
    save(&store, &key(1), 77, &points).unwrap();
    let entries: Vec<_> = points
        .iter()
        .map(|point| (point.plain_offset, point.stored_bits, point.state.len() as u32))
        .collect();
    let states = points.iter().flat_map(|point| point.state.to_vec()).collect::<Vec<_>>();
    let forged = forge(&key(1), 77, &entries, &states, states.len() as u64);
    assert_eq!(fs::read(store.path().join(name(&key(1)))).unwrap(), forged);
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
fn whatever_is_done_to_a_file_no_state_changes() {
    let world = World::new();
    let store = world.store(PLENTY);
    let points = points(&key(1), 3, 12, 200);
    save(&store, &key(1), 77, &points).unwrap();
    let path = store.path().join(name(&key(1)));
    let good = fs::read(&path).unwrap();
    let mut x = 88_172_645_463_325_252_u64;
    let mut below = |end: usize| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x % end as u64) as usize
    };
    let (mut loaded, mut whole) = (0, 0);
    for _ in 0..3000 {
        let mut bad = good.clone();
        for _ in 0..=below(3) {
            let (at, to) = (below(bad.len()), below(bad.len()));
            match below(6) {
                0 => bad[at] = below(256) as u8,
                1 => bad.swap(at, to),
                2 => bad[at.min(to)..at.max(to)].fill(0),
                3 => bad[at.min(to)..].rotate_left(1),
                4 => bad.truncate(at + 1),
                _ => bad.insert(at, below(256) as u8),
            }
        }
        fs::write(&path, &bad).unwrap();
        let Some(saved) = store.load(&key(1)) else { continue };
        loaded += 1;
        whole += usize::from(holds(&saved, 77, &points));
    }
    println!("{whole} of {loaded} were as before");
    assert!(loaded > 50 && whole < loaded, "{whole} of {loaded} were as before");
}

#[test]
fn files_of_another_length_are_deleted() {
    let world = World::new();
    let store = world.store(PLENTY);
    let points = points(&key(1), 3, 6, 20);
    save(&store, &key(1), 77, &points).unwrap();
    let path = store.path().join(name(&key(1)));
    let good = fs::read(&path).unwrap();
    let shorter = (0..good.len()).map(|len| good[..len].to_vec());
    let longer = (1..100).map(|more| [good.as_slice(), &vec![more as u8 & 1; more]].concat());
    let nothing = [vec![0; good.len()], vec![0; 5]];
    for bad in shorter.chain(longer).chain(nothing) {
        fs::write(&path, &bad).unwrap();
        assert!(store.load(&key(1)).is_none(), "{} of {} bytes", bad.len(), good.len());
        assert!(!path.exists());
        fs::write(&path, &bad).unwrap();
        assert!(store.known_to(&key(1)).is_none());
    }
}

#[test]
fn what_is_not_ours_is_left_until_there_is_something_better() {
    let world = World::new();
    let store = world.store(PLENTY);
    let points = points(&key(1), 3, 6, 20);
    save(&store, &key(1), 77, &points).unwrap();
    let path = store.path().join(name(&key(1)));
    let good = fs::read(&path).unwrap();
    let [mut newer, mut older] = [good.clone(), good.clone()];
    (newer[8], older[8]) = (2, 0);
    let text =
        b"Dear diary, this is about somebody else's index, and it is longer than ninety-six bytes, I think.";
    for foreign in [newer, older, text.to_vec(), forge(&key(2), 99, &[], &[], 0)] {
        fs::write(&path, &foreign).unwrap();
        assert!(store.load(&key(1)).is_none() && store.known_to(&key(1)).is_none());
        assert_eq!(fs::read(&path).unwrap(), foreign);
        assert!(holds(&save(&store, &key(1), 5, &points).unwrap(), 5, &points));
        assert!(holds(&store.load(&key(1)).unwrap(), 5, &points));
        store.forget(&key(1));
    }
}

#[test]
fn right_digests_do_not_make_wrong_numbers_right() {
    let world = World::new();
    let store = world.store(PLENTY);
    let path = store.path().join(name(&key(1)));
    let (states, len) = ([5; 30], STATE_BYTES_MAX as u32);
    let good = forge(&key(1), 9, &[(0, 0, 10), (1, 0, 20)], &states, 30);
    fs::create_dir_all(store.path()).unwrap();
    fs::write(&path, good).unwrap();
    assert_eq!(store.load(&key(1)).unwrap().state(1).unwrap()[..], states[10..]);
    let too_many: Vec<_> = (0..=POINTS_MAX as u64).map(|n| (n, n, 0)).collect();
    for (what, bad) in [
        ("the same offset twice", forge(&key(1), 9, &[(1, 0, 10), (1, 0, 20)], &states, 30)),
        ("not sorted", forge(&key(1), 9, &[(1, 0, 10), (0, 0, 20)], &states, 30)),
        ("states longer than they say", forge(&key(1), 9, &[(0, 0, 10), (1, 0, 10)], &states, 30)),
        ("states shorter than they say", forge(&key(1), 9, &[(0, 0, 10), (1, 0, 30)], &states, 30)),
        (
            "a state too long",
            forge(&key(1), 9, &[(0, 0, len + 1)], &vec![0; len as usize + 1], len as u64 + 1),
        ),
        ("an overflow", forge(&key(1), 9, &[(0, 0, 10)], &states, u64::MAX - 90)),
        ("too many points", forge(&key(1), 9, &too_many, &[], 0)),
    ] {
        fs::write(&path, bad).unwrap();
        assert!(store.load(&key(1)).is_none(), "{what}");
        assert!(!path.exists(), "{what}");
    }
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

#[test]
fn the_least_recently_used_goes_first() {
    let world = World::new();
    // Each file takes 32 KiB on disk: eight fit, and seven stay when one is too many.
    let store = world.store((8 * 32) << 10);
    let point = |n: u8| [RestartPoint { plain_offset: 0, stored_bits: 0, state: vec![n; 30_000].into() }];
    let there = || (0..100).filter(|&n| store.known_to(&key(n)).is_some()).collect::<Vec<_>>();
    for n in 0..8 {
        save(&store, &key(n), 1, &point(n)).unwrap();
        age(&store.path().join(name(&key(n))), hours(20 - u64::from(n)));
    }
    assert_eq!(there(), [0, 1, 2, 3, 4, 5, 6, 7]);
    // Two are used, by another process for what it matters: one by its table, one by a state. Asking how far it goes is no use.
    let other = world.store(PLENTY);
    let one = save(&other, &key(1), 1, &point(1)).unwrap();
    age(&store.path().join(name(&key(1))), hours(19));
    assert_eq!(one.state(0).unwrap()[..], point(1)[0].state[..]);
    other.load(&key(3)).unwrap();
    other.known_to(&key(0)).unwrap();
    save(&store, &key(8), 1, &point(8)).unwrap();
    assert_eq!(there(), [1, 3, 4, 5, 6, 7, 8]);
    save(&store, &key(9), 1, &point(9)).unwrap();
    assert_eq!(there(), [1, 3, 4, 5, 6, 7, 8, 9]);
    save(&store, &key(10), 1, &point(10)).unwrap();
    assert_eq!(there(), [1, 3, 6, 7, 8, 9, 10]);
    // A clock that was wrong keeps no file for ever.
    let future = SystemTime::now() + hours(1000);
    fs::File::open(store.path().join(name(&key(6)))).unwrap().set_modified(future).unwrap();
    store.load(&key(6)).unwrap();
    let noted = fs::metadata(store.path().join(name(&key(6)))).unwrap().modified().unwrap();
    assert!(noted <= SystemTime::now());
}

#[test]
fn a_bound_below_the_working_set_holds() {
    let world = World::new();
    let bound = 1 << 20;
    let store = world.store(bound);
    let mut survivors = 0;
    for round in 0..3 {
        for n in 0..60 {
            let points = points(&key(n), round, 10, 10_000);
            assert!(holds(&save(&store, &key(n), round, &points).unwrap(), round, &points));
            let len = |name: &String| fs::metadata(store.path().join(name)).unwrap().len();
            let sum: u64 = names(&store).iter().map(len).sum();
            assert!(sum <= bound, "{sum}");
            survivors = names(&store).len();
        }
    }
    assert!(survivors > 10, "{survivors}");
    // One that fits but for the reserve takes the place of all others; one that is too large takes none.
    let sized = |len| [RestartPoint { plain_offset: 0, stored_bits: 0, state: vec![1; len].into() }];
    save(&store, &key(70), 1, &sized((1 << 20) - 200)).unwrap();
    assert_eq!(names(&store), HashSet::from([name(&key(70))]));
    assert!(save(&store, &key(71), 1, &sized(1 << 20)).is_err());
    assert_eq!(names(&store), HashSet::from([name(&key(70))]));
}

#[test]
fn leftovers_of_killed_writers_go_and_other_files_stay() {
    let world = World::new();
    let store = world.store(PLENTY);
    for (n, leftover) in ["aa.0123.tmp", "bb.4567.tmp", "notes.txt"].iter().enumerate() {
        fs::write(store.path().join(leftover), "x").unwrap();
        if n != 1 {
            age(&store.path().join(leftover), hours(1));
        }
    }
    save(&store, &key(1), 1, &points(&key(1), 1, 3, 100)).unwrap();
    let expected = [name(&key(1)), "bb.4567.tmp".to_owned(), "notes.txt".to_owned()];
    assert_eq!(names(&store), HashSet::from(expected));
}

#[test]
fn planted_files_lead_nowhere() {
    let world = World::new();
    let store = world.store(PLENTY);
    let points = points(&key(1), 1, 5, 100);
    save(&store, &key(1), 1, &points).unwrap();
    let (path, outside) = (store.path().join(name(&key(1))), world.root.path().join("outside"));
    let good = fs::read(&path).unwrap();
    fs::rename(&path, &outside).unwrap();
    symlink(&outside, &path).unwrap();
    assert!(store.load(&key(1)).is_none() && store.known_to(&key(1)).is_none());
    assert!(holds(&save(&store, &key(1), 1, &points).unwrap(), 1, &points));
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert_eq!(fs::read(&outside).unwrap(), good);
    symlink(&outside, store.path().join(name(&key(2)))).unwrap();
    store.forget(&key(2));
    assert!(outside.exists());
    // A pipe that nobody writes to, a directory, somebody else's file, one that others may write.
    let pipe = store.path().join(name(&key(3)));
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
    fs::create_dir(store.path().join(name(&key(4)))).unwrap();
    fs::write(store.path().join(name(&key(5))), forge(&key(5), 1, &[], &[], 0)).unwrap();
    assert!(store.load(&key(5)).is_some());
    fs::set_permissions(store.path().join(name(&key(5))), Permissions::from_mode(0o622)).unwrap();
    for n in 3..=5 {
        assert!(store.load(&key(n)).is_none(), "{n}");
    }
    assert!(save(&store, &key(3), 1, &points).is_ok());
    assert_eq!(save(&store, &key(4), 1, &points).unwrap_err().kind(), ErrorKind::Target);
    // Root alone can make files of somebody else; the tests that mount need it too.
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    assert!(store.load(&key(1)).is_none());
}

#[test]
fn the_directory_may_be_deleted_at_any_time() {
    let world = World::new();
    let store = world.store(PLENTY);
    let points = points(&key(1), 1, 5, 100);
    let saved = save(&store, &key(1), 1, &points).unwrap();
    fs::remove_dir_all(world.cache()).unwrap();
    assert!(store.load(&key(1)).is_none());
    assert!(!holds(&saved, 1, &points));
    store.forget(&key(1));
    assert!(holds(&save(&store, &key(1), 1, &points).unwrap(), 1, &points));
    assert!(holds(&world.store(PLENTY).load(&key(1)).unwrap(), 1, &points));
}

/// A small file system in memory, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"size=1m,mode=700").unwrap();
        Self(at)
    }

    /// A child that another test starts holds all our descriptors until it has become its program; the disk is busy then.
    fn make_read_only(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(errno) = rustix::mount::mount_remount(&self.0, MountFlags::RDONLY, c"") {
            assert!(errno == rustix::io::Errno::BUSY && Instant::now() < end, "{errno}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_or_read_only_disk_is_an_error_and_keeps_what_it_has() {
    let world = World::new();
    let disk = SmallDisk::mount(world.root.path().join("disk"));
    let dir = CacheDir::open(&disk.0).unwrap();
    assert_eq!(SeekIndexStore::bytes_max_default(&dir), (1 << 20) / 20);
    let store = open(&disk.0, PLENTY);
    let [small, large] = [30, 3000].map(|count| points(&key(1), 1, count, 2000));
    save(&store, &key(1), 1, &small).unwrap();
    let error = save(&store, &key(1), 2, &large).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(names(&store), HashSet::from([name(&key(1))]));
    assert!(holds(&store.load(&key(1)).unwrap(), 1, &small));

    age(&store.path().join(name(&key(1))), hours(9));
    disk.make_read_only();
    let store = open(&disk.0, PLENTY);
    assert!(holds(&store.load(&key(1)).unwrap(), 1, &small));
    store.forget(&key(1));
    assert!(holds(&store.load(&key(1)).unwrap(), 1, &small));
    let error = save(&store, &key(1), 2, &small).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(error.to_string().contains("CINDERFS_CACHE_DIR"), "{error}");
    assert_eq!(CacheDir::open(&disk.0.join("below")).unwrap_err().kind(), ErrorKind::Target);
}

/// What the processes and threads under load save: a generation says how far it knows, so that a reader can tell.
fn save_generation(store: &SeekIndexStore, n: u8, generation: u64) -> Result<SavedIndex> {
    // As in earnest, most of the time goes into making the states, while the file is open.
    let points = each_point(key(n), generation, 3 + generation % 40, 20_000);
    store.save(&key(n), generation, &mut points.map(Ok))
}

/// Loads an object's index, which must be one that somebody saved. Says how many states were there and how many gone.
fn check_generation(store: &SeekIndexStore, n: u8) -> Option<(u64, u64)> {
    let saved = store.load(&key(n))?;
    let generation = saved.known_to();
    let expected = points(&key(n), generation, 3 + generation % 40, 20_000);
    assert_eq!(saved.points().len(), expected.len(), "generation {generation}");
    let (mut good, mut gone) = (0, 0);
    for (index, (found, expected)) in saved.points().iter().zip(&expected).enumerate() {
        assert_eq!((found.plain_offset, found.stored_bits), (expected.plain_offset, expected.stored_bits));
        match saved.state(index) {
            Ok(state) => {
                assert_eq!(state, expected.state, "generation {generation} point {index}");
                good += 1;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoData, "{error}");
                gone += 1;
            }
        }
    }
    Some((good, gone))
}

/// A process that saves without end, to be killed.
struct Writer(Child);

impl Writer {
    fn start(directory: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_saves_without_end", "--ignored", "--nocapture"])
            .env(CHILD_DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut writer = Self(child);
        let lines = BufReader::new(writer.0.stdout.take().unwrap()).lines();
        let begun = lines.map(Result::unwrap).any(|line| line.contains("first index saved"));
        assert!(begun, "the writer ended before it began");
        writer
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "started by other tests, which kill it"]
fn child_that_saves_without_end() {
    let directory = std::env::var_os(CHILD_DIRECTORY).expect("only other tests start this one");
    let store = open(Path::new(&directory), 2_000_000);
    for generation in 1.. {
        for n in 0..8 {
            save_generation(&store, n, generation).unwrap();
        }
        if generation == 1 {
            println!("first index saved");
        }
    }
}

#[test]
fn processes_and_threads_share_a_directory_while_others_evict() {
    let world = World::new();
    let writers = [Writer::start(&world.cache()), Writer::start(&world.cache())];
    let (good, gone, missing) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (world, is_over, good, gone, missing) = (&world, &is_over, &good, &gone, &missing);
            scope.spawn(move || {
                let store = world.store(1_000_000);
                for generation in 1.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    for n in 0..8 {
                        match check_generation(&store, n) {
                            Some(states) => {
                                good.fetch_add(states.0, Ordering::Relaxed);
                                gone.fetch_add(states.1, Ordering::Relaxed);
                            }
                            None => {
                                missing.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                    let n = match thread {
                        0 => {
                            store.forget(&key((generation % 8) as u8));
                            continue;
                        }
                        1 => generation % 8,
                        _ => 100 + generation % 50,
                    };
                    save_generation(&store, n as u8, generation).unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_secs(2));
        is_over.store(true, Ordering::Relaxed);
    });
    drop(writers);
    let counts = [good, gone, missing].map(AtomicU64::into_inner);
    println!("{counts:?}");
    assert!(counts[0] > 100 && counts[2] > 0, "too little happened: {counts:?}");
    // What is left is bounded, and usable by whoever comes next. Two killed writers may have left one file each.
    let store = world.store(1_000_000);
    save_generation(&store, 200, 1).unwrap();
    let indexes = names(&store).into_iter().filter(|name| !name.ends_with(".tmp"));
    let sum: u64 = indexes.map(|name| fs::metadata(store.path().join(name)).unwrap().len()).sum();
    assert!(sum <= 1_000_000, "{sum}");
    assert!((0..8).all(|n| save_generation(&store, n, u64::MAX >> 8).is_ok()));
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_usable_directory() {
    let world = World::new();
    let (mut good, mut left_behind) = (0, 0);
    for round in 0..40u64 {
        let writer = Writer::start(&world.cache());
        std::thread::sleep(Duration::from_micros(round * 311 % 5000));
        drop(writer);
        let store = world.store(2_000_000);
        for n in 0..8 {
            let (states, gone) = check_generation(&store, n).unwrap_or_default();
            assert_eq!(gone, 0, "nobody else is there");
            good += states;
        }
        let leftovers: Vec<_> = names(&store).into_iter().filter(|name| name.ends_with(".tmp")).collect();
        left_behind += leftovers.len();
        assert!(leftovers.len() <= 1);
        for leftover in leftovers {
            age(&store.path().join(leftover), hours(1));
        }
        save_generation(&store, 9, round).unwrap();
        assert!(names(&store).iter().all(|name| !name.ends_with(".tmp")), "cleaned up");
        // The next writer starts at the first generation again, and must have something to save.
        (0..10).for_each(|n| store.forget(&key(n)));
    }
    println!("{good} states, {left_behind} killed in the middle");
    assert!(good > 500 && left_behind > 0, "{good} states, {left_behind} killed in the middle");
}
