//! One index as a file.
//!
//! ```text
//!   0  magic          8 bytes  "cndrSEEK"
//!   8  version        u32      1; the layout up to here stays in all versions
//!  12  points         u32      how many
//!  16  key            32 bytes what identifies the object's content
//!  48  known to       u64      plain bytes
//!  56  states         u64      bytes
//!  64  table's digest 16 bytes
//!  80  head's digest  16 bytes of the 80 bytes above
//!  96  states         one after another, in the order of the points
//!      table          for each point: plain offset u64, stored bits u64, state's length u32, state's digest 16 bytes
//! ```
//!
//! Numbers are little-endian. A digest is the first 16 bytes of a sha256: with the CPU's SHA instructions it takes 7 µs
//! for a state of 10 KiB, which takes milliseconds to be of use, so nothing faster is worth a dependency. The table
//! stands last because its length is known last, and says no offsets, so none can be wrong.
//!
//! Invariant: each byte of the file is under a digest, and no number is used before its digest has been checked, except
//! to compare it with the file's length.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{POINTS_MAX, STATE_BYTES_MAX, SavedPoint, SeekIndexKey};
use crate::codec::RestartPoint;
use crate::error::{Error, ErrorKind, Result};

const MAGIC: [u8; 8] = *b"cndrSEEK";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 96;
const ENTRY_BYTES: usize = 36;

/// Gathered before it is written: states are some kilobytes, and the file may lie on a network.
const BUFFER_BYTES: usize = 256 << 10;

/// The beginning of a sha256.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Digest([u8; 16]);

impl Digest {
    fn of(bytes: &[u8]) -> Self {
        let sha256: [u8; 32] = Sha256::digest(bytes).into();
        let mut digest = [0; 16];
        digest.copy_from_slice(&sha256[..16]);
        Self(digest)
    }
}

/// What a file turned out to be.
#[derive(Debug)]
pub(super) enum Found<T> {
    /// Complete, and with the right digests as far as it was read.
    Usable(T),
    /// Of another version, of another object, or not an index at all: none of our business.
    Foreign,
    /// Written by this version, but not like this.
    Damaged,
}

/// The first bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) points: u32,
    pub(super) known_to: u64,
    states_bytes: u64,
    table: Digest,
}

/// Where a state lies in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StatePlace {
    offset: u64,
    pub(super) len: u32,
    digest: Digest,
}

/// Everything but the states.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) known_to: u64,
    pub(super) points: Vec<SavedPoint>,
    pub(super) states: Vec<StatePlace>,
}

/// Reads numbers and digests off the front of some bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

impl Head {
    /// Reads and checks the head of a file of `len` bytes.
    pub(super) fn read(file: &File, len: u64, key: &SeekIndexKey) -> io::Result<Found<Self>> {
        let mut bytes = [0; HEAD_BYTES];
        if len < HEAD_BYTES as u64 {
            // A file of ours never is, not even before it gets its name. After a power cut it may be.
            return Ok(Found::Damaged);
        }
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self::parse(&bytes, len, key).unwrap_or(Found::Damaged))
    }

    fn parse(bytes: &[u8; HEAD_BYTES], len: u64, key: &SeekIndexKey) -> Option<Found<Self>> {
        let (signed, digest) = bytes.split_at(HEAD_BYTES - 16);
        let mut fields = Fields(signed);
        let magic = fields.take()?;
        if magic == [0; 8] {
            // The name reached the disk before the power cut, the bytes did not.
            return None;
        }
        if magic != MAGIC || fields.u32()? != VERSION {
            return Some(Found::Foreign);
        }
        if Digest::of(signed).0 != *digest {
            return None;
        }
        let points = fields.u32()?;
        let is_its = fields.take()? == key.0;
        let head = Self {
            points,
            known_to: fields.u64()?,
            states_bytes: fields.u64()?,
            table: Digest(fields.take()?),
        };
        let expected =
            (HEAD_BYTES as u64).checked_add(head.states_bytes)?.checked_add(head.table_bytes() as u64)?;
        match () {
            () if !is_its => Some(Found::Foreign),
            () if expected != len || head.points as usize > POINTS_MAX => None,
            () => Some(Found::Usable(head)),
        }
    }

    fn to_bytes(self, key: &SeekIndexKey) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.points.to_le_bytes());
        bytes.extend(key.0);
        bytes.extend(self.known_to.to_le_bytes());
        bytes.extend(self.states_bytes.to_le_bytes());
        bytes.extend(self.table.0);
        bytes.extend(Digest::of(&bytes).0);
        bytes
    }

    fn table_bytes(&self) -> usize {
        self.points as usize * ENTRY_BYTES
    }
}

