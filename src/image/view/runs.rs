//! Runs: blocks that follow each other, decoded at once.
//!
//! Problem: an object is a stream, and who decodes it block by block asks for a turn at it, and for the place it stopped at,
//! as often. Idea: what is wanted is cut into runs, each as long as one thread can decode without being in another's way, and a
//! run is decoded into one buffer.
//!
//! Invariants: a run of more than one block lies in one object, and begins no block behind the next restart point, so its
//! blocks are either all filed by others meanwhile or none of them was begun; a block of it that cannot be read or is wrong
//! does not take its neighbours with it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::neighbours::Neighbours;
use super::{Found, Reading, View, Wanted, land, within};
use crate::block::VerifiedBlock;
use crate::chain::extent_map::{ObjectIndex, Piece};
use crate::error::{Error, ErrorKind, Result};
use crate::image::readahead::WINDOW_BYTES_MAX;
use crate::object::{Filled, ObjectReader};
use crate::scratch::Scratch;
use crate::types::BlockIndex;

/// Plain bytes decoded at once, in bytes, unless a single block is larger: what one job reads ahead.
const RUN_BYTES_MAX: u64 = WINDOW_BYTES_MAX;

impl View {
    /// Decodes `wanted`, sorted by block, run by run.
    ///
    /// A run ends with its object, and before a block that begins behind the next restart point: another thread may be decoding
    /// there. Between two runs another thread may take the turn at the object, and then finds the whole run filed or nothing of
    /// it decoded.
    pub(super) fn load(
        &self,
        wanted: Vec<Wanted<'_>>,
        reading: Reading,
        found: &mut BTreeMap<BlockIndex, Found>,
    ) {
        let run_blocks = (RUN_BYTES_MAX / self.table.block_bytes()).max(1) as usize;
        let mut run: Vec<Wanted<'_>> = Vec::new();
        let mut run_holder = None;
        let mut border = u64::MAX;
        self.announce(&wanted);
        for block in wanted {
            let holder = self.holder(block.block);
            let goes_on = run.last().is_none_or(|last| last.block.0 + 1 == block.block.0)
                && run.len() < run_blocks
                && holder.is_some_and(|(object, offset)| Some(object) == run_holder && offset < border);
            if !goes_on {
                self.load_run(std::mem::take(&mut run), reading, found);
                // Where no object will be read, none is opened: the store may hang.
                let read = holder.filter(|_| self.materialised.get().is_none());
                border = read.map_or(u64::MAX, |(object, offset)| self.border_after(object, offset));
            }
            run.push(block);
            run_holder = holder.map(|(object, _)| object);
        }
        self.load_run(run, reading, found);
    }

    /// Where in an object the next stretch begins, which others may be at.
    fn border_after(&self, object: ObjectIndex, offset: u64) -> u64 {
        let reader = self.open(object).ok();
        reader.and_then(|reader| reader.border_after(offset)).unwrap_or(u64::MAX)
    }

