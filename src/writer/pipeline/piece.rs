//! One piece of the volume: read, hashed, compared with the parent, compressed. On any thread, in any order.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::documents::Digests;
use super::window::{Done, Run};
use crate::backup::BlockHashTable;
use crate::block::{hash_of, hash_of_zeros, is_zeros};
use crate::error::{ErrorKind, Result};
use crate::types::BlockHash;
use crate::writer::encode::{EncodedPiece, Encoder};
use crate::writer::ranges::{Ranges, join, listed_blocks};
use crate::writer::source::Source;
use crate::writer::source::changed::Changed;

/// The parent's digests are read so many at a time where there is no data: a quarter MiB of its file.
const DIGESTS_AT_ONCE: u64 = 3640;

/// What making a piece takes.
pub(super) struct PieceMaker<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) ranges: Ranges<'a>,
    pub(super) encoder: &'a Encoder,
    pub(super) parent: Option<&'a BlockHashTable>,
    /// Where the source may differ from the parent.
    pub(super) changed: Option<&'a Changed>,
    /// Whether that is only compared with what is read.
    pub(super) paranoid: bool,
    /// Bytes that changed where they should not.
    pub(super) unlisted: AtomicU64,
    pub(super) len_bytes: u64,
    pub(super) digests: &'a Digests,
    pub(super) block_bytes: u64,
    /// Longest piece that is compressed at once.
    pub(super) encode_bytes: usize,
    /// Buffers that nobody uses at the moment.
    pub(super) idle: Mutex<Vec<Vec<u8>>>,
}

/// What was read of a piece.
#[derive(PartialEq, Eq)]
enum Read {
    /// A part, which is in order now.
    Part,
    /// All of it, and all are zeros.
    WholePieceOfZeros,
}