impl Table {
    /// Reads and checks all but the states of a file of `len` bytes.
    pub(super) fn read(file: &File, len: u64, key: &SeekIndexKey) -> io::Result<Found<Self>> {
        let head = match Head::read(file, len, key)? {
            Found::Usable(head) => head,
            Found::Foreign => return Ok(Found::Foreign),
            Found::Damaged => return Ok(Found::Damaged),
        };
        let mut bytes = vec![0; head.table_bytes()];
        file.read_exact_at(&mut bytes, HEAD_BYTES as u64 + head.states_bytes)?;
        let table = (Digest::of(&bytes) == head.table).then(|| Self::parse(&head, &bytes)).flatten();
        Ok(table.map_or(Found::Damaged, Found::Usable))
    }

    fn parse(head: &Head, bytes: &[u8]) -> Option<Self> {
        let count = head.points as usize;
        let mut table = Self {
            known_to: head.known_to,
            points: Vec::with_capacity(count),
            states: Vec::with_capacity(count),
        };
        let mut fields = Fields(bytes);
        for _ in 0..count {
            let point = SavedPoint { plain_offset: fields.u64()?, stored_bits: fields.u64()? };
            table.push(point, fields.u32()?, Digest(fields.take()?)).ok()?;
        }
        (table.states_bytes() == head.states_bytes).then_some(table)
    }

    /// Adds a point, whose state follows those before.
    fn push(&mut self, point: SavedPoint, len: u32, digest: Digest) -> Result<()> {
        if self.points.last().is_some_and(|last| last.plain_offset >= point.plain_offset) {
            return Err(Error::new(ErrorKind::Malformed, "restart points are not in order"));
        }
        if self.points.len() == POINTS_MAX || len as usize > STATE_BYTES_MAX {
            let message = format!("over {POINTS_MAX} restart points, or one of over {STATE_BYTES_MAX} bytes");
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        let offset = HEAD_BYTES as u64 + self.states_bytes();
        self.points.push(point);
        self.states.push(StatePlace { offset, len, digest });
        Ok(())
    }

    fn states_bytes(&self) -> u64 {
        let end = |last: &StatePlace| last.offset + u64::from(last.len) - HEAD_BYTES as u64;
        self.states.last().map_or(0, end)
    }

    /// How long its file is, in bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        HEAD_BYTES as u64 + self.states_bytes() + (self.points.len() * ENTRY_BYTES) as u64
    }

    /// Writes a whole file, which must be empty, of at most `bytes_max` bytes. It is not synced: what a power cut leaves
    /// of it does not have the right digests, and is found out again sooner than disks sync.
    pub(super) fn write(
        file: &File,
        key: &SeekIndexKey,
        known_to: &Cell<u64>,
        points: &mut dyn Iterator<Item = Result<RestartPoint>>,
        bytes_max: u64,
    ) -> Result<Self> {
        let failed = |error| Error::caused_by(ErrorKind::Target, "cannot write restart points", error);
        let mut table = Self { known_to: 0, points: Vec::new(), states: Vec::new() };
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
        // The head comes last, so that no half of a file looks like a whole one.
        out.write_all(&[0; HEAD_BYTES]).map_err(failed)?;
        for point in points {
            let RestartPoint { plain_offset, stored_bits, state } = point?;
            let len = u32::try_from(state.len()).unwrap_or(u32::MAX);
            table.push(SavedPoint { plain_offset, stored_bits }, len, Digest::of(&state))?;
            if table.file_bytes() > bytes_max {
                let message = format!(
                    "the restart points of one object take over {bytes_max} bytes, all indexes' bound"
                );
                return Err(Error::new(ErrorKind::LimitExceeded, message));
            }
            out.write_all(&state).map_err(failed)?;
        }
        // Only now: whoever gives the points may have met some that are lost.
        table.known_to = known_to.get();
        let mut entries = Vec::with_capacity(table.points.len() * ENTRY_BYTES);
        for (point, state) in table.points.iter().zip(&table.states) {
            entries.extend(point.plain_offset.to_le_bytes());
            entries.extend(point.stored_bits.to_le_bytes());
            entries.extend(state.len.to_le_bytes());
            entries.extend(state.digest.0);
        }
        out.write_all(&entries).and_then(|()| out.flush()).map_err(failed)?;
        let head = Head {
            points: u32::try_from(table.points.len()).unwrap_or(u32::MAX),
            known_to: table.known_to,
            states_bytes: table.states_bytes(),
            table: Digest::of(&entries),
        };
        file.write_all_at(&head.to_bytes(key), 0).map_err(failed)?;
        Ok(table)
    }
}

impl StatePlace {
    /// Reads the state; `None` when its bytes are not there or do not have its digest.
    pub(super) fn read(&self, file: &File) -> io::Result<Option<Arc<[u8]>>> {
        let mut state: Arc<[u8]> = std::iter::repeat_n(0, self.len as usize).collect();
        let Some(bytes) = Arc::get_mut(&mut state) else { return Ok(None) };
        match file.read_exact_at(bytes, self.offset) {
            Ok(()) => Ok((Digest::of(bytes) == self.digest).then_some(state)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}
