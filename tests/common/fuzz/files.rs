//! Files of the cache directory: made well and then damaged, or made up.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cinderfs::ErrorKind;
use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::blocks::{BlockRing, SIZE_BYTES_MIN};
use cinderfs::cache_dir::seek_indexes::{
    POINTS_MAX, STATE_BYTES_MAX, SavedIndex, SeekIndexKey, SeekIndexStore,
};
use cinderfs::codec::RestartPoint;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::Input;

/// A folder in memory where there is such a place: an input takes microseconds then.
pub(super) fn folder() -> TempDir {
    let memory = std::path::Path::new("/dev/shm");
    tempfile::Builder::new()
        .prefix("cinderfs-fuzz-")
        .tempdir_in(if memory.is_dir() { memory } else { std::path::Path::new("/tmp") })
        .unwrap()
}

const KEY: SeekIndexKey = SeekIndexKey([0xAB; 32]);

/// As the module of the file has it: head, states, table.
const HEAD_BYTES: usize = 96;
const ENTRY_BYTES: usize = 36;

/// What is saved is loaded; what is damaged or made up is none, or is sorted and within bounds, and never a wrong state.
pub(super) fn seek_index(data: &[u8]) {
    let mut input = Input::new(data);
    let folder = folder();
    let store =
        SeekIndexStore::open(&CacheDir::open(&folder.path().join("cache")).unwrap(), 1 << 30).unwrap();
    let path = store.path().join("ab".repeat(32));
    match input.byte() % 4 {
        0 => {
            fs::write(&path, input.rest()).unwrap();
            check_index(&store, None);
        }
        1 => {
            let mut bytes = input.rest().to_vec();
            make_right(&mut bytes);
            fs::write(&path, bytes).unwrap();
            check_index(&store, None);
        }
        what => {
            let points = points(&mut input);
            let saved = store.save(&KEY, 1 << 40, &mut points.iter().cloned().map(Ok));
            let is_sorted = points.windows(2).all(|two| two[0].plain_offset < two[1].plain_offset);
            assert_eq!(saved.is_ok(), is_sorted, "{:?}", saved.err());
            if saved.is_err() {
                return;
            }
            if what == 3 {
                let file = File::options().write(true).open(&path).unwrap();
                let len = file.metadata().unwrap().len() as usize;
                file.write_all_at(&[input.byte()], input.below(len) as u64).unwrap();
            }
            check_index(&store, Some((&points, what == 2)));
        }
    }
}

fn points(input: &mut Input<'_>) -> Vec<RestartPoint> {
    let (mut points, mut at) = (Vec::new(), 0u64);
    while !input.is_empty() && points.len() < 200 {
        at = match input.byte() {
            0 => input.any_size(),
            step => at.saturating_add(u64::from(step) << 12),
        };
        let len = input.byte();
        let state = Arc::from(input.take(usize::from(len)));
        points.push(RestartPoint { plain_offset: at, stored_bits: input.any_size(), state });
    }
    points
}

/// Sets the counts and the digests to what the rest calls for, so that what lies behind them is reached.
fn make_right(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().max(HEAD_BYTES), 0);
    let points = usize::from(bytes[12] % 16).min((bytes.len() - HEAD_BYTES) / ENTRY_BYTES);
    let table_at = bytes.len() - points * ENTRY_BYTES;
    bytes[..8].copy_from_slice(b"cndrSEEK");
    bytes[8..12].copy_from_slice(&1u32.to_le_bytes());
    bytes[12..16].copy_from_slice(&(points as u32).to_le_bytes());
    bytes[16..48].copy_from_slice(&KEY.0);
    bytes[56..64].copy_from_slice(&((table_at - HEAD_BYTES) as u64).to_le_bytes());
    let table: [u8; 32] = Sha256::digest(&bytes[table_at..]).into();
    bytes[64..80].copy_from_slice(&table[..16]);
    let head: [u8; 32] = Sha256::digest(&bytes[..80]).into();
    bytes[80..HEAD_BYTES].copy_from_slice(&head[..16]);
}

