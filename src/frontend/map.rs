//! Which object holds each byte of an image, and where zeros are.
//!
//! Problem: people ask what a backup is made of (which nights, which objects, how much is zeros) and programs ask where bytes
//! lie; a volume of 16 TiB has 500 million blocks. Idea: the extent map knows the objects, the digests know the zeros; several
//! threads turn digests into runs, one takes the runs in order, cuts them by the extent map, joins what continues, and gives it away.
//!
//! Invariants: no object is opened; entries are sorted and not empty, cover the image without a gap, and no two neighbours
//! could be one; memory does not depend on the volume's length.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use crate::chain::extent_map::{ExtentMap, ObjectIndex, Piece};
use crate::error::Result;
use crate::image::{Digests, Image};
use crate::in_order::in_order;
use crate::types::{BlockHash, BlockIndex};

/// Digests that one thread reads at once: 2.25 MiB of their file, 1 GiB of a volume at 32 KiB a block.
pub(super) const PART_BLOCKS: u64 = 1 << 15;

/// What is known of some bytes without reading them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Bytes other than zeros, as far as is known.
    Data,
    /// Zeros, by their digests, whether an object holds them or not.
    Zeros,
    /// They cannot be had: their digest is damaged, or no object covers all of a block that is not zeros.
    Lost,
}

impl State {
    /// The word for people and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Zeros => "zero",
            Self::Lost => "lost",
        }
    }
}

/// A range of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapEntry {
    /// Which bytes of the image, at least one.
    pub image: Range<u64>,
    /// What they are.
    pub state: State,
    /// The object that holds them, and where in its plain bytes they begin; `None` where no backup of the chain has any.
    pub held: Option<(ObjectIndex, u64)>,
}

impl MapEntry {
    /// Whether `next` goes on where this ends, in all respects.
    fn continues_in(&self, next: &Self) -> bool {
        let len = self.image.end - self.image.start;
        self.image.end == next.image.start
            && self.state == next.state
            && self.held.map(|(object, at)| (object, at + len)) == next.held
    }
}

/// Gives all of `image` to `on_entry`, in order. Works on `threads` threads; ends with
/// [`ErrorKind::Interrupted`](crate::ErrorKind::Interrupted) once `cancel` is true. An error of `on_entry` ends it and is returned.
pub fn map(
    image: &Image,
    threads: usize,
    cancel: &AtomicBool,
    on_entry: &mut dyn FnMut(&MapEntry) -> Result<()>,
) -> Result<()> {
    let map = image.extent_map();
    let mut joined = Joined { last: None, on_entry };
    match image.digests() {
        // Without digests nothing proves zeros, neither those that an object holds nor those that none does.
        None => {
            for piece in map.pieces(0..map.len()) {
                let state = if matches!(piece, Piece::Gap(_)) { State::Lost } else { State::Data };
                joined.add(entry(piece, state))?;
            }
        }
        Some(digests) => in_order(
            digests.count().div_ceil(PART_BLOCKS),
            threads,
            cancel,
            Vec::new,
            |buffer, part| {
                let blocks = part * PART_BLOCKS..digests.count().min((part + 1) * PART_BLOCKS);
                digests.read_into(blocks.clone(), buffer)?;
                Ok(runs(&digests, blocks, buffer))
            },
            |_, runs| {
                for (blocks, state) in runs {
                    cut(map, digests.range_of(blocks), state, digests.block_bytes(), &mut |e| joined.add(e))?;
                }
                Ok(())
            },
        )?,
    }
    joined.finish()
}

/// Neighbouring blocks of one state.
fn runs(digests: &Digests<'_>, blocks: Range<u64>, hashes: &[Option<BlockHash>]) -> Vec<(Range<u64>, State)> {
    let mut runs: Vec<(Range<u64>, State)> = Vec::new();
    for (block, hash) in blocks.zip(hashes) {
        let state = match hash {
            None => State::Lost,
            Some(hash) if digests.is_zero(BlockIndex(block), hash) => State::Zeros,
            Some(_) => State::Data,
        };
        match runs.last_mut() {
            Some((run, of)) if *of == state => run.end = block + 1,
            _ => runs.push((block..block + 1, state)),
        }
    }
    runs
}

/// Cuts a run of whole blocks by who holds its bytes.
fn cut(
    map: &ExtentMap,
    run: Range<u64>,
    state: State,
    block_bytes: u64,
    add: &mut dyn FnMut(MapEntry) -> Result<()>,
) -> Result<()> {
    let lost = if state == State::Data { blocks_with_gaps(map, &run, block_bytes) } else { Vec::new() };
    for piece in map.pieces(run) {
        let whole = entry(piece, state);
        let mut at = whole.image.start;
        while at < whole.image.end {
            let next = lost.get(lost.partition_point(|lost| lost.end <= at));
            let (end, state) = match next {
                Some(lost) if lost.start <= at => (lost.end, State::Lost),
                Some(lost) => (lost.start, state),
                None => (whole.image.end, state),
            };
            let end = end.min(whole.image.end);
            let held = whole.held.map(|(object, offset)| (object, offset + (at - whole.image.start)));
            add(MapEntry { image: at..end, state, held })?;
            at = end;
        }
    }
    Ok(())
}

/// The blocks of a run that no object holds wholly: a digest proves whole blocks only.
fn blocks_with_gaps(map: &ExtentMap, run: &Range<u64>, block_bytes: u64) -> Vec<Range<u64>> {
    let mut lost: Vec<Range<u64>> = Vec::new();
    for piece in map.pieces(run.clone()) {
        let Piece::Gap(gap) = piece else { continue };
        let start = gap.start / block_bytes * block_bytes;
        let end = gap.end.div_ceil(block_bytes).saturating_mul(block_bytes).min(run.end);
        match lost.last_mut() {
            Some(last) if start <= last.end => last.end = end,
            _ => lost.push(start..end),
        }
    }
    lost
}

fn entry(piece: Piece, state: State) -> MapEntry {
    match piece {
        Piece::Gap(image) => MapEntry { image, state, held: None },
        Piece::Data { image, object, object_offset } => {
            MapEntry { image, state, held: Some((object, object_offset)) }
        }
    }
}

/// Joins entries that continue each other.
struct Joined<'a> {
    last: Option<MapEntry>,
    on_entry: &'a mut dyn FnMut(&MapEntry) -> Result<()>,
}

impl Joined<'_> {
    fn add(&mut self, entry: MapEntry) -> Result<()> {
        match &mut self.last {
            Some(last) if last.continues_in(&entry) => last.image.end = entry.image.end,
            last => {
                if let Some(done) = last.replace(entry) {
                    (self.on_entry)(&done)?;
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.last.iter().try_for_each(self.on_entry)
    }
}
