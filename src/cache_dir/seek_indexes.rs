//! Restart points between runs: one file for each object.
//!
//! Problem: a mount opens hundreds of objects, whose indexes are some megabytes each, of which a reader wants a few
//! kilobytes now. Idea: opening an index reads its table, some tens of kilobytes; a state is read when a decoder starts
//! from it, through a descriptor that lives as long as this one read: 256 opened objects must not take 256 descriptors
//! beside those of the objects, and an evicted file must give its space back. [`mod@file`] has the layout,
//! [`room`] the bound.
//!
//! All files lie in one folder: there are a thousand or so (a hundred thousand at most), which no file system minds.
//!
//! Invariants: a file appears under its name when it is complete, and is never changed after; no lock is held between
//! processes, and what two of them do at once loses knowledge at worst; the table and each state are checked against a
//! digest before they are used. A damaged state costs that point, a damaged table the file: [`mod@mend`] writes it anew
//! without what is wrong.

mod file;
mod mend;
mod room;

use std::cell::Cell;
use std::fs::{File, Metadata};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use self::file::{Found, Head, StatePlace, Table};
use self::room::Room;
use super::CacheDir;
use super::part::Part;
use crate::codec::RestartPoint;
use crate::error::{Error, ErrorKind, Result};

/// What the sub-directory is called.
pub(super) const PART: &str = "seek-indexes";

/// How many points an index may have: 512 GiB of plain bytes in one object at 4 MiB each, or 12 GiB of the smallest bz2
/// blocks. In memory they take 7 MiB.
pub const POINTS_MAX: usize = 1 << 17;

/// Longest state of one point, in bytes. zlib has 32 KiB, zstd its window: 2 MiB in what Cinder writes, 8 MiB at the
/// highest levels; larger windows are not worth a restart point.
pub const STATE_BYTES_MAX: usize = 16 << 20;

/// What all indexes together may take unless told otherwise, in bytes: at half a percent of the plain bytes, the indexes of
/// 800 GiB of default objects. Always at most [`DISK_SHARE_DEFAULT`] of the disk.
pub const BYTES_MAX_DEFAULT: u64 = 4 << 30;

/// The share of its file system that indexes may take unless told otherwise: one in 20. `/var` is a small one at times, and
/// others need it.
pub const DISK_SHARE_DEFAULT: u64 = 20;

/// What identifies an object's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SeekIndexKey(pub [u8; 32]);

impl SeekIndexKey {
    fn file_name(&self) -> String {
        use std::fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut name, byte| {
            let _ = write!(name, "{byte:02x}");
            name
        })
    }

    fn from_file_name(name: &str) -> Option<Self> {
        let mut key = [0; 32];
        let is_hex = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        for (n, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(name.get(2 * n..2 * n + 2)?, 16).ok()?;
        }
        is_hex.then_some(Self(key))
    }
}

/// A restart point whose state is still in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SavedPoint {
    /// As in [`RestartPoint`].
    pub plain_offset: u64,
    /// As in [`RestartPoint`].
    pub stored_bits: u64,
}

/// The restart points of one object, opened. The states stay in the file until they are asked for. It holds no descriptor.
#[derive(Debug)]
pub struct SavedIndex {
    part: Arc<Part>,
    mending: Arc<Mutex<()>>,
    key: SeekIndexKey,
    table: Table,
}

impl SavedIndex {
    /// The points, sorted by plain offset, no offset twice.
    pub fn points(&self) -> &[SavedPoint] {
        &self.table.points
    }

    /// Plain offset, in bytes, up to which points have been noted.
    pub fn known_to(&self) -> u64 {
        self.table.known_to
    }