impl PieceMaker<'_> {
    /// Makes the piece `range`, which begins at a block and ends at one or at the volume's end.
    pub(super) fn make(&self, range: Range<u64>, is_known_hole: bool) -> Result<Done> {
        let parts = self.parts_to_read(&range)?;
        let is_whole = parts.first() == Some(&range);
        if is_whole && (is_known_hole || self.ranges.is_hole(&range)?) {
            let done = self.make_zeros(range)?;
            self.count_unlisted(&done);
            return Ok(done);
        }
        let mut done = Done { offset: range.start, plain: Vec::new(), runs: Vec::new() };
        if parts.is_empty() {
            return Ok(done);
        }
        done.plain = lock(&self.idle).pop().unwrap_or_default();
        done.plain.resize((range.end - range.start) as usize, 0);
        for part in &parts {
            if self.read_part(&mut done, part)? == Read::WholePieceOfZeros {
                self.give_back(done.plain);
                let done = self.make_zeros(range)?;
                self.count_unlisted(&done);
                return Ok(done);
            }
        }
        if done.runs.is_empty() {
            self.give_back(std::mem::take(&mut done.plain));
        }
        self.count_unlisted(&done);
        Ok(done)
    }

    /// What of a piece must be read: whole blocks, in order. With a list of changes those that it names; the others' digests
    /// are taken from the parent. The buffer of a piece keeps what another left there between its parts.
    fn parts_to_read(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let (Some(listed), Some(parent), false) = (self.changed, self.parent, self.paranoid) else {
            return Ok(vec![range.clone()]);
        };
        let mut parts = Vec::new();
        let mut at = range.start;
        for part in listed_blocks(listed, range, self.block_bytes, self.len_bytes) {
            self.take_from_parent(parent, at..part.start, &mut parts)?;
            at = part.end;
            join(&mut parts, part);
        }
        self.take_from_parent(parent, at..range.end, &mut parts)?;
        Ok(parts)
    }

    /// Takes the parent's digests for whole blocks that did not change since; a block whose digest is damaged there becomes
    /// one of the `parts` to be read.
    fn take_from_parent(
        &self,
        parent: &BlockHashTable,
        range: Range<u64>,
        parts: &mut Vec<Range<u64>>,
    ) -> Result<()> {
        let mut first = range.start / self.block_bytes;
        let mut digests = Vec::new();
        for digest in parent.get(first..range.end / self.block_bytes) {
            match digest {
                Ok(digest) => digests.push(digest),
                Err(error) if error.kind() == ErrorKind::Malformed => {
                    self.digests.put(first, &digests)?;
                    first += digests.len() as u64;
                    digests.clear();
                    let start = first * self.block_bytes;
                    join(parts, start..start + self.block_bytes);
                    first += 1;
                }
                Err(error) => return Err(error.context("while taking digests from the parent backup")),
            }
        }
        if digests.is_empty() { Ok(()) } else { self.digests.put(first, &digests) }
    }

    /// Reads a part of the piece: its bytes, its digests, and the runs of blocks that changed; these two not of a piece that
    /// is nothing but zeros.
    fn read_part(&self, done: &mut Done, part: &Range<u64>) -> Result<Read> {
        let is_whole_piece = (part.end - part.start) as usize == done.plain.len();
        let begin = (part.start - done.offset) as usize;
        let plain = &mut done.plain[begin..(part.end - done.offset) as usize];
        if self.ranges.is_hole(part)? {
            plain.fill(0);
        } else {
            self.source.read_exact_at(plain, part.start)?;
        }
        let plain = &*plain;
        let first = part.start / self.block_bytes;
        let block_bytes = self.block_bytes as usize;
        let digest = |block: &[u8]| match is_zeros(block) {
            true if block.len() == block_bytes => self.digests.of_zeros,
            _ => hash_of(block),
        };
        let digests: Vec<BlockHash> = plain.chunks(block_bytes).map(digest).collect();
        if is_whole_piece && digests.iter().all(|digest| *digest == self.digests.of_zeros) {
            return Ok(Read::WholePieceOfZeros);
        }
        self.digests.put(first, &digests)?;
        for blocks in self.changed(first, &digests)? {
            let bytes = blocks.start * block_bytes..plain.len().min(blocks.end * block_bytes);
            let encoded = plain[bytes.clone()].chunks(self.encode_bytes);
            let encoded = encoded.map(|piece| self.encoder.encode_piece(piece)).collect::<Result<_>>()?;
            let range = (begin + bytes.start) as u64..(begin + bytes.end) as u64;
            done.runs.push(Run { range, encoded });
        }
        Ok(Read::Part)
    }

    /// Notes what changed although the list of changes does not tell so.
    fn count_unlisted(&self, done: &Done) {
        let Some(listed) = self.changed else { return };
        for run in &done.runs {
            let end = done.offset + run.range.end;
            let blocks = (done.offset + run.range.start..end).step_by(self.block_bytes as usize);
            let blocks = blocks.map(|start| start..end.min(start + self.block_bytes));
            let unlisted = blocks.filter(|block| !listed.touches(block.clone()));
            let bytes = unlisted.map(|block| block.end - block.start).sum();
            self.unlisted.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// A buffer is free again.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        if buffer.capacity() > 0 {
            lock(&self.idle).push(buffer);
        }
    }

    /// Ranges of blocks, counted from the first, that differ from the parent's. All where there is no parent.
    fn changed(&self, first: u64, digests: &[BlockHash]) -> Result<Vec<Range<usize>>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let Some(parent) = self.parent else {
            runs.push(0..digests.len());
            return Ok(runs);
        };
        let old = parent.get(first..first + digests.len() as u64);
        for (i, (new, old)) in digests.iter().zip(old).enumerate() {
            let is_changed = match old {
                Ok(old) => old != *new,
                // One entry of the parent's document is damaged: what it stands for is stored once more.
                Err(error) if error.kind() == ErrorKind::Malformed => true,
                Err(error) => return Err(error.context("while comparing with the parent backup")),
            };
            match runs.last_mut() {
                _ if !is_changed => {}
                Some(run) if run.end == i => run.end += 1,
                _ => runs.push(i..i + 1),
            }
        }
        Ok(runs)
    }

    fn make_zeros(&self, range: Range<u64>) -> Result<Done> {
        let (first, end) = (range.start / self.block_bytes, range.end.div_ceil(self.block_bytes));
        let whole = (range.end - range.start) / self.block_bytes;
        self.digests.put_zeros(first, whole)?;
        let short_bytes = (range.end - range.start) % self.block_bytes;
        let last = (short_bytes > 0).then(|| hash_of_zeros(short_bytes));
        if let Some(last) = last {
            self.digests.put(first + whole, &[last])?;
        }
        let mut runs: Vec<Range<u64>> = Vec::new();
        if self.parent.is_none() {
            runs.push(0..range.end - range.start);
        } else {
            let mut at = first;
            while at < end {
                let some = DIGESTS_AT_ONCE.min(end - at);
                let mut digests = vec![self.digests.of_zeros; some as usize];
                if let (Some(last), true, Some(place)) = (last, at + some == end, digests.last_mut()) {
                    *place = last;
                }
                for blocks in self.changed(at, &digests)? {
                    let byte = |block: usize| (at - first + block as u64) * self.block_bytes;
                    let bytes = byte(blocks.start)..byte(blocks.end).min(range.end - range.start);
                    match runs.last_mut() {
                        Some(run) if run.end == bytes.start => run.end = bytes.end,
                        _ => runs.push(bytes),
                    }
                }
                at += some;
            }
        }
        let encode = |range: Range<u64>| {
            let encoded = self.encode_zeros(range.end - range.start)?;
            Ok(Run { range, encoded })
        };
        let runs = runs.into_iter().map(encode).collect::<Result<_>>()?;
        Ok(Done { offset: range.start, plain: Vec::new(), runs })
    }

    fn encode_zeros(&self, len_bytes: u64) -> Result<Vec<EncodedPiece>> {
        let most = self.encode_bytes as u64;
        let mut pieces = Vec::new();
        if len_bytes >= most {
            pieces = vec![self.encoder.encode_zeros(self.encode_bytes)?; (len_bytes / most) as usize];
        }
        if !len_bytes.is_multiple_of(most) {
            pieces.push(self.encoder.encode_zeros((len_bytes % most) as usize)?);
        }
        Ok(pieces)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
