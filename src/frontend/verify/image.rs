//! One backup as the image that a reader would see.
//!
//! Problem: a chain of 30 backups shows the same objects 30 times, and decoding them for each would take 30 nights. Idea: when
//! an object was checked, its blocks were compared with the digests of its own backup. So a block of the image is right if the image's
//! digest of it equals that one, which costs a look at 72 bytes. Only what that does not prove is read, as a reader would read it:
//! what lies in damaged objects, across two objects, where digests differ or are missing.
//!
//! Invariants: a range is only told as lost after a reader could not have it; memory does not depend on the image's size.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::findings::{Cinder, Kind, Ranges};
use super::object::is_near;
use crate::backup::{BlockHashTable, DigestFile};
use crate::block::hash_of_zeros;
use crate::chain::extent_map::{ObjectIndex, Piece};
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, Part};
use crate::store::Store;

/// Digests compared at once.
const BATCH_BLOCKS: u64 = 4096;

/// Ranges to be read that are gathered before they are read.
const SUSPECTS_MAX: usize = 1 << 16;

/// What is known of an object of the chain.
pub(super) enum Known<'a> {
    /// It was not checked in this run.
    Nothing,
    /// It was; these ranges of the volume are to be read, because it is damaged, or because no digest speaks of them.
    Checked { bad: &'a [Range<u64>], unproven: &'a [Range<u64>], is_faulty: bool },
}

/// Why a range had to be read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Cause {
    /// An object is damaged there.
    Object(ObjectIndex),
    /// No object covers it, and it is not zeros.
    Gap,
    /// Its digest is no digest.
    DigestDamaged,
    /// Its digest differs by a few bits from that of the backup which stored it.
    DigestHit,
    /// Its digest is another one than that of the backup which stored it.
    Ancestor,
    /// Nothing proves it but reading it.
    Unproven,
}

impl Cause {
    /// What is wrong where a range is lost for this cause, unless the object's own finding tells it.
    pub(super) fn kind(self) -> Option<Kind> {
        match self {
            Self::Object(_) => None,
            Self::Gap => Some(Kind::NoData),
            Self::DigestDamaged => Some(Kind::DigestDamaged),
            Self::DigestHit => Some(Kind::DigestWrong),
            Self::Ancestor | Self::Unproven => Some(Kind::ChainInconsistent),
        }
    }

    /// Whether Cinder would write wrong bytes where a reader gets none, or others.
    pub(super) fn cinder(self) -> Cinder {
        match self {
            // Judged with the object.
            Self::Object(_) | Self::DigestDamaged | Self::DigestHit => Cinder::Yes,
            Self::Gap | Self::Ancestor | Self::Unproven => Cinder::Wrongly,
        }
    }
}

/// What a reader would see.
#[derive(Debug, Default)]
pub(super) struct Sight {
    /// What nobody can have.
    pub(super) lost: Ranges,
    /// The same by cause, with the first reason.
    pub(super) lost_by_cause: BTreeMap<Cause, (Ranges, Option<Error>)>,
    /// What differs from the chain's own bytes, and is had from another backup or is known to be zeros.
    pub(super) saved_by_cause: BTreeMap<Cause, Ranges>,
    /// Bytes of the above that came from other backups.
    pub(super) healed_bytes: u64,
    /// Bytes of the image of which nothing is known: not checked, or not given by the store.
    pub(super) unread_bytes: u64,
    /// Damaged objects of which something shows in this image.
    pub(super) visible: Vec<ObjectIndex>,
    /// Why something could not be read for the store's sake.
    pub(super) failure: Option<Error>,
    /// Whether the chain's backups have blocks of different sizes.
    pub(super) block_size_changed: bool,
}

