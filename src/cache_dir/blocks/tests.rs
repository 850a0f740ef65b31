use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::*;

fn open(folder: &Path, bytes_max: u64) -> BlockRing {
    BlockRing::open_any_size(&CacheDir::open(folder).unwrap(), bytes_max).unwrap()
}

fn record(seed: u32, len: usize) -> (Key, Vec<u8>) {
    let bytes: Vec<u8> = seed.to_le_bytes().into_iter().cycle().take(len).collect();
    (Sha256::digest(&bytes).into(), bytes)
}

/// What a reader of blocks asks for.
fn get(ring: &BlockRing, key: &Key, len: usize) -> Option<Vec<u8>> {
    ring.get(key, len, |bytes| (*Sha256::digest(bytes) == *key).then(|| bytes.to_vec()))
}

fn ring_file(folder: &Path) -> File {
    File::options().read(true).write(true).open(folder.join("blocks/ring")).unwrap()
}

#[test]
fn records_of_any_size_are_found_again_by_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let (ring, other) = (open(folder.path(), 8 << 20), open(folder.path(), 8 << 20));
    let lens = [1, 2, 511, 512, 513, 4095, 4096, 4097, 32768, 32769, 100_000, 1 << 20, 2 << 20];
    let records: Vec<_> = (1..).zip(lens).map(|(seed, len)| record(seed, len)).collect();
    for (n, (key, bytes)) in records.iter().enumerate() {
        if n % 2 == 0 { &ring } else { &other }.put(key, bytes);
    }
    for ring in [&ring, &other, &open(folder.path(), 8 << 20)] {
        for (key, bytes) in &records {
            assert!(get(ring, key, bytes.len()).as_ref() == Some(bytes), "{}", bytes.len());
            assert!(get(ring, key, bytes.len() + 1).is_none());
            assert!(ring.holds(key, bytes.len()));
        }
    }
    assert!(get(&ring, &[7; 32], 512).is_none());
    ring.put(&[0; 32], &[]);
    let (key, larger) = record(99, 4 << 20);
    ring.put(&key, &larger);
    assert!(!ring.holds(&key, larger.len()), "more than its share of the ring");
}

#[test]
fn the_oldest_goes_and_what_is_used_stays_and_the_size_holds() {
    let folder = tempfile::tempdir().unwrap();
    let size = (4 << 20) + 123;
    let ring = open(folder.path(), size);
    let used = record(u32::MAX, 32768);
    ring.put(&used.0, &used.1);
    let fits = (ring.data_bytes() / 32768) as u32;
    for seed in 0..20 * fits {
        let (key, bytes) = record(seed, 32768);
        ring.put(&key, &bytes);
        assert!(get(&ring, &used.0, 32768).is_some(), "read again and again: {seed}");
    }
    let held = |seed: u32| ring.holds(&record(seed, 32768).0, 32768);
    assert!(held(20 * fits - 1) && held(20 * fits - fits / 2) && !held(0) && !held(18 * fits));
    let stat = std::fs::metadata(folder.path().join("blocks/ring")).unwrap();
    assert!(stat.len() <= size && stat.blocks() * 512 <= size + (64 << 10));
    assert_eq!(stat.mode() & 0o777, 0o600, "it holds bytes of volumes");
}

#[test]
fn who_was_idle_for_a_whole_ring_writes_over_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (idle, busy) = (open(folder.path(), 4 << 20), open(folder.path(), 4 << 20));
    let (key, bytes) = record(1, 4096);
    idle.put(&key, &bytes);
    let count = (busy.data_bytes() / 4096) as u32 + 100;
    for seed in 2..2 + count {
        let (key, bytes) = record(seed, 4096);
        busy.put(&key, &bytes);
    }
    let held = || (2..2 + count).filter(|&seed| get(&busy, &record(seed, 4096).0, 4096).is_some()).count();
    // As in a reader, who looks before he puts, and so hears how far the others are.
    let (newest, _) = record(1 + count, 4096);
    assert!(get(&idle, &newest, 4096).is_some());
    let before = held();
    for seed in 0..20 {
        let (key, bytes) = record(u32::MAX - seed, 4096);
        idle.put(&key, &bytes);
    }
    assert!(held() + 70 >= before, "only what was the oldest is gone");
    let (key, _) = record(u32::MAX, 4096);
    assert!(get(&idle, &key, 4096).is_some(), "what he wrote now is there");
}

