//! One part of a target against the digests.
//!
//! The target's holes are not read. Zeros are recognised without hashing. Only blocks that are wrong are looked for among the digests
//! of the backups beneath, the nearest first.
//!
//! Invariant: a part that cannot be read as a whole is read block by block, so that a bad sector costs its own block.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::{Finding, OLDER_MAX, Older, Wrong};
use crate::block::{hash_of, is_zeros};
use crate::chain::extent_map::Piece;
use crate::error::Result;
use crate::image::{Digests, Image};
use crate::types::{BackupId, BlockHash, BlockIndex};
use crate::writer::source::Source;

/// Compares a target with an image, on any thread.
pub(super) struct Comparer<'a> {
    image: &'a Image,
    digests: Digests<'a>,
    target: &'a dyn Source,
    open: &'a Older<'a>,
    /// The backups beneath, the nearest first; opened when something is wrong.
    older: Vec<(BackupId, OnceLock<Option<Arc<Image>>>)>,
}

/// What a thread keeps for its next part.
#[derive(Default)]
pub(super) struct Part {
    bytes: Vec<u8>,
    digests: Vec<Option<BlockHash>>,
    older_digests: Vec<Option<BlockHash>>,
}

/// A block of a target.
enum Block<'a> {
    Bytes(&'a [u8]),
    /// In a hole of the target.
    Hole,
    Unreadable,
    Missing,
}

impl<'a> Comparer<'a> {
    pub(super) fn new(
        image: &'a Image,
        digests: Digests<'a>,
        target: &'a dyn Source,
        open: &'a Older<'a>,
    ) -> Self {
        let older = image.chain().iter().skip(1).take(OLDER_MAX);
        let older = older.map(|id| (id.clone(), OnceLock::new())).collect();
        Self { image, digests, target, open, older }
    }

    /// What is wrong with some blocks, joined where it is wrong in one way.
    pub(super) fn compare(&self, part: &mut Part, blocks: Range<u64>) -> Result<Vec<Finding>> {
        self.digests.read_into(blocks.clone(), &mut part.digests)?;
        let range = self.digests.range_of(blocks.clone());
        let data = self.data_in(&range)?;
        // Bytes of the part that are in a hole stay as they were, and are not looked at where they fill a block.
        let is_whole = self.read(&data, range.start, &mut part.bytes, (range.end - range.start) as usize);
        let mut wrong: Vec<(u64, Wrong, Option<BlockHash>)> = Vec::new();
        let mut single = Vec::new();
        for (block, expected) in blocks.clone().zip(&part.digests) {
            let bytes = self.digests.range_of(block..block + 1);
            let found = if bytes.end > self.target.len_bytes() {
                Block::Missing
            } else if !data.iter().any(|data| data.start < bytes.end && bytes.start < data.end) {
                Block::Hole
            } else if is_whole {
                let at = (bytes.start - range.start) as usize;
                Block::Bytes(&part.bytes[at..at + (bytes.end - bytes.start) as usize])
            } else {
                single.resize((bytes.end - bytes.start) as usize, 0);
                match self.target.read_exact_at(&mut single, bytes.start) {
                    Ok(()) => Block::Bytes(&single),
                    Err(error) => {
                        tracing::warn!("{error}");
                        Block::Unreadable
                    }
                }
            };
            if let Some((why, hash)) = self.judge(BlockIndex(block), expected.as_ref(), &found) {
                wrong.push((block, why, hash));
            }
        }
        self.findings(part, blocks, wrong)
    }

