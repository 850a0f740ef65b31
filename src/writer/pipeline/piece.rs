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
use crate::writer::ranges::Ranges;
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

impl PieceMaker<'_> {
    /// Makes the piece `range`, which begins at a block and ends at one or at the volume's end.
    pub(super) fn make(&self, range: Range<u64>, is_known_hole: bool) -> Result<Done> {
        if !self.paranoid && self.is_as_in_parent(&range)? {
            return Ok(Done { offset: range.start, plain: Vec::new(), runs: Vec::new() });
        }
        let done = self.read(range, is_known_hole)?;
        if let Some(listed) = self.changed {
            for run in &done.runs {
                let end = done.offset + run.range.end;
                let blocks = (done.offset + run.range.start..end).step_by(self.block_bytes as usize);
                let blocks = blocks.map(|start| start..end.min(start + self.block_bytes));
                let unlisted = blocks.filter(|block| !listed.touches(block.clone()));
                let bytes = unlisted.map(|block| block.end - block.start).sum();
                self.unlisted.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        Ok(done)
    }

    /// Takes the parent's digests for a piece that did not change since; `false` when it must be read.
    fn is_as_in_parent(&self, range: &Range<u64>) -> Result<bool> {
        let (Some(listed), Some(parent)) = (self.changed, self.parent) else { return Ok(false) };
        // The last block may have become longer or shorter, which no list tells.
        if range.end == self.len_bytes || listed.touches(range.clone()) {
            return Ok(false);
        }
        let first = range.start / self.block_bytes;
        let mut digests = Vec::new();
        for digest in parent.get(first..range.end / self.block_bytes) {
            match digest {
                Ok(digest) => digests.push(digest),
                Err(error) if error.kind() == ErrorKind::Malformed => return Ok(false),
                Err(error) => return Err(error.context("while taking digests from the parent backup")),
            }
        }
        self.digests.put(first, &digests)?;
        Ok(true)
    }

    fn read(&self, range: Range<u64>, is_known_hole: bool) -> Result<Done> {
        if is_known_hole || self.ranges.is_hole(&range)? {
            return self.make_zeros(range);
        }
        let mut plain = lock(&self.idle).pop().unwrap_or_default();
        plain.resize((range.end - range.start) as usize, 0);
        self.source.read_exact_at(&mut plain, range.start)?;
        let first = range.start / self.block_bytes;
        let block_bytes = self.block_bytes as usize;
        let digest = |block: &[u8]| match is_zeros(block) {
            true if block.len() == block_bytes => self.digests.of_zeros,
            _ => hash_of(block),
        };
        let digests: Vec<BlockHash> = plain.chunks(block_bytes).map(digest).collect();
        self.digests.put(first, &digests)?;
        let mut runs = Vec::new();
        for blocks in self.changed(first, &digests)? {
            let bytes = blocks.start * block_bytes..plain.len().min(blocks.end * block_bytes);
            let encoded = plain[bytes.clone()].chunks(self.encode_bytes);
            let encoded = encoded.map(|piece| self.encoder.encode_piece(piece)).collect::<Result<_>>()?;
            runs.push(Run { range: bytes.start as u64..bytes.end as u64, encoded });
        }
        if runs.is_empty() {
            self.give_back(std::mem::take(&mut plain));
        }
        Ok(Done { offset: range.start, plain, runs })
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
