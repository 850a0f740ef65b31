//! Verified blocks on disk, kept between runs and shared by all processes.
//!
//! Problem: what was decoded once is worth keeping, but a cache that must be scanned when it is opened, that keeps an index in
//! memory, or that two processes can spoil for each other is worth less than none. Idea: whoever reads a record back
//! checks it with a sha256 anyway, so nothing in the file needs to be consistent. That buys a cache of one file, of a fixed
//! size, without recovery, journal or locks on the way of a reader:
//!
//! ```text
//! <cache directory>/blocks/ring         sparse, never longer than the size asked for
//!   header    4 KiB    what the file is, and how far the ring has been given away       (see `layout`)
//!   table     1/128    buckets of 4 KiB: which key lies at which place                  (see `table`)
//!   data      the rest a ring: records without any frame, each at its place             (see `ring`)
//! ```
//!
//! A look-up is one read of a bucket and one of the record. To put a record is one write of the record and then one of an
//! entry of 32 bytes. What a process that was killed leaves is a gap; what a torn write leaves is a record that does not
//! pass its check, and is a miss. Records have no header: everything that a header could say is either in the entry or
//! proven by the check, and without it a block of 32 KiB lies on eight whole pages, which are overwritten without being
//! read first.
//!
//! Oldest first out, with a second chance: a record that is read while it is in the oldest quarter of the ring is put
//! again, so what is used stays.
//!
//! Invariants: no byte leaves that the caller's check did not accept; the file is never longer than its size, and all
//! processes use one (see `file`); nothing is mapped, so a disk that is full or fails is an error and not a signal; memory does
//! not depend on the size; nobody waits for another process for longer than [`LOCK_PATIENCE`]; a failure to write is never a
//! failure to read, it is logged once and the cache is left alone for a while.

mod file;
mod health;
mod layout;
mod ring;
mod table;

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use self::file::RingFile;
use self::health::Health;
use self::ring::Ring;
use self::table::{Entry, Table};
use super::CacheDir;
use crate::error::{Error, ErrorKind, Result};

/// What the part of the cache directory is called.
pub(super) const PART: &str = "blocks";

/// Smallest size, in bytes: three records of the largest size that a block may have (16 MiB) fit beside the table, so no
/// block drives out itself.
pub const SIZE_BYTES_MIN: u64 = 64 << 20;

/// How long to wait for a lock that other processes hold for microseconds. One that was stopped while it held the lock must
/// not stop the others.
const LOCK_PATIENCE: Duration = Duration::from_millis(50);

/// The part of the ring, counted from its oldest end, in which a record that is read is put again.
const SECOND_CHANCE_SHARE: u64 = 4;

/// What a record is filed under: the sha256 of a block, or another digest that its owner can compute again.
pub type Key = [u8; 32];

/// Whether the file still has its name is asked after this many look-ups.
const LOOK_UPS_MAX: u64 = 64;

/// Records of up to this many bytes are read into memory that each thread keeps: those of Cinder's blocks by far.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Records by key, in a file of fixed size.
#[derive(Debug)]
pub struct BlockRing {
    cache: CacheDir,
    bytes_max: u64,
    opened: RwLock<Arc<Opened>>,
    /// Held by who looks for another file.
    renewing: Mutex<()>,
    /// What was given away of rings that are gone, and a whole ring for each.
    given_before: AtomicU64,
    look_ups: AtomicU64,
    reading: Health,
    writing: Health,
}

/// The file as it is used now.
#[derive(Debug)]
struct Opened {
    file: Arc<RingFile>,
    table: Table,
    ring: Ring,
}