    /// The state of point `index`, checked against its checksum.
    ///
    /// [`ErrorKind::NoData`] when there is no such point, or no longer: the file was evicted, or replaced by one without
    /// this point; [`ErrorKind::HashMismatch`] when the state is damaged, which takes the point out of the file;
    /// [`ErrorKind::Target`] when it cannot be read. After any of them [`SeekIndexStore::load`] says what is left.
    pub fn state(&self, index: usize) -> Result<Arc<[u8]>> {
        let gone = || Error::new(ErrorKind::NoData, "the restart point is no longer there");
        let unreadable = |error| Error::caused_by(ErrorKind::Target, "cannot read a restart point", error);
        let (Some(point), Some(place)) = (self.points().get(index), self.table.states.get(index)) else {
            return Err(gone());
        };
        if place.len == 0 {
            return Ok(Arc::from([]));
        }
        let (file, metadata) = match self.part.open_file(&self.key.file_name()) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            Err(error) => return Err(unreadable(error)),
        };
        room::touch(&file, &metadata);
        if let Some(state) = place.read(&file).map_err(unreadable)? {
            return Ok(state);
        }
        // Damaged, or another process has saved more points by now, and this one lies elsewhere.
        match Table::read(&file, metadata.len(), &self.key).map_err(unreadable)? {
            Found::Usable(now) => {
                let found = now.points.binary_search_by_key(&point.plain_offset, |point| point.plain_offset);
                let found = found.ok().filter(|&index| now.points[index] == *point).ok_or_else(gone)?;
                if let Some(state) = now.states[found].read(&file).map_err(unreadable)? {
                    return Ok(state);
                }
            }
            Found::Foreign => return Err(gone()),
            Found::Damaged => {}
        }
        mend::keep_some(&self.part, &self.mending, &self.key, &mut |_| true);
        Err(Error::new(ErrorKind::HashMismatch, "the saved state of a restart point is damaged"))
    }

    /// How long the file is, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.table.file_bytes()
    }

    /// About how much memory it holds, in bytes.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.points().len() * (size_of::<SavedPoint>() + size_of::<StatePlace>())
    }

    /// Whether this is worth at least as much as `points` points up to `known_to`. How far decides first: what lies
    /// behind costs a decode to learn, more points before it only make decodes shorter.
    fn knows(&self, known_to: u64, points: usize) -> bool {
        (self.known_to(), self.points().len()) >= (known_to, points)
    }
}

/// All indexes of a cache directory. One value serves all threads; several processes may use one directory.
#[derive(Debug)]
pub struct SeekIndexStore {
    part: Arc<Part>,
    bytes_max: u64,
    room: Room,
    /// Held by whoever writes a file anew without what is wrong in it, so that many readers of it do not do so at once.
    mending: Arc<Mutex<()>>,
}

impl SeekIndexStore {
    /// Opens the part of `dir` that holds indexes; the least recently used are dropped above `bytes_max` bytes. The errors
    /// are those of [`CacheDir::open`].
    pub fn open(dir: &CacheDir, bytes_max: u64) -> Result<Self> {
        let part = Arc::new(dir.part(PART)?);
        Ok(Self { part, bytes_max, room: Room::default(), mending: Arc::default() })
    }

    /// The bound to open `dir` with unless told otherwise, in bytes.
    pub fn bytes_max_default(dir: &CacheDir) -> u64 {
        dir.disk_bytes().map_or(BYTES_MAX_DEFAULT, |disk| BYTES_MAX_DEFAULT.min(disk / DISK_SHARE_DEFAULT))
    }

    /// What is known of an object; `None` when there is nothing or nothing usable. A damaged file is deleted.
    pub fn load(&self, key: &SeekIndexKey) -> Option<SavedIndex> {
        let table = self.look(key, |file, metadata| {
            room::touch(file, metadata);
            Table::read(file, metadata.len(), key)
        })?;
        Some(self.opened(key, table))
    }

    fn opened(&self, key: &SeekIndexKey, table: Table) -> SavedIndex {
        SavedIndex { part: self.part.clone(), mending: self.mending.clone(), key: *key, table }
    }

    /// Plain offset, in bytes, up to which an object is indexed; `None` when it is not. Reads 96 bytes, so it may promise
    /// an index that then turns out to be damaged. It does not count as a use.
    pub fn known_to(&self, key: &SeekIndexKey) -> Option<u64> {
        self.look(key, |file, metadata| Head::read(file, metadata.len(), key)).map(|head| head.known_to)
    }