#[test]
fn a_full_bucket_loses_its_oldest() {
    let folder = tempfile::tempdir().unwrap();
    let ring = open(folder.path(), 1 << 20); // two buckets of 128 entries
    for seed in 0..1000 {
        let (key, bytes) = record(seed, 512);
        ring.put(&key, &bytes);
    }
    let held: Vec<u32> = (0..1000).filter(|&seed| ring.holds(&record(seed, 512).0, 512)).collect();
    assert_eq!(held.len(), 256);
    assert!(held[0] > 600, "{held:?}");
}

#[test]
fn what_does_not_pass_its_check_is_put_again() {
    let folder = tempfile::tempdir().unwrap();
    let ring = open(folder.path(), 1 << 20);
    let (key, bytes) = record(1, 32768);
    ring.put(&key, &bytes);
    let data_at = std::fs::metadata(folder.path().join("blocks/ring")).unwrap().len() - ring.data_bytes();
    ring_file(folder.path()).write_all_at(b"damage", data_at + 1000).unwrap();
    ring.put(&key, &bytes);
    assert!(get(&ring, &key, 32768).is_none(), "it seemed to be held");
    assert!(!ring.holds(&key, 32768));
    ring.put(&key, &bytes);
    assert!(get(&ring, &key, 32768).is_some());
}

#[test]
fn a_damaged_count_forgets_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    for damage in [[0xff; 16], [0; 16], [0x55; 16]] {
        let ring = open(folder.path(), 2 << 20);
        for seed in 0..100 {
            ring_file(folder.path()).write_all_at(&damage, layout::GIVEN_AT).unwrap();
            let (key, bytes) = record(seed, 32768);
            ring.put(&key, &bytes);
            assert!(get(&ring, &key, 32768).is_some(), "{damage:?} {seed}");
        }
    }
    // A count that is damaged into another one forgets everything.
    let (ring, far) = (open(folder.path(), 2 << 20), 1u64 << 61);
    let count = [far.to_le_bytes(), (!far).to_le_bytes()].concat();
    ring_file(folder.path()).write_all_at(&count, layout::GIVEN_AT).unwrap();
    for seed in 200..300 {
        let (key, bytes) = record(seed, 32768);
        ring.put(&key, &bytes);
        assert!(get(&ring, &key, 32768).is_some());
    }
}

#[test]
fn a_process_that_was_stopped_with_the_lock_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let ring = open(folder.path(), 2 << 20);
    let (first, late) = (record(1, 32768), record(2, 1 << 19));
    ring.put(&first.0, &first.1);
    let stopped = File::open(folder.path().join(PART)).unwrap();
    file::lock(&stopped, rustix::fs::FlockOperation::NonBlockingLockExclusive, Duration::ZERO).unwrap();
    let started = std::time::Instant::now();
    for _ in 0..100 {
        ring.put(&late.0, &late.1);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "it is tried once and then left alone");
    assert!(ring.writing.is_off() && !ring.holds(&late.0, late.1.len()));
    assert!(get(&ring, &first.0, 32768).is_some(), "what is there is read");
}

#[test]
fn threads_do_not_wait_one_after_the_other_for_a_lock_that_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let ring = open(folder.path(), 2 << 20);
    let stopped = File::open(folder.path().join(PART)).unwrap();
    file::lock(&stopped, rustix::fs::FlockOperation::NonBlockingLockExclusive, Duration::ZERO).unwrap();
    let large = record(1, 1 << 19);
    let append = || ring.opened().ring.append(&large.1).unwrap_err();
    let began = std::time::Instant::now();
    assert_eq!(append().kind(), io::ErrorKind::WouldBlock);
    drop(stopped);
    // Who comes a moment later does not even ask, or it would get what it wants now.
    let outcome = ring.opened().ring.append(&large.1);
    assert!(outcome.is_err() || began.elapsed() > Duration::from_secs(1), "the lock was asked for at once");
    within_seconds(10, || ring.opened().ring.append(&large.1).is_ok());
}