impl BlockRing {
    /// Opens the blocks of a cache directory, in a file of at most `bytes_max` bytes. One of another size that other
    /// processes use is used as it is, with a warning that names both sizes; one that nobody uses is replaced by an empty
    /// one.
    ///
    /// [`ErrorKind::Usage`] when `bytes_max` is less than [`SIZE_BYTES_MIN`]; [`ErrorKind::Target`] when the file cannot be
    /// made.
    pub fn open(dir: &CacheDir, bytes_max: u64) -> Result<Self> {
        if bytes_max < SIZE_BYTES_MIN {
            let message =
                format!("a disk cache of {bytes_max} bytes is too small, expected at least {SIZE_BYTES_MIN}");
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Self::open_any_size(dir, bytes_max)
    }

    /// As [`open`](Self::open), also for sizes that are of use in tests only.
    fn open_any_size(dir: &CacheDir, bytes_max: u64) -> Result<Self> {
        Ok(Self {
            cache: dir.clone(),
            bytes_max,
            opened: RwLock::new(Arc::new(Opened::new(RingFile::open(dir, bytes_max)?))),
            renewing: Mutex::new(()),
            given_before: AtomicU64::new(0),
            look_ups: AtomicU64::new(0),
            reading: Health::new("read"),
            writing: Health::new("write"),
        })
    }

    fn opened(&self) -> Arc<Opened> {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives up a file that has lost its name, or its space would be taken until this process ends, and uses the one that
    /// has the name now.
    fn renew_if_gone(&self) {
        if !self.opened().file.is_gone() || self.writing.is_off() {
            return;
        }
        // Whoever comes second uses what is there meanwhile.
        let Ok(_renewing) = self.renewing.try_lock() else { return };
        let gone = self.opened();
        if !gone.file.is_gone() {
            return;
        }
        let renewed =
            CacheDir::open(self.cache.path()).and_then(|dir| RingFile::reopen(&dir, self.bytes_max));
        match renewed {
            Ok(file) => {
                tracing::warn!(
                    "the file of the disk cache in {:?} was removed; it is given up",
                    self.cache.path()
                );
                let passed = gone.ring.given_as_seen() + gone.ring.data_bytes() + file.layout.data_bytes;
                self.given_before.fetch_add(passed, Ordering::Relaxed);
                *self.opened.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Opened::new(file));
            }
            Err(error) => self.writing.fails(&error),
        }
    }

    /// What all records together may take, in bytes.
    pub fn data_bytes(&self) -> u64 {
        self.opened().ring.data_bytes()
    }

    /// How much of the ring was ever given away, in bytes, as this process has last seen it: what was held at one count is
    /// still there when the count has grown by less than a quarter of [`data_bytes`](Self::data_bytes).
    pub fn given_bytes(&self) -> u64 {
        self.given_before.load(Ordering::Relaxed) + self.opened().ring.given_as_seen()
    }

    /// The record of `key` if there is one of `len_bytes` bytes and `check` makes something of it. One that `check` refuses
    /// is forgotten.
    pub fn get<T>(&self, key: &Key, len_bytes: usize, check: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
        if self.reading.is_off() {
            return None;
        }
        let opened = self.look_up();
        let (slot, entry) = self.read_with(opened.find(key, len_bytes))??;
        with_buffer(len_bytes, |record| {
            let whole = self.read_with(opened.ring.read(record, entry.position))?;
            let Some(made) = whole.then(|| check(record)).flatten() else {
                // Or it would pass for held, and never be put again.
                let _ = opened.table.erase(key, slot, &entry);
                return None;
            };
            if opened.is_old(&entry) && opened.ring.may_write_again(len_bytes as u64) {
                self.write(key, record);
            }
            Some(made)
        })
    }

    /// Keeps a record, unless it is held already. Too large a one, or one that cannot be written, is not kept.
    pub fn put(&self, key: &Key, record: &[u8]) {
        if !self.holds(key, record.len()) {
            self.write(key, record);
        }
    }

    /// Whether there seems to be such a record that will stay for a while.
    pub fn holds(&self, key: &Key, len_bytes: usize) -> bool {
        let opened = self.look_up();
        let found = opened.find(key, len_bytes).ok().flatten();
        found.is_some_and(|(_, entry)| !opened.is_old(&entry))
    }

    /// The file for a look-up.
    fn look_up(&self) -> Arc<Opened> {
        if self.look_ups.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_UPS_MAX) {
            self.renew_if_gone();
        }
        self.opened()
    }

    /// What was read, and whether reading works.
    fn read_with<T>(&self, read: io::Result<T>) -> Option<T> {
        match read {
            Ok(read) => {
                self.reading.works();
                Some(read)
            }
            Err(error) => {
                self.reading.fails(&error);
                None
            }
        }
    }

    fn write(&self, key: &Key, record: &[u8]) {
        if self.writing.is_off() {
            return;
        }
        self.renew_if_gone();
        let opened = self.opened();
        if record.is_empty() || record.len() as u64 > opened.ring.record_bytes_max() || self.writing.is_off()
        {
            return;
        }
        let written = opened.ring.append(record).and_then(|position| {
            let entry = Entry { position, len_bytes: record.len() as u32 };
            opened.table.insert(key, entry, |old| opened.ring.age_as_seen(old.position))
        });
        match written {
            Ok(()) => self.writing.works(),
            // A full disk too: what is there stays there, and is read.
            Err(error) => self.writing.fails(&error),
        }
    }
}

impl Opened {
    fn new(file: RingFile) -> Self {
        let file = Arc::new(file);
        Self { table: Table::new(file.clone()), ring: Ring::new(file.clone()), file }
    }

    fn find(&self, key: &Key, len_bytes: usize) -> io::Result<Option<(usize, Entry)>> {
        let bucket = self.table.bucket(key)?;
        let fits = |entry: &Entry| entry.len_bytes as usize == len_bytes && self.age(entry).is_some();
        Ok(bucket.find(key, fits))
    }

    /// How much has been given away since the record was; `None` when it has been overwritten, or was never there.
    fn age(&self, entry: &Entry) -> Option<u64> {
        self.ring.age(entry.position)
    }

    fn is_old(&self, entry: &Entry) -> bool {
        let young = self.ring.data_bytes() - self.ring.data_bytes() / SECOND_CHANCE_SHARE;
        self.age(entry).is_none_or(|age| age > young)
    }
}

/// A buffer of `len` bytes, with whatever was in it.
fn with_buffer<T>(len: usize, use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let mut buffer = KEPT.take();
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let result = use_it(&mut buffer[..len]);
    if buffer.len() <= KEPT_BYTES_MAX {
        KEPT.set(buffer);
    }
    result
}

#[cfg(test)]
mod tests {
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
        let held =
            || (2..2 + count).filter(|&seed| get(&busy, &record(seed, 4096).0, 4096).is_some()).count();
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
        assert!(
            rings[0].given_bytes() >= given + rings[0].data_bytes(),
            "or what was there would pass for held"
        );
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
}