    /// Saves what is known, unless the file knows as much by now, and opens what is there then. `points` are sorted by
    /// plain offset, no offset twice; only one of their states is held in memory at a time.
    ///
    /// On any error the old file stays and nothing is left of the new one: the error of `points`;
    /// [`ErrorKind::LimitExceeded`] above [`POINTS_MAX`], [`STATE_BYTES_MAX`] or the bound of all indexes;
    /// [`ErrorKind::Malformed`] when they are not sorted; [`ErrorKind::Target`] when the disk fails or is full.
    pub fn save(
        &self,
        key: &SeekIndexKey,
        known_to: u64,
        points: &mut dyn Iterator<Item = Result<RestartPoint>>,
    ) -> Result<SavedIndex> {
        self.save_some(key, &Cell::new(known_to), points)
    }

    /// As [`save`](Self::save), where `points` may leave some out and lower `known_to` accordingly while they are taken.
    pub fn save_some(
        &self,
        key: &SeekIndexKey,
        known_to: &Cell<u64>,
        points: &mut dyn Iterator<Item = Result<RestartPoint>>,
    ) -> Result<SavedIndex> {
        let there = |count| self.load(key).filter(|saved| saved.knows(known_to.get(), count));
        // Packing a state is work that need not be done for nothing.
        if let Some(saved) = points.size_hint().1.and_then(there) {
            return Ok(saved);
        }
        let name = key.file_name();
        let temporary = self.part.create(&name)?;
        let table = Table::write(temporary.file(), key, known_to, points, self.bytes_max)?;
        if let Some(saved) = there(table.points.len()) {
            return Ok(saved);
        }
        temporary.publish(&name)?;
        self.room.added(&self.part, key, table.file_bytes(), self.bytes_max);
        Ok(self.opened(key, table))
    }

    /// Deletes an index that has turned out to be wrong.
    pub fn forget(&self, key: &SeekIndexKey) {
        if let Err(error) = self.part.remove(&key.file_name()) {
            tracing::debug!("cannot delete the seek index {} in {:?}: {error}", key.file_name(), self.path());
        }
    }

    /// Takes the points that `is_good` refuses out of an object's index, and with them the claim to know what they led to.
    /// Where that cannot be done the index is deleted.
    pub fn keep_some(&self, key: &SeekIndexKey, is_good: &mut dyn FnMut(&SavedPoint) -> bool) {
        mend::keep_some(&self.part, &self.mending, key, is_good);
    }

    /// Where they lie.
    pub fn path(&self) -> &Path {
        self.part.path()
    }

    /// Opens an object's file and reads of it what `read` reads.
    fn look<T>(
        &self,
        key: &SeekIndexKey,
        read: impl FnOnce(&File, &Metadata) -> io::Result<Found<T>>,
    ) -> Option<T> {
        let opened = self.part.open_file(&key.file_name());
        let found = opened.and_then(|(file, metadata)| read(&file, &metadata));
        match found {
            Ok(Found::Usable(found)) => Some(found),
            Ok(Found::Foreign) => None,
            Ok(Found::Damaged) => {
                delete_damaged(&self.part, key);
                None
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let name = key.file_name();
                tracing::debug!("cannot read the seek index {name} in {:?}: {error}", self.path());
                None
            }
        }
    }
}

/// Another process may put a good one in its place at this very moment; then that one is made again some time.
fn delete_damaged(part: &Part, key: &SeekIndexKey) {
    let name = key.file_name();
    tracing::info!("the seek index {name} in {:?} is damaged and will be made again", part.path());
    if let Err(error) = part.remove(&name) {
        tracing::debug!("cannot delete it: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_s_name_is_its_key() {
        let key = SeekIndexKey(std::array::from_fn(|n| n as u8 * 8 + 3));
        let name = key.file_name();
        assert!(name.starts_with("030b131b"), "{name}");
        assert_eq!(SeekIndexKey::from_file_name(&name), Some(key));
        for other in
            [&name[1..], &name.to_uppercase(), &name.replace("0b", "+b"), &format!("{name}0"), "", "é"]
        {
            assert_eq!(SeekIndexKey::from_file_name(other), None, "{other}");
        }
        assert_eq!(SeekIndexKey::from_file_name(&"é".repeat(32)), None);
    }
}
