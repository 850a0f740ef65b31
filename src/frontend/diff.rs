//! What differs between two backups, from their digests alone.
//!
//! Problem: "what did last night change?" must not cost the reading of two volumes. Idea: each backup lists the digest of every
//! block of the whole volume, so two lists of equal block size are compared line by line, by all cores, as fast as the store
//! gives them: 72 bytes for each 32 KiB.
//!
//! Digests of different block sizes say nothing about each other, and a backup without digests says nothing at all: such pairs
//! are refused rather than read. The volumes may be different ones, and of different lengths.
//!
//! Invariants: no object is opened; what is not known to be equal is told as changed; ranges are sorted, do not overlap, and
//! are joined where they touch and changed alike.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::map::PART_BLOCKS;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Digests, Image};
use crate::in_order::in_order;
use crate::types::{BlockHash, BlockIndex};

/// How the newer image differs from the older in a range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// Not at all.
    Same,
    /// It holds other bytes.
    Data,
    /// It holds zeros where there was something else, or nothing.
    Zeroed,
    /// It does not reach so far.
    Removed,
    /// A digest of either is damaged: nobody knows.
    Unknown,
}

impl Change {
    /// The word for people and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Data => "data",
            Self::Zeroed => "zeroed",
            Self::Removed => "removed",
            Self::Unknown => "unknown",
        }
    }
}

/// How much differs, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Differences {
    /// Length of the older image.
    pub old_bytes: u64,
    /// Length of the newer image.
    pub new_bytes: u64,
    /// Bytes of the newer image that are not known to be equal, those behind the older one's end included.
    pub changed_bytes: u64,
    /// How many of those are zeros now.
    pub zeroed_bytes: u64,
    /// How many of those have a damaged digest.
    pub unknown_bytes: u64,
    /// How many ranges changed; what the newer image does not reach is one of them.
    pub ranges: u64,
}

/// Compares two images, and gives each range of `new`, and last what only `old` has, to `on_range`, in order.
///
/// [`ErrorKind::Unsupported`] when there is no telling from digests. Works on `threads` threads; ends with [`ErrorKind::Interrupted`]
/// once `cancel` is true; an error of `on_range` ends it and is returned.
pub fn diff(
    old: &Image,
    new: &Image,
    threads: usize,
    cancel: &AtomicBool,
    on_range: &mut dyn FnMut(Range<u64>, Change) -> Result<()>,
) -> Result<Differences> {
    let (old_digests, new_digests) = comparable(old, new)?;
    let mut found =
        Differences { old_bytes: old.len_bytes(), new_bytes: new.len_bytes(), ..Differences::default() };
    let mut last: Option<(Range<u64>, Change)> = None;
    let mut tell = |range: Range<u64>, change: Change| {
        let len = range.end - range.start;
        match change {
            Change::Same | Change::Removed => {}
            Change::Data => found.changed_bytes += len,
            Change::Zeroed => {
                found.changed_bytes += len;
                found.zeroed_bytes += len;
            }
            Change::Unknown => {
                found.changed_bytes += len;
                found.unknown_bytes += len;
            }
        }
        found.ranges += u64::from(change != Change::Same);
        on_range(range, change)
    };
    in_order(
        new_digests.count().div_ceil(PART_BLOCKS),
        threads,
        cancel,
        <(Vec<_>, Vec<_>)>::default,
        |(before, after), part| {
            let blocks = part * PART_BLOCKS..new_digests.count().min((part + 1) * PART_BLOCKS);
            let both = blocks.start.min(old_digests.count())..blocks.end.min(old_digests.count());
            old_digests.read_into(both, before)?;
            new_digests.read_into(blocks.clone(), after)?;
            Ok(runs(&new_digests, blocks, before, after))
        },
        |_, runs| {
            for (blocks, change) in runs {
                let range = new_digests.range_of(blocks);
                match &mut last {
                    Some((before, of)) if *of == change => before.end = range.end,
                    last => {
                        if let Some((range, change)) = last.replace((range, change)) {
                            tell(range, change)?;
                        }
                    }
                }
            }
            Ok(())
        },
    )?;
    if let Some((range, change)) = last {
        tell(range, change)?;
    }
    if old.len_bytes() > new.len_bytes() {
        tell(new.len_bytes()..old.len_bytes(), Change::Removed)?;
    }
    Ok(found)
}

/// The digests of both, where they can be compared.
fn comparable<'a>(old: &'a Image, new: &'a Image) -> Result<(Digests<'a>, Digests<'a>)> {
    let of = |image: &'a Image| {
        image.digests().ok_or_else(|| {
            let message = format!("backup {} has no usable digests to compare", image.id());
            Error::new(ErrorKind::Unsupported, message)
        })
    };
    let (old_digests, new_digests) = (of(old)?, of(new)?);
    if old_digests.block_bytes() != new_digests.block_bytes() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the digests of {} are of {} bytes each, those of {} of {}: they say nothing about each other",
                old.id(),
                old_digests.block_bytes(),
                new.id(),
                new_digests.block_bytes()
            ),
        ));
    }
    Ok((old_digests, new_digests))
}

/// Neighbouring blocks that changed alike. `before` ends where the older image does.
fn runs(
    new: &Digests<'_>,
    blocks: Range<u64>,
    before: &[Option<BlockHash>],
    after: &[Option<BlockHash>],
) -> Vec<(Range<u64>, Change)> {
    let mut runs: Vec<(Range<u64>, Change)> = Vec::new();
    let before = before.iter().map(Some).chain(std::iter::repeat(None));
    for ((block, after), before) in blocks.zip(after).zip(before) {
        let change = match (before, after) {
            (_, None) | (Some(None), _) => Change::Unknown,
            (Some(before), after) if before == after => Change::Same,
            (_, Some(hash)) if new.is_zero(BlockIndex(block), hash) => Change::Zeroed,
            (_, Some(_)) => Change::Data,
        };
        match runs.last_mut() {
            Some((run, of)) if *of == change => run.end = block + 1,
            _ => runs.push((block..block + 1, change)),
        }
    }
    runs
}