    /// The ranges of `range` that are no holes of the target.
    fn data_in(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut data = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let Some(next) = self.target.next_data(at)?.filter(|next| next.start < range.end) else { break };
            at = next.end.max(at + 1);
            data.push(next.start..next.end.min(range.end));
        }
        Ok(data)
    }

    /// Reads what is data, with zeros in between; whether all of it could be read.
    fn read(&self, data: &[Range<u64>], start: u64, bytes: &mut Vec<u8>, len: usize) -> bool {
        bytes.resize(len, 0);
        let mut at = start;
        for range in data {
            bytes[(at - start) as usize..(range.start - start) as usize].fill(0);
            let buffer = &mut bytes[(range.start - start) as usize..(range.end - start) as usize];
            if self.target.read_exact_at(buffer, range.start).is_err() {
                return false;
            }
            at = range.end;
        }
        bytes[(at - start) as usize..].fill(0);
        true
    }

    /// What is wrong with a block, before the older backups are asked, and the digest of what it holds.
    fn judge(
        &self,
        block: BlockIndex,
        expected: Option<&BlockHash>,
        found: &Block<'_>,
    ) -> Option<(Wrong, Option<BlockHash>)> {
        let Some(expected) = expected else { return Some((Wrong::Unknown, None)) };
        let wants_zeros = self.digests.is_zero(block, expected);
        match found {
            Block::Missing => Some((Wrong::Missing, None)),
            Block::Unreadable => Some((Wrong::Unreadable, None)),
            Block::Hole if wants_zeros => None,
            Block::Hole => Some((Wrong::Zeros, None)),
            Block::Bytes(bytes) => match (wants_zeros, is_zeros(bytes)) {
                (true, true) => None,
                (false, true) => Some((Wrong::Zeros, None)),
                (_, false) => {
                    let hash = hash_of(bytes);
                    (hash != *expected).then_some((Wrong::Other, Some(hash)))
                }
            },
        }
    }

    fn findings(
        &self,
        part: &mut Part,
        blocks: Range<u64>,
        mut wrong: Vec<(u64, Wrong, Option<BlockHash>)>,
    ) -> Result<Vec<Finding>> {
        let mut of: Vec<Option<usize>> = vec![None; wrong.len()];
        for (number, (id, opened)) in self.older.iter().enumerate() {
            let is_asked =
                |(found, of): (&(u64, Wrong, _), &Option<usize>)| found.1 == Wrong::Other && of.is_none();
            if !wrong.iter().zip(&of).any(is_asked) {
                break;
            }
            let Some(image) = opened.get_or_init(|| (self.open)(id)) else { continue };
            let Some(digests) = image.digests().filter(|d| d.block_bytes() == self.digests.block_bytes())
            else {
                continue;
            };
            let known = blocks.start.min(digests.count())..blocks.end.min(digests.count());
            digests.read_into(known.clone(), &mut part.older_digests)?;
            for ((block, _, hash), of) in wrong.iter().zip(&mut of) {
                let theirs = block.checked_sub(known.start).and_then(|n| part.older_digests.get(n as usize));
                if of.is_none() && hash.is_some() && theirs.is_some_and(|theirs| theirs == hash) {
                    *of = Some(number);
                }
            }
        }
        let mut findings: Vec<Finding> = Vec::new();
        for ((block, why, _), of) in wrong.iter_mut().zip(of) {
            if let Some(number) = of {
                let expected = part.digests[(*block - blocks.start) as usize].as_ref();
                let wants_zeros = expected.is_some_and(|hash| self.digests.is_zero(BlockIndex(*block), hash));
                let is_stale = wants_zeros && self.was_stored_above(*block, number);
                *why = if is_stale { Wrong::StaleData } else { Wrong::OlderData };
            }
            let image = self.digests.range_of(*block..*block + 1);
            let of = of.map(|number| self.older[number].0.clone());
            match findings.last_mut() {
                Some(last) if last.image.end == image.start && last.wrong == *why && last.of == of => {
                    last.image.end = image.end;
                }
                _ => findings.push(Finding { image, wrong: *why, of }),
            }
        }
        Ok(findings)
    }

    /// Whether an object of a backup above the older one of this number holds the block's beginning.
    fn was_stored_above(&self, block: u64, number: usize) -> bool {
        let bytes = self.digests.range_of(block..block + 1);
        let layer = self.image.chain().len().saturating_sub(number + 2) as u32;
        match self.image.extent_map().pieces(bytes).next() {
            Some(Piece::Data { object, .. }) => object.layer > layer,
            Some(Piece::Gap(_)) | None => false,
        }
    }
}