    /// Lands blocks that follow each other out of the materialised image, if there is one and as far as it is right;
    /// the others are left.
    fn load_materialised<'l>(
        &self,
        run: Vec<Wanted<'l>>,
        found: &mut BTreeMap<BlockIndex, Found>,
    ) -> Vec<Wanted<'l>> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return run };
        let Some(file) = self.materialised.get() else { return run };
        let bytes = self.range_of(first.block).start..self.range_of(last.block).end;
        let mut plain = Scratch::take((bytes.end - bytes.start) as usize);
        let plain = &mut *plain;
        if !file.read(plain, bytes.start) {
            return run;
        }
        let mut left = Vec::new();
        for wanted in run {
            let range = self.range_of(wanted.block);
            match VerifiedBlock::verify(&plain[within(&range, &bytes)], &wanted.hash) {
                // What follows a wrong block is decoded with it: a run has no gaps.
                Ok(verified) if left.is_empty() => {
                    let verified = Arc::new(verified);
                    self.engine.cache().insert(wanted.hash, verified.clone());
                    land(wanted, Ok(verified), found);
                }
                Ok(_) => left.push(wanted),
                Err(actual) => {
                    file.refute(range.start, &format!("sha256 is {actual}, expected {}", wanted.hash));
                    left.push(wanted);
                }
            }
        }
        left
    }

    /// Decodes blocks that follow each other, and lands them.
    fn load_run(&self, run: Vec<Wanted<'_>>, reading: Reading, found: &mut BTreeMap<BlockIndex, Found>) {
        let run = self.load_materialised(run, found);
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let started = Instant::now();
        let bytes = self.range_of(first.block).start..self.range_of(last.block).end;
        let mut plain = Scratch::take((bytes.end - bytes.start) as usize);
        let plain = &mut *plain;
        let mut missing: Vec<(Range<u64>, Error)> = Vec::new();
        // What no object covers reads as zeros, as on the new volume that a backup without its zero runs is restored to;
        // the digest tells whether that is right.
        let mut gaps: Vec<Range<u64>> = Vec::new();
        let mut meanwhile = None;
        let mut read_from: Vec<(Arc<ObjectReader>, u64)> = Vec::new();
        for piece in self.map.pieces(bytes.clone()) {
            match piece {
                Piece::Gap(image) => {
                    plain[within(&image, &bytes)].fill(0);
                    gaps.push(image);
                }
                Piece::Data { image, object, object_offset } => {
                    let out = &mut plain[within(&image, &bytes)];
                    let mut neighbours =
                        Neighbours::new(self, reading, &run, &image, (object, object_offset));
                    let read = self.open(object).map_err(|error| (0, error)).and_then(|reader| {
                        read_from.push((reader.clone(), reader.generation()));
                        let read = reader.read_at(out, object_offset, &mut neighbours);
                        read.map_err(|failure| (failure.filled, failure.error))
                    });
                    match read {
                        Ok(Filled::All) => {}
                        Ok(Filled::NotNeeded) => {
                            meanwhile = neighbours.into_meanwhile();
                            break;
                        }
                        Err((filled, error)) => missing.push((image.start + filled as u64..image.end, error)),
                    }
                }
            }
        }
        if let Some(blocks) = meanwhile {
            for (wanted, verified) in run.into_iter().zip(blocks) {
                land(wanted, Ok(verified), found);
            }
            return;
        }
        for wanted in run {
            let range = self.range_of(wanted.block);
            let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
            let lost = missing.iter().find(|(lost, _)| overlaps(lost));
            let result = match lost {
                Some((_, error)) => Err(error.clone()),
                None => {
                    let verified = self.verify(&wanted, &plain[within(&range, &bytes)]);
                    if gaps.iter().any(overlaps) { verified.map_err(|_| no_object()) } else { verified }
                }
            };
            let result = result.or_else(|error| self.look_again(&wanted, error, &read_from));
            let result = result.or_else(|error| self.heal(&wanted, error));
            if let Err(error) = &result {
                self.lost_lately.note(wanted.block, error, started.elapsed());
            }
            land(wanted, result, found);
        }
    }

    /// Makes a block of bytes, files it, or says in full what is wrong with it.
    pub(super) fn verify(&self, wanted: &Wanted<'_>, bytes: &[u8]) -> Result<Arc<VerifiedBlock>> {
        match VerifiedBlock::verify(bytes, &wanted.hash) {
            Ok(verified) => {
                let verified = Arc::new(verified);
                self.engine.keep(wanted.hash, verified.clone());
                Ok(verified)
            }
            Err(actual) => {
                let (index, expected, range) = (wanted.block.0, wanted.hash, self.range_of(wanted.block));
                self.suspect(&range);
                let sources: Vec<String> = self
                    .sources(range)
                    .map(|(name, offset)| format!("object {name:?} at plain offset {offset}"))
                    .collect();
                let message = format!(
                    "block {index}: sha256 is {actual}, expected {expected}; from {}",
                    sources.join(" and ")
                );
                Err(Error::new(ErrorKind::HashMismatch, message))
            }
        }
    }

    /// Tells the objects that bytes of a range come from that these were wrong.
    fn suspect(&self, range: &Range<u64>) {
        let error = Error::new(ErrorKind::HashMismatch, "a block of it has a wrong sha256");
        for piece in self.map.pieces(range.clone()) {
            if let Piece::Data { object, .. } = piece
                && let Ok(reader) = self.open(object)
            {
                reader.suspect(&error);
            }
        }
    }
}

fn no_object() -> Error {
    Error::new(
        ErrorKind::NoData,
        "no object of the chain covers all of this block, and its digest is not that of zeros in the gap",
    )
}
