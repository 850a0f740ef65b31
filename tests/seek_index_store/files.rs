//! Files that are damaged, foreign, forged, or no files at all.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use cinderfs::ErrorKind;
use cinderfs::cache_dir::seek_indexes::{POINTS_MAX, STATE_BYTES_MAX, SeekIndexKey, SeekIndexStore};
use cinderfs::codec::RestartPoint;
use sha2::{Digest as _, Sha256};

use super::{PLENTY, World, holds, key, name, points, save};

/// An index file that was saved.
struct Sample {
    _world: World,
    store: SeekIndexStore,
    points: Vec<RestartPoint>,
    path: PathBuf,
    /// What it holds.
    good: Vec<u8>,
}

impl Sample {
    /// Of the object `key(1)`, known to 77.
    fn new(count: u64, len_max: u64) -> Self {
        let world = World::new();
        let store = world.store(PLENTY);
        let points = points(&key(1), 3, count, len_max);
        save(&store, &key(1), 77, &points).unwrap();
        let path = store.path().join(name(&key(1)));
        let good = fs::read(&path).unwrap();
        Self { _world: world, store, points, path, good }
    }
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
fn files_are_as_described() {
    let Sample { points, good, .. } = Sample::new(9, 50);
    let entries: Vec<_> = points
        .iter()
        .map(|point| (point.plain_offset, point.stored_bits, point.state.len() as u32))
        .collect();
    let states = points.iter().flat_map(|point| point.state.to_vec()).collect::<Vec<_>>();
    let forged = forge(&key(1), 77, &entries, &states, states.len() as u64);
    assert_eq!(good, forged);
}

#[test]
fn whatever_is_done_to_a_file_no_state_changes() {
    let Sample { _world, store, points, path, good } = Sample::new(12, 200);
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
    let Sample { _world, store, path, good, .. } = Sample::new(6, 20);
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
    let Sample { _world, store, points, path, good } = Sample::new(6, 20);
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
