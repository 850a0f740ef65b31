//! Which key lies where: buckets of one page, entries of 32 bytes.
//!
//! ```text
//! key[..16] (16), position (u64), length in bytes (u32), zero (4)
//! ```
//!
//! A position counts all bytes that the ring ever gave away and never comes again; 0 is none. The threads of one process
//! change a bucket in turn. Two processes may change one at once; each looks for a free slot from another place on, by its
//! key, so they seldom choose the same, and then it costs a miss later.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Key;
use super::file::RingFile;
use super::layout::{Layout, PAGE};

const ENTRY_BYTES: usize = 32;
const FINGERPRINT_BYTES: usize = 16;

/// Locks for all buckets: threads are fewer.
const TURNS: usize = 64;

/// Where a record lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) position: u64,
    pub(super) len_bytes: u32,
}

#[derive(Debug)]
pub(super) struct Table {
    file: Arc<RingFile>,
    layout: Layout,
    /// Held while a bucket is changed; each is for many buckets.
    changing: [Mutex<()>; TURNS],
}

/// One bucket as it was read.
pub(super) struct Bucket([u8; PAGE as usize]);

impl Table {
    pub(super) fn new(file: Arc<RingFile>) -> Self {
        Self { layout: file.layout, file, changing: [const { Mutex::new(()) }; TURNS] }
    }

    /// The bucket that holds `key`, if any does.
    pub(super) fn bucket(&self, key: &Key) -> io::Result<Bucket> {
        let mut page = [0; PAGE as usize];
        match self.file.table().read_exact_at(&mut page, self.bucket_at(key)) {
            Ok(()) => {}
            // Somebody has cut the file short: nothing is there.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => page = [0; PAGE as usize],
            Err(error) => return Err(error),
        }
        Ok(Bucket(page))
    }

    /// Writes an entry over that of the same key, else over a free one, else over one that `age` does not know or whose age
    /// is the highest.
    pub(super) fn insert(
        &self,
        key: &Key,
        entry: Entry,
        age: impl Fn(&Entry) -> Option<u64>,
    ) -> io::Result<()> {
        let _turn = self.turn(key);
        let bucket = self.bucket(key)?;
        let first = usize::from(key[FINGERPRINT_BYTES + 8]);
        let worth = |slot: &usize| match bucket.entry(*slot) {
            Some(_) if bucket.has(*slot, key) => (0, 0),
            None => (1, 0),
            Some(old) => match age(&old) {
                None => (2, 0),
                Some(age) => (3, u64::MAX - age),
            },
        };
        let slots = (first..first + Bucket::SLOTS).map(|slot| slot % Bucket::SLOTS);
        let slot = slots.min_by_key(worth).unwrap_or(0);
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..FINGERPRINT_BYTES].copy_from_slice(&key[..FINGERPRINT_BYTES]);
        bytes[16..24].copy_from_slice(&entry.position.to_le_bytes());
        bytes[24..28].copy_from_slice(&entry.len_bytes.to_le_bytes());
        self.file.table().write_all_at(&bytes, self.slot_at(key, slot))
    }

    /// Frees a slot if it still holds `entry`.
    pub(super) fn erase(&self, key: &Key, slot: usize, entry: &Entry) -> io::Result<()> {
        let _turn = self.turn(key);
        if self.bucket(key)?.entry(slot) == Some(*entry) {
            self.file.table().write_all_at(&[0; ENTRY_BYTES], self.slot_at(key, slot))?;
        }
        Ok(())
    }

    fn turn(&self, key: &Key) -> MutexGuard<'_, ()> {
        let bucket = (self.bucket_at(key) / PAGE) as usize;
        self.changing[bucket % TURNS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bucket_at(&self, key: &Key) -> u64 {
        // Of other bytes than the fingerprint, or all of a bucket's fingerprints would be alike in some bits.
        let mut number = [0; 8];
        number.copy_from_slice(&key[FINGERPRINT_BYTES..FINGERPRINT_BYTES + 8]);
        self.layout.table_at() + u64::from_le_bytes(number) % self.layout.buckets * PAGE
    }

    fn slot_at(&self, key: &Key, slot: usize) -> u64 {
        self.bucket_at(key) + (slot * ENTRY_BYTES) as u64
    }
}

impl Bucket {
    const SLOTS: usize = PAGE as usize / ENTRY_BYTES;

    /// The newest entry of `key` that fits, and its slot.
    pub(super) fn find(&self, key: &Key, fits: impl Fn(&Entry) -> bool) -> Option<(usize, Entry)> {
        let of_key = (0..Self::SLOTS).filter(|slot| self.has(*slot, key));
        let entries = of_key.filter_map(|slot| Some((slot, self.entry(slot)?)));
        entries.filter(|(_, entry)| fits(entry)).max_by_key(|(_, entry)| entry.position)
    }

    fn has(&self, slot: usize, key: &Key) -> bool {
        self.slot(slot)[..FINGERPRINT_BYTES] == key[..FINGERPRINT_BYTES]
    }

    fn entry(&self, slot: usize) -> Option<Entry> {
        let bytes = self.slot(slot);
        let (mut position, mut len_bytes) = ([0; 8], [0; 4]);
        position.copy_from_slice(&bytes[16..24]);
        len_bytes.copy_from_slice(&bytes[24..28]);
        let entry =
            Entry { position: u64::from_le_bytes(position), len_bytes: u32::from_le_bytes(len_bytes) };
        (entry.position != 0).then_some(entry)
    }

    fn slot(&self, slot: usize) -> &[u8] {
        &self.0[slot * ENTRY_BYTES..][..ENTRY_BYTES]
    }
}