fn within_seconds(seconds: u64, mut holds: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(seconds), "not within {seconds} s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_file_that_is_cut_short_is_a_miss() {
    let folder = tempfile::tempdir().unwrap();
    let ring = open(folder.path(), 2 << 20);
    let (key, bytes) = record(1, 32768);
    ring.put(&key, &bytes);
    for len in [40_000, 10_000, 4096, 600, 0] {
        ring_file(folder.path()).set_len(len).unwrap();
        assert!(get(&ring, &key, 32768).is_none());
        ring.put(&key, &bytes);
        assert!(get(&ring, &key, 32768).is_some(), "it grows again");
    }
    let small = BlockRing::open(&CacheDir::open(folder.path()).unwrap(), SIZE_BYTES_MIN - 1);
    assert_eq!(small.unwrap_err().kind(), ErrorKind::Usage);
}

fn inode(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("blocks/ring")).unwrap().ino()
}

#[test]
fn the_ring_in_use_wins_and_one_that_nobody_uses_gives_way() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), 4 << 20);
    let (ring, records) = (inode(folder.path()), [record(1, 32768), record(2, 32768)]);
    first.put(&records[0].0, &records[0].1);
    for size in [8 << 20, 2 << 20] {
        let later = open(folder.path(), size);
        assert_eq!((inode(folder.path()), later.data_bytes()), (ring, first.data_bytes()));
        later.put(&records[1].0, &records[1].1);
        for (key, bytes) in &records {
            assert!(get(&later, key, 32768).as_ref() == Some(bytes));
            assert!(get(&first, key, 32768).as_ref() == Some(bytes));
        }
    }
    drop(first);
    let same = open(folder.path(), (4 << 20) + 5);
    assert_eq!(inode(folder.path()), ring, "as large in pages");
    assert!(same.holds(&records[0].0, 32768));
    drop(same);
    let larger = open(folder.path(), 8 << 20);
    assert_ne!(inode(folder.path()), ring);
    assert!(larger.data_bytes() > 7 << 20 && !larger.holds(&records[0].0, 32768));
}

#[test]
fn what_is_left_or_damaged_is_replaced_and_links_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blocks/ring");
    let opened = open(folder.path(), 2 << 20);
    let mut last = inode(folder.path());
    drop(opened);
    let damage: [&dyn Fn(&File); 3] =
        [&|file| file.write_all_at(b"x", 20).unwrap(), &|file| file.set_len(5000).unwrap(), &|file| {
            file.set_len(0).unwrap();
        }];
    for damage in damage {
        damage(&ring_file(folder.path()));
        std::fs::write(folder.path().join("blocks/ring.new"), b"left by a killed process").unwrap();
        open(folder.path(), 2 << 20);
        assert_ne!(std::mem::replace(&mut last, inode(folder.path())), last);
        assert!(!folder.path().join("blocks/ring.new").exists());
    }
    std::fs::remove_file(&path).unwrap();
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(outside.join("file"), &path).unwrap();
    let cache = CacheDir::open(folder.path()).unwrap();
    assert!(BlockRing::open_any_size(&cache, 2 << 20).is_err());
    std::fs::remove_dir_all(folder.path().join("blocks")).unwrap();
    std::os::unix::fs::symlink(&outside, folder.path().join("blocks")).unwrap();
    assert!(BlockRing::open_any_size(&cache, 2 << 20).is_err());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_file_that_lost_its_name_is_given_up_by_all() {
    let folder = tempfile::tempdir().unwrap();
    let rings = [open(folder.path(), 4 << 20), open(folder.path(), 4 << 20)];
    let (first, later) = (record(1, 32768), record(2, 32768));
    rings[0].put(&first.0, &first.1);
    let (held, given) = (rings[0].opened(), rings[0].given_bytes());
    std::fs::remove_dir_all(folder.path()).unwrap();
    rings[0].put(&later.0, &later.1);
    assert!(!rings[0].opened().file.is_gone() && held.file.is_gone());
    assert!(rings[0].given_bytes() >= given + rings[0].data_bytes(), "or what was there would pass for held");
    assert!(get(&rings[0], &later.0, 32768).is_some() && get(&rings[0], &first.0, 32768).is_none());
    // One that only reads comes after it.
    for _ in 0..LOOK_UPS_MAX {
        get(&rings[1], &first.0, 32768);
    }
    assert!(get(&rings[1], &later.0, 32768).is_some());
    // Where none can be made, nothing is written to the one without a name.
    std::fs::remove_dir_all(folder.path()).unwrap();
    std::fs::write(folder.path(), b"in its way").unwrap();
    let before = rings[0].opened().ring.given_as_seen();
    let many = record(3, 1 << 20);
    rings[0].put(&many.0, &many.1);
    assert!(rings[0].writing.is_off() && rings[0].opened().ring.given_as_seen() == before);
    assert!(get(&rings[0], &later.0, 32768).is_some(), "what is there is read");
    std::fs::remove_file(folder.path()).unwrap();
    std::fs::create_dir(folder.path()).unwrap();
}