/// Looks at an image. `known` tells what is known of each object. Errors are the store's, and [`ErrorKind::Interrupted`].
pub(super) fn look<'a>(
    store: &dyn Store,
    image: &Arc<Image>,
    known: &dyn Fn(ObjectIndex) -> Known<'a>,
    cancel: &AtomicBool,
) -> Result<Sight> {
    let mut eye = Eye { image, cancel, suspects: Vec::new(), seen: Vec::new(), sight: Sight::default() };
    let mut by_layer: BTreeMap<u32, Vec<Piece>> = BTreeMap::new();
    let mut gaps = Vec::new();
    for piece in image.extent_map().pieces(0..image.len_bytes()) {
        match piece {
            Piece::Gap(range) => gaps.push(range),
            Piece::Data { object, .. } => by_layer.entry(object.layer).or_default().push(piece),
        }
    }
    for gap in gaps {
        eye.gap(gap)?;
    }
    let tip = u32::try_from(image.layers().len().saturating_sub(1)).unwrap_or(u32::MAX);
    for (layer, pieces) in by_layer {
        let table = match image.hash_table() {
            Some(_) if layer != tip => eye.digests_of(store, layer)?,
            _ => None,
        };
        for piece in pieces {
            let Piece::Data { image: range, object, .. } = piece else { continue };
            match known(object) {
                Known::Nothing => eye.sight.unread_bytes += range.end - range.start,
                Known::Checked { bad, unproven, is_faulty } => {
                    let is_own = layer == tip;
                    eye.damaged(object, &range, bad)?;
                    eye.unproven(object, &range, unproven, is_faulty, is_own)?;
                    eye.piece(range, table.as_ref(), is_own)?;
                }
            }
        }
    }
    eye.read()?;
    Ok(eye.finish())
}

struct Eye<'a> {
    image: &'a Arc<Image>,
    cancel: &'a AtomicBool,
    /// To be read.
    suspects: Vec<(Range<u64>, Cause)>,
    /// Read, and not simply right.
    seen: Vec<(Range<u64>, Cause, Fate)>,
    sight: Sight,
}

/// What became of a range that was read.
#[derive(Clone, Debug)]
enum Fate {
    Lost(Error),
    Healed,
    Zeros,
}