fn check_index(store: &SeekIndexStore, saved: Option<(&[RestartPoint], bool)>) {
    let known_to = store.known_to(&KEY);
    let index = store.load(&KEY);
    if let Some((_, true)) = saved {
        assert!(index.is_some() && known_to == Some(1 << 40));
    }
    let Some(index) = index else { return };
    assert_eq!(known_to, Some(index.known_to()));
    check_points(&index, saved);
    // Without every second point.
    let mut keeps = false;
    store.keep_some(&KEY, &mut |_| {
        keeps = !keeps;
        keeps
    });
    if let Some(rest) = store.load(&KEY) {
        assert!(rest.points().len() <= index.points().len() && rest.known_to() <= index.known_to());
        assert!(rest.points().iter().all(|point| index.points().contains(point)));
        check_points(&rest, None);
    }
}

fn check_points(index: &SavedIndex, saved: Option<(&[RestartPoint], bool)>) {
    let points = index.points();
    assert!(points.len() <= POINTS_MAX);
    assert!(points.windows(2).all(|two| two[0].plain_offset < two[1].plain_offset), "{points:?}");
    for (n, point) in points.iter().enumerate() {
        let original = saved.map(|(points, is_whole)| (&points[n], is_whole));
        match (index.state(n), original) {
            (Ok(state), Some((original, _))) => {
                assert_eq!(
                    (point.plain_offset, point.stored_bits),
                    (original.plain_offset, original.stored_bits)
                );
                assert_eq!(state, original.state);
            }
            (Ok(state), None) => assert!(state.len() <= STATE_BYTES_MAX),
            (Err(error), Some((_, true))) => panic!("{error}"),
            (Err(error), _) => {
                assert!(matches!(error.kind(), ErrorKind::HashMismatch | ErrorKind::NoData), "{error}");
            }
        }
    }
    assert!(index.state(points.len()).is_err());
}

/// Blocks that are put, got, damaged and cut off in any order: the right bytes or none, in a file that does not grow.
pub(super) fn block_ring(data: &[u8]) {
    let mut input = Input::new(data);
    let folder = folder();
    let cache = CacheDir::open(&folder.path().join("cache")).unwrap();
    let path = cache.path().join("blocks/ring");
    let mut ring = BlockRing::open(&cache, SIZE_BYTES_MIN).unwrap();
    let file_bytes = fs::metadata(&path).unwrap().len();
    assert!(file_bytes <= SIZE_BYTES_MIN);
    let data_at = file_bytes - ring.data_bytes();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let (what, record) = (input.byte(), record(input.byte()));
        let key = Sha256::digest(&record).into();
        match what % 8 {
            0..=2 => ring.put(&key, &record),
            3 | 4 => {
                let check = |bytes: &[u8]| (Sha256::digest(bytes)[..] == key).then(|| bytes.to_vec());
                let got = ring.get(&key, record.len(), check);
                assert!(got.is_none_or(|got| got == record));
            }
            5 => _ = ring.holds(&key, record.len()),
            6 => damage(&mut input, &path, data_at, &key),
            _ => {
                // Not while the other is open: each would wait for the other's lock for a while.
                drop(ring);
                ring = BlockRing::open(&cache, SIZE_BYTES_MIN).unwrap();
            }
        }
        assert!(fs::metadata(&path).is_ok_and(|now| now.len() <= file_bytes), "it grew");
    }
}

fn record(seed: u8) -> Vec<u8> {
    let lens = [1, 511, 512, 4096, 5000, 32768, 32769, 70_000];
    [seed, !seed].into_iter().cycle().take(lens[usize::from(seed) % lens.len()]).collect()
}

fn damage(input: &mut Input<'_>, path: &std::path::Path, data_at: u64, key: &[u8; 32]) {
    let file = File::options().write(true).open(path).unwrap();
    let buckets = data_at / 4096 - 1;
    let bucket = u64::from_le_bytes(key[16..24].try_into().unwrap()) % buckets;
    let (place, at) = (input.byte(), input.number(1));
    let len = usize::from(input.byte() % 64);
    let offset = match place % 6 {
        0 => at,
        1 => 512 + at % 16,
        2 => 4096 + bucket * 4096 + at * 16,
        3 => data_at + at * 512,
        4 => return file.set_len(at * 4096).unwrap(),
        _ => {
            // An entry as its writer makes it, of any place.
            let mut entry = [0; 32];
            entry[..16].copy_from_slice(&key[..16]);
            entry[16..24].copy_from_slice(&input.any_size().to_le_bytes());
            entry[24..28].copy_from_slice(&(input.number(4) as u32).to_le_bytes());
            return file.write_all_at(&entry, 4096 + bucket * 4096 + at % 128 * 32).unwrap();
        }
    };
    let bytes = input.take(len);
    file.write_all_at(bytes, offset).unwrap();
}