#[test]
fn reading_a_nearly_full_ring_again_and_again_writes_little() {
    let folder = tempfile::tempdir().unwrap();
    let ring = open(folder.path(), 16 << 20);
    let count = (ring.data_bytes() / 32768 * 9 / 10) as u32;
    let keys: Vec<Key> = (0..count)
        .map(|seed| record(seed, 32768))
        .map(|(key, bytes)| {
            ring.put(&key, &bytes);
            key
        })
        .collect();
    drop(ring);
    let ring = open(folder.path(), 16 << 20);
    let before = ring.given_bytes();
    for _ in 0..6 {
        assert!(keys.iter().all(|key| get(&ring, key, 32768).is_some()));
    }
    assert!(ring.given_bytes() - before <= ring.data_bytes() / 8, "{}", ring.given_bytes() - before);
}

#[test]
fn a_count_that_power_loss_set_back_costs_records_and_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let records: Vec<_> = (0..150).map(|seed| record(seed, 32768)).collect();
    let ring = open(folder.path(), 4 << 20);
    records[..20].iter().for_each(|(key, bytes)| ring.put(key, bytes));
    let mut header = [0; 16];
    ring_file(folder.path()).read_exact_at(&mut header, layout::GIVEN_AT).unwrap();
    records[20..60].iter().for_each(|(key, bytes)| ring.put(key, bytes));
    drop(ring);
    ring_file(folder.path()).write_all_at(&header, layout::GIVEN_AT).unwrap();
    let ring = open(folder.path(), 4 << 20);
    for (n, (key, bytes)) in records.iter().enumerate() {
        let got = get(&ring, key, 32768);
        assert!(got.is_none_or(|got| got == *bytes), "{n}");
        assert!(n >= 20 || get(&ring, key, 32768).is_some(), "{n}: given away before");
        ring.put(key, bytes);
    }
    // By now the count has passed all that lay beyond it.
    for (n, (key, bytes)) in records.iter().enumerate().rev() {
        let got = get(&ring, key, 32768);
        assert!(got.as_ref().is_none_or(|got| got == bytes), "{n}");
        assert!(n < 60 || got.is_some(), "{n}: among the newest");
    }
}

#[test]
fn keys_that_differ_only_where_the_table_does_not_look_are_not_mixed_up() {
    let folder = tempfile::tempdir().unwrap();
    let ring = open(folder.path(), 2 << 20);
    let (one, other) = ([1; 32], [[1; 24].as_slice(), &[2; 8]].concat().try_into().unwrap());
    // What a check that knows the whole key says.
    let get = |key: &Key| ring.get(key, 4096, |bytes| (bytes[..32] == key[..]).then(|| bytes.to_vec()));
    let of = |key: &Key| key.iter().copied().cycle().take(4096).collect::<Vec<u8>>();
    ring.put(&one, &of(&one));
    assert!(get(&one) == Some(of(&one)));
    assert!(get(&other).is_none(), "the other's record is refused, and forgotten");
    ring.put(&other, &of(&other));
    assert!(get(&other) == Some(of(&other)) && get(&one).is_none());
}
