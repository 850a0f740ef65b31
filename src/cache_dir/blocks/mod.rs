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
use std::path::Path;
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
            Err(error) => {
                if self.may_not_be_made() {
                    gone.file.give_back_space();
                }
                self.writing.fails(&error);
            }
        }
    }

    /// Whether the folder is gone for this process for good: one that gave up its rights may not make or enter another.
    fn may_not_be_made(&self) -> bool {
        let is_denied = |folder: &Path| {
            let made = std::fs::create_dir(folder).err().map(|error| error.kind());
            let entered = std::fs::read_dir(folder).err().map(|error| error.kind());
            [made, entered].contains(&Some(io::ErrorKind::PermissionDenied))
        };
        is_denied(self.cache.path()) || is_denied(&self.cache.path().join(PART))
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
mod tests;