impl Eye<'_> {
    fn digests_of(&mut self, store: &dyn Store, layer: u32) -> Result<Option<BlockHashTable>> {
        let Some(backup) = self.image.layers().get(layer as usize) else { return Ok(None) };
        let table = match backup.digests(store) {
            Ok(DigestFile::Usable(table)) => table,
            Ok(DigestFile::Missing | DigestFile::Torn(_)) => return Ok(None),
            Err(error) if error.kind().is_damage() => return Ok(None),
            Err(error) => return Err(error),
        };
        if self.image.hash_table().is_some_and(|ours| ours.block_bytes() != table.block_bytes()) {
            self.sight.block_size_changed = true;
            return Ok(None);
        }
        Ok(Some(table))
    }

    fn suspect(&mut self, range: Range<u64>, cause: Cause) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        match self.suspects.last_mut() {
            Some((last, of)) if *of == cause && last.end == range.start => last.end = range.end,
            _ => self.suspects.push((range, cause)),
        }
        if self.suspects.len() >= SUSPECTS_MAX { self.read() } else { Ok(()) }
    }

    /// The blocks that lie wholly in a range; what is left of it at both ends is to be read.
    fn whole_blocks(&mut self, range: &Range<u64>, block_bytes: u64) -> Result<Range<u64>> {
        let first = range.start.div_ceil(block_bytes);
        let is_end = range.end >= self.image.len_bytes();
        let last = if is_end { range.end.div_ceil(block_bytes) } else { range.end / block_bytes };
        if first >= last {
            self.suspect(range.clone(), Cause::Unproven)?;
            return Ok(first..first);
        }
        self.suspect(range.start..(first * block_bytes).min(range.end), Cause::Unproven)?;
        self.suspect((last * block_bytes).min(range.end)..range.end, Cause::Unproven)?;
        Ok(first..last)
    }

    fn bytes_of(&self, block: u64, block_bytes: u64) -> Range<u64> {
        block * block_bytes..((block + 1) * block_bytes).min(self.image.len_bytes())
    }

    /// What no object covers must be zeros.
    fn gap(&mut self, range: Range<u64>) -> Result<()> {
        let image = self.image;
        let Some(table) = image.hash_table() else { return self.suspect(range, Cause::Gap) };
        let block_bytes = table.block_bytes();
        let zero = hash_of_zeros(block_bytes);
        let blocks = self.whole_blocks(&range, block_bytes)?;
        for_batches(&blocks, |batch| {
            self.check_cancel()?;
            for (block, digest) in batch.clone().zip(table.get(batch)) {
                let bytes = self.bytes_of(block, block_bytes);
                let is_zero = |digest| match bytes.end - bytes.start == block_bytes {
                    true => digest == zero,
                    false => digest == hash_of_zeros(bytes.end - bytes.start),
                };
                match digest {
                    Ok(digest) if is_zero(digest) => {}
                    Ok(_) => self.suspect(bytes, Cause::Gap)?,
                    Err(error) => self.bad_digest(bytes, error)?,
                }
            }
            Ok(())
        })
    }

    fn bad_digest(&mut self, bytes: Range<u64>, error: Error) -> Result<()> {
        if error.kind().is_damage() { self.suspect(bytes, Cause::DigestDamaged) } else { Err(error) }
    }

    /// What is damaged in an object that holds this range.
    fn damaged(&mut self, object: ObjectIndex, range: &Range<u64>, bad: &[Range<u64>]) -> Result<()> {
        for bad in common(bad, range) {
            if self.sight.visible.last() != Some(&object) {
                self.sight.visible.push(object);
            }
            self.suspect(bad, Cause::Object(object))?;
        }
        Ok(())
    }

    /// What was not compared with digests, in an object that holds this range.
    fn unproven(
        &mut self,
        object: ObjectIndex,
        range: &Range<u64>,
        unproven: &[Range<u64>],
        is_faulty: bool,
        is_own: bool,
    ) -> Result<()> {
        // Without digests an object is as right as its md5.
        let Some(ours) = self.image.hash_table() else { return Ok(()) };
        for unproven in common(unproven, range) {
            let cause = match (is_own, is_faulty) {
                (_, true) => Cause::Object(object),
                (true, false) => self.cause_of_unproven(ours, &unproven)?,
                (false, false) => Cause::Unproven,
            };
            self.suspect(unproven, cause)?;
        }
        Ok(())
    }

    /// What an object holds of the image. `theirs` are the digests of its backup.
    fn piece(&mut self, range: Range<u64>, theirs: Option<&BlockHashTable>, is_own: bool) -> Result<()> {
        let Some(ours) = self.image.hash_table() else { return Ok(()) };
        let blocks = self.whole_blocks(&range, ours.block_bytes())?;
        match theirs {
            _ if is_own => Ok(()),
            Some(theirs) => self.compare(ours, theirs, &blocks),
            None => self.suspect(range, Cause::Unproven),
        }
    }

    /// A block of the backup's own that was not compared, perhaps because its digest is none.
    fn cause_of_unproven(&self, ours: &BlockHashTable, range: &Range<u64>) -> Result<Cause> {
        let block = range.start / ours.block_bytes();
        match ours.get(block.min(ours.count())..(block + 1).min(ours.count())).pop() {
            Some(Err(error)) if error.kind().is_damage() => Ok(Cause::DigestDamaged),
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Ok(Cause::Unproven),
        }
    }

    fn compare(&mut self, ours: &BlockHashTable, theirs: &BlockHashTable, blocks: &Range<u64>) -> Result<()> {
        let block_bytes = ours.block_bytes();
        for_batches(blocks, |batch| {
            self.check_cancel()?;
            let known = batch.start.min(theirs.count())..batch.end.min(theirs.count());
            let mut theirs = theirs.get(known).into_iter();
            for (block, ours) in batch.clone().zip(ours.get(batch)) {
                let bytes = self.bytes_of(block, block_bytes);
                let cause = match (ours, theirs.next()) {
                    (Ok(ours), Some(Ok(theirs))) if ours == theirs => continue,
                    (Ok(ours), Some(Ok(theirs))) if is_near(&ours, &theirs) => Cause::DigestHit,
                    (Ok(_), Some(Ok(_))) => Cause::Ancestor,
                    (Ok(_), None) => Cause::Unproven,
                    (Ok(_), Some(Err(error))) if error.kind().is_damage() => Cause::Unproven,
                    (Ok(_), Some(Err(error))) => return Err(error),
                    (Err(error), _) => {
                        self.bad_digest(bytes, error)?;
                        continue;
                    }
                };
                self.suspect(bytes, cause)?;
            }
            Ok(())
        })
    }

    /// Reads what is gathered.
    fn read(&mut self) -> Result<()> {
        let mut suspects = std::mem::take(&mut self.suspects);
        // Of several reasons to read a block the first counts: see the order of causes.
        let (image, block_bytes) = (self.image, self.image.block_bytes());
        suspects.sort_by_key(|(range, cause)| (range.start / block_bytes, *cause));
        let is_proven = image.hash_table().is_some();
        let mut done = 0;
        for (range, cause) in suspects {
            // With digests a block is had or lost as a whole.
            let range = match is_proven {
                true => {
                    range.start / block_bytes * block_bytes
                        ..(range.end.div_ceil(block_bytes) * block_bytes).min(image.len_bytes())
                }
                false => range,
            };
            let mut at = range.start.max(done);
            done = done.max(range.end);
            while at < range.end {
                self.check_cancel()?;
                let until = range.end.min(at + (block_bytes * 64).max(1 << 20));
                self.read_some(at..until, cause)?;
                at = until;
            }
        }
        Ok(())
    }

    fn read_some(&mut self, range: Range<u64>, cause: Cause) -> Result<()> {
        let image = self.image;
        let before = image.damage().healed_blocks;
        let mut parts: Vec<(Range<u64>, Option<Fate>)> = Vec::new();
        let (mut unread, mut failure) = (0, None);
        image.visit(range, &mut |part, what| {
            match what {
                Part::Data(_) => parts.push((part, None)),
                Part::Zeros => parts.push((part, Some(Fate::Zeros))),
                Part::Lost(error) if error.kind().is_damage() => {
                    parts.push((part, Some(Fate::Lost(error.clone()))));
                }
                Part::Lost(error) => {
                    unread += part.end - part.start;
                    failure = Some(error.clone());
                }
            }
            Ok(())
        })?;
        self.sight.unread_bytes += unread;
        self.sight.failure = self.sight.failure.take().or(failure);
        let healed = (image.damage().healed_blocks - before).saturating_mul(image.block_bytes());
        self.sight.healed_bytes += healed;
        let had = (healed > 0).then_some(Fate::Healed);
        self.seen.extend(
            parts.into_iter().filter_map(|(part, fate)| Some((part, cause, fate.or_else(|| had.clone())?))),
        );
        Ok(())
    }

    fn finish(mut self) -> Sight {
        let mut sight = std::mem::take(&mut self.sight);
        self.seen.sort_by_key(|(range, ..)| range.start);
        let mut done = 0;
        for (range, cause, fate) in self.seen {
            let range = range.start.max(done)..range.end;
            if range.is_empty() {
                continue;
            }
            done = range.end;
            match fate {
                Fate::Lost(error) => {
                    sight.lost.push(range.clone());
                    let (lost, why) = sight.lost_by_cause.entry(cause).or_default();
                    lost.push(range);
                    why.get_or_insert(error);
                }
                // What a digest says to be zeros was not compared with the chain's bytes: another digest of theirs was.
                Fate::Zeros if cause != Cause::Ancestor => {}
                Fate::Zeros | Fate::Healed => sight.saved_by_cause.entry(cause).or_default().push(range),
            }
        }
        sight
    }

    fn check_cancel(&self) -> Result<()> {
        match self.cancel.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
            false => Ok(()),
        }
    }
}

fn for_batches(blocks: &Range<u64>, mut each: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
    let mut at = blocks.start;
    while at < blocks.end {
        let until = blocks.end.min(at + BATCH_BLOCKS);
        each(at..until)?;
        at = until;
    }
    Ok(())
}

/// What sorted ranges have in common with one.
fn common<'a>(ranges: &'a [Range<u64>], with: &Range<u64>) -> impl Iterator<Item = Range<u64>> + 'a {
    let with = with.clone();
    let first = ranges.partition_point(|range| range.end <= with.start);
    let end = with.end;
    ranges[first..]
        .iter()
        .take_while(move |range| range.start < end)
        .map(move |range| range.start.max(with.start)..range.end.min(with.end))
}
