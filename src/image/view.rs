//! A range of blocks with digests, read through extents, objects and the cache.
//!
//! A read asks for the digests of its blocks and then, block by block: zeros are known from the digest alone; what is in
//! the cache is there; the rest is claimed, looked for on disk, decoded in runs, hashed, and filed. What a decoder passes
//! on the way to the wanted bytes is hashed and filed as well, since the kernel's read-ahead asks for it in any order.
//!
//! Invariants: [`Part::Data`] comes from a [`VerifiedBlock`] only; a run of more than one block lies in one object; of a run,
//! a block that cannot be read or is wrong does not take its neighbours with it, and is looked for in other backups before
//! it is given up.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::copies::LostBlock;
use super::engine::Engine;
use super::lately::LostLately;
use super::materialised::Slot;
use super::readahead;
use super::scratch::Scratch;
use super::{Part, block_range, open_object};
use crate::backup::{Backup, BlockHashTable};
use crate::block::{Claim, Follow, Lead, VerifiedBlock, hash_of_zeros};
use crate::chain::extent_map::{ExtentMap, ObjectIndex, Piece};
use crate::error::{Error, ErrorKind, Result};
use crate::object::{Filled, NothingElse, ObjectReader, Passing, SecondLook, Urgency};
use crate::types::{BlockHash, BlockIndex, ObjectName};

/// Plain bytes decoded at once, in bytes, unless a single block is larger: what one job reads ahead.
const RUN_BYTES_MAX: u64 = readahead::WINDOW_BYTES_MAX;

/// How much of what is passed on the way to the wanted bytes is kept, in lengths of the whole read.
const PASSED_USEFUL: u64 = 16;

/// The same for reads of less than this, in bytes. They are mostly at random places, and hashing half a megabyte for one block
/// would cost as much as decoding it. (Small reads in order are fetched ahead, in large ones.)
const SMALL_READ_BYTES: u64 = 256 << 10;

/// Healed blocks that are logged one by one; after these they are only counted.
const HEALED_LOGGED_MAX: u64 = 100;

/// Blocks of a range, each with its digest.
pub(super) struct View {
    engine: Arc<Engine>,
    layers: Arc<[Arc<Backup>]>,
    map: ExtentMap,
    table: Arc<BlockHashTable>,
    zero_hash: BlockHash,
    last_zero_hash: BlockHash,
    lost_lately: LostLately,
    heals: bool,
    healed_blocks: AtomicU64,
    materialised: Slot,
}

/// What is asked for at once.
#[derive(Clone, Copy)]
struct Reading {
    urgency: Urgency,
    /// How much it is in all.
    bytes: u64,
}

/// What became of one block.
enum Found {
    Zeros,
    Block(Arc<VerifiedBlock>),
    Lost(Error),
}

/// A block that has to be decoded: its digest, and the duty to land it (none on a second try).
struct Wanted<'a> {
    block: BlockIndex,
    hash: BlockHash,
    lead: Option<Lead<'a>>,
}

impl View {
    pub(super) fn new(
        engine: Arc<Engine>,
        layers: Arc<[Arc<Backup>]>,
        map: ExtentMap,
        table: Arc<BlockHashTable>,
    ) -> Self {
        let zero_hash = hash_of_zeros(table.block_bytes());
        let short = map.len() % table.block_bytes();
        let last_zero_hash = if short == 0 { zero_hash } else { hash_of_zeros(short) };
        Self {
            engine,
            layers,
            map,
            table,
            zero_hash,
            last_zero_hash,
            lost_lately: LostLately::new(),
            heals: false,
            healed_blocks: AtomicU64::new(0),
            materialised: Slot::default(),
        }
    }

    /// The same view, which looks for other copies of what it has lost. Only for a whole volume: an object's blocks do not
    /// have a place that other backups know.
    pub(super) fn healing(self) -> Self {
        Self { heals: true, ..self }
    }

    pub(super) fn healed_blocks(&self) -> u64 {
        self.healed_blocks.load(Ordering::Relaxed)
    }

    pub(super) fn len(&self) -> u64 {
        self.map.len()
    }

    pub(super) fn map(&self) -> &ExtentMap {
        &self.map
    }

    pub(super) fn table(&self) -> &BlockHashTable {
        &self.table
    }

    pub(super) fn materialised(&self) -> &Slot {
        &self.materialised
    }

    /// The digest that this block has if it is all zeros.
    pub(super) fn zero_hash(&self, block: BlockIndex) -> &BlockHash {
        if block.0 + 1 == self.table.count() { &self.last_zero_hash } else { &self.zero_hash }
    }

    /// Gives each byte of `range`, which ends within the image, to `visitor`.
    pub(super) fn visit(
        &self,
        range: Range<u64>,
        visitor: &mut dyn FnMut(Range<u64>, Part<'_>) -> Result<()>,
    ) -> Result<()> {
        let block_bytes = self.table.block_bytes();
        let blocks = range.start / block_bytes..range.end.div_ceil(block_bytes).min(self.table.count());
        for (block, found) in self.find(blocks, Urgency::Wanted) {
            let bytes = self.range_of(block);
            let part = bytes.start.max(range.start)..bytes.end.min(range.end);
            match &found {
                Found::Zeros => visitor(part, Part::Zeros)?,
                Found::Lost(error) => visitor(part, Part::Lost(error))?,
                Found::Block(verified) => {
                    let within = (part.start - bytes.start) as usize..(part.end - bytes.start) as usize;
                    visitor(part, Part::Data(&verified.bytes()[within]))?;
                }
            }
        }
        Ok(())
    }

    /// Gets the blocks of a range into the cache.
    pub(super) fn fetch(&self, range: Range<u64>) {
        let block_bytes = self.table.block_bytes();
        let blocks = range.start / block_bytes..range.end.div_ceil(block_bytes).min(self.table.count());
        self.find(blocks, Urgency::Ahead);
    }

    fn range_of(&self, block: BlockIndex) -> Range<u64> {
        block_range(&self.table, self.len(), block)
    }

    /// The block from the cache. One of the same digest and another length, from a backup whose blocks are larger or
    /// smaller, is not this block: none can have that digest then, and decoding will say so.
    fn cached(&self, block: BlockIndex, hash: &BlockHash) -> Option<Arc<VerifiedBlock>> {
        self.engine.cache().get(hash).filter(|verified| self.fits(block, verified))
    }

    /// The block from the disk cache.
    fn recalled(&self, block: BlockIndex, hash: &BlockHash) -> Option<Arc<VerifiedBlock>> {
        let range = self.range_of(block);
        self.engine.recall(hash, range.end - range.start)
    }

    fn fits(&self, block: BlockIndex, verified: &VerifiedBlock) -> bool {
        let range = self.range_of(block);
        verified.bytes().len() as u64 == range.end - range.start
    }

    /// All of `blocks`, in order.
    fn find(&self, blocks: Range<u64>, urgency: Urgency) -> BTreeMap<BlockIndex, Found> {
        let (blocks_start, blocks_end) = (blocks.start, blocks.end);
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for (index, hash) in blocks.clone().zip(self.table.get(blocks)) {
            let block = BlockIndex(index);
            match hash {
                Err(error) => drop(found.insert(block, Found::Lost(error))),
                Ok(hash) if hash == *self.zero_hash(block) => drop(found.insert(block, Found::Zeros)),
                Ok(hash) => match (self.cached(block, &hash), self.lost_lately.get(block)) {
                    (Some(verified), _) => drop(found.insert(block, Found::Block(verified))),
                    (None, Some(error)) => drop(found.insert(block, Found::Lost(error))),
                    (None, None) => missing.push((block, hash)),
                },
            }
        }
        let bytes = (blocks_end - blocks_start).saturating_mul(self.table.block_bytes());
        let reading = Reading { urgency, bytes };
        let mut wanted = Vec::new();
        let mut follows: Vec<(BlockIndex, BlockHash, Follow)> = Vec::new();
        for (block, hash) in missing {
            match self.engine.flights().claim(hash) {
                Claim::Follow(_) if urgency == Urgency::Ahead => {} // it comes without us
                Claim::Follow(follow) => follows.push((block, hash, follow)),
                // Between the look into the cache and the claim another reader may have landed.
                Claim::Lead(lead) => {
                    match self.cached(block, &hash).or_else(|| self.recalled(block, &hash)) {
                        Some(verified) => {
                            land(Wanted { block, hash, lead: Some(lead) }, Ok(verified), &mut found);
                        }
                        None => wanted.push(Wanted { block, hash, lead: Some(lead) }),
                    }
                }
            }
        }
        self.load(wanted, reading, &mut found);
        // Only now, when nobody waits for us, we wait for others. Whom a leader fails tries for itself: the same digest
        // may stand elsewhere for it.
        let mut again = Vec::new();
        // The last one first: a leader lands them in order, and would wake us for each.
        for (block, hash, follow) in follows.into_iter().rev() {
            let landed = follow.wait().filter(|verified| self.fits(block, verified));
            match (landed, self.lost_lately.get(block)) {
                (Some(verified), _) => drop(found.insert(block, Found::Block(verified))),
                (None, Some(error)) => drop(found.insert(block, Found::Lost(error))),
                (None, None) => again.push(Wanted { block, hash, lead: None }),
            }
        }
        again.reverse();
        self.load(again, reading, &mut found);
        found
    }

    /// Decodes `wanted`, sorted by block, run by run.
    ///
    /// A run lies in one object, and begins no block behind the next restart point: another thread may be decoding there. Between two objects another thread may take the lane of the first, and then finds the
    /// whole run filed or nothing of it decoded.
    fn load(&self, wanted: Vec<Wanted<'_>>, reading: Reading, found: &mut BTreeMap<BlockIndex, Found>) {
        let run_blocks = (RUN_BYTES_MAX / self.table.block_bytes()).max(1) as usize;
        let mut run: Vec<Wanted<'_>> = Vec::new();
        let mut run_holder = None;
        let mut border = u64::MAX;
        for block in wanted {
            let holder = self.holder(block.block);
            let goes_on = run.last().is_none_or(|last| last.block.0 + 1 == block.block.0)
                && run.len() < run_blocks
                && holder.is_some_and(|(object, offset)| Some(object) == run_holder && offset < border);
            if !goes_on {
                self.load_run(std::mem::take(&mut run), reading, found);
                border = holder.map_or(u64::MAX, |(object, offset)| self.border_after(object, offset));
            }
            run.push(block);
            run_holder = holder.map(|(object, _)| object);
        }
        self.load_run(run, reading, found);
    }

    /// The object that holds all of a block, and where in it; `None` when there are several, or none.
    fn holder(&self, block: BlockIndex) -> Option<(ObjectIndex, u64)> {
        let mut pieces = self.map.pieces(self.range_of(block));
        match (pieces.next(), pieces.next()) {
            (Some(Piece::Data { object, object_offset, .. }), None) => Some((object, object_offset)),
            _ => None,
        }
    }

    /// Where in an object the next stretch begins, which others may be at.
    fn border_after(&self, object: ObjectIndex, offset: u64) -> u64 {
        let reader = open_object(&self.engine, &self.layers, object).ok();
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
        let plain = plain.bytes();
        if !file.read(plain, bytes.start) {
            return run;
        }
        let mut left = Vec::new();
        for wanted in run {
            let range = self.range_of(wanted.block);
            let within = (range.start - bytes.start) as usize..(range.end - bytes.start) as usize;
            match VerifiedBlock::verify(&plain[within], &wanted.hash) {
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
        let plain = plain.bytes();
        let mut missing: Vec<(Range<u64>, Error)> = Vec::new();
        // What no object covers reads as zeros, as on the new volume that a backup without its zero runs is restored to;
        // the digest tells whether that is right.
        let mut gaps: Vec<Range<u64>> = Vec::new();
        let mut meanwhile = None;
        let mut read_from: Vec<(Arc<ObjectReader>, u64)> = Vec::new();
        for piece in self.map.pieces(bytes.clone()) {
            match piece {
                Piece::Gap(image) => {
                    plain[(image.start - bytes.start) as usize..(image.end - bytes.start) as usize].fill(0);
                    gaps.push(image);
                }
                Piece::Data { image, object, object_offset } => {
                    let out =
                        &mut plain[(image.start - bytes.start) as usize..(image.end - bytes.start) as usize];
                    let mut neighbours = Neighbours {
                        view: self,
                        reading,
                        run: &run,
                        image: &image,
                        object_offset,
                        object,
                        begun: Vec::new(),
                        meanwhile: None,
                    };
                    let read = open_object(&self.engine, &self.layers, object)
                        .map_err(|error| (0, error))
                        .and_then(|reader| {
                            read_from.push((reader.clone(), reader.generation()));
                            let read = reader.read_at(out, object_offset, &mut neighbours);
                            read.map_err(|failure| (failure.filled, failure.error))
                        });
                    match read {
                        Ok(Filled::All) => {}
                        Ok(Filled::NotNeeded) => {
                            meanwhile = neighbours.meanwhile;
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
                    let within = (range.start - bytes.start) as usize..(range.end - bytes.start) as usize;
                    let verified = self.verify(&wanted, &plain[within]);
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
    fn verify(&self, wanted: &Wanted<'_>, bytes: &[u8]) -> Result<Arc<VerifiedBlock>> {
        match VerifiedBlock::verify(bytes, &wanted.hash) {
            Ok(verified) => {
                let verified = Arc::new(verified);
                self.engine.keep(wanted.hash, verified.clone());
                Ok(verified)
            }
            Err(actual) => {
                let (index, expected, range) = (wanted.block.0, wanted.hash, self.range_of(wanted.block));
                let sources: Vec<String> = self
                    .sources(range)
                    .map(|(name, reader, offset)| {
                        if let Some(reader) = reader {
                            reader.suspect(&Error::new(
                                ErrorKind::HashMismatch,
                                "a block of it has a wrong sha256",
                            ));
                        }
                        format!("object {name:?} at plain offset {offset}")
                    })
                    .collect();
                let message = format!(
                    "block {index}: sha256 is {actual}, expected {expected}; from {}",
                    sources.join(" and ")
                );
                Err(Error::new(ErrorKind::HashMismatch, message))
            }
        }
    }

    /// Reads a wrong block again, in case restart points of an earlier run led astray.
    fn look_again(
        &self,
        wanted: &Wanted<'_>,
        error: Error,
        read_from: &[(Arc<ObjectReader>, u64)],
    ) -> Result<Arc<VerifiedBlock>> {
        if !error.kind().is_damage() {
            return Err(error);
        }
        let range = self.range_of(wanted.block);
        let mut pieces: Vec<(ObjectName, Range<u64>, u64)> = Vec::new();
        for piece in self.map.pieces(range.clone()) {
            let Piece::Data { image, object, object_offset } = piece else { continue };
            let named =
                super::object_of(&self.layers, object).and_then(|(backup, data)| backup.object_name(data));
            let Ok(name) = named else { return Err(error) };
            pieces.push((name, image, object_offset));
        }
        // By id, so that two who look at the same objects do not wait for each other.
        let mut readers: Vec<_> = read_from
            .iter()
            .filter(|(reader, _)| pieces.iter().any(|(name, ..)| name == reader.name()))
            .collect();
        readers.sort_by_key(|(reader, seen)| (reader.id(), *seen));
        readers.dedup_by_key(|(reader, _)| reader.id());
        let mut looks: Vec<_> = readers.iter().map(|(reader, seen)| reader.look_again(*seen)).collect();
        let mut plain = vec![0; (range.end - range.start) as usize];
        let part =
            |image: &Range<u64>| (image.start - range.start) as usize..(image.end - range.start) as usize;
        // Whoever decoded it may have come through damage that lies before the next place to begin from.
        let places: Vec<_> = pieces
            .iter()
            .filter_map(|(name, image, offset)| {
                let look = looks.iter().find(|look| look.object().name() == name)?;
                Some((look, image, *offset))
            })
            .collect();
        if places.iter().any(|(look, _, offset)| look.may_enter_anew(*offset)) {
            let is_read = places
                .iter()
                .all(|(look, image, offset)| look.read_anew(&mut plain[part(image)], *offset).is_ok());
            if let Some(verified) = is_read.then(|| self.verify(wanted, &plain).ok()).flatten() {
                return Ok(verified);
            }
            places.iter().for_each(|(look, _, offset)| look.is_lost_from(*offset));
        }
        if !looks.iter().any(SecondLook::may_help) {
            return Err(error);
        }
        plain.fill(0);
        let is_read = pieces.iter().all(|(name, image, object_offset)| {
            let out = &mut plain[part(image)];
            let look = looks.iter_mut().find(|look| look.object().name() == name);
            look.is_some_and(|look| look.read_at(out, *object_offset).is_ok())
        });
        let verified = if is_read { self.verify(wanted, &plain) } else { Err(error.clone()) };
        looks.into_iter().for_each(|look| look.end(verified.is_ok()));
        verified.map_err(|_| error)
    }

    /// Looks for another copy of a block that is damaged.
    fn heal(&self, wanted: &Wanted<'_>, error: Error) -> Result<Arc<VerifiedBlock>> {
        let (true, true, Some(tip)) = (self.heals, error.kind().is_damage(), self.layers.last()) else {
            return Err(error);
        };
        let Some(copies) = self.engine.copies() else { return Err(error) };
        let range = self.range_of(wanted.block);
        let tried: Vec<_> = self.sources(range.clone()).map(|(name, _, offset)| (name, offset)).collect();
        let lost = LostBlock {
            backup: tip,
            block: wanted.block,
            block_bytes: self.table.block_bytes(),
            len_bytes: range.end - range.start,
            hash: wanted.hash,
            tried: &tried,
        };
        let Some((verified, from)) = copies.find(&lost) else { return Err(error) };
        if self.healed_blocks.fetch_add(1, Ordering::Relaxed) < HEALED_LOGGED_MAX {
            tracing::warn!(backup = %tip.summary.id, offset = range.start, "healed from backup {from}: {error}");
        }
        self.engine.keep(wanted.hash, verified.clone());
        Ok(verified)
    }

    /// The block that another view has lost, if this one has it at the same place, in other objects.
    pub(super) fn copy_of(&self, lost: &LostBlock<'_>) -> Option<Arc<VerifiedBlock>> {
        let (block, index) = (lost.block, lost.block.0);
        if self.table.block_bytes() != lost.block_bytes || index >= self.table.count() {
            return None;
        }
        let range = self.range_of(block);
        let hash = self.table.get(index..index + 1).pop()?.ok()?;
        if hash != lost.hash
            || range.end - range.start != lost.len_bytes
            || self.lost_lately.get(block).is_some()
        {
            return None;
        }
        if self.sources(range.clone()).any(|(name, _, offset)| lost.tried.contains(&(name, offset))) {
            return None;
        }
        // Without a flight: whoever asks leads one for this very digest.
        let mut plain = vec![0; lost.len_bytes as usize];
        let read = self.map.pieces(range.clone()).all(|piece| match piece {
            Piece::Gap(_) => true, // zeros, if the digest says so
            Piece::Data { image, object, object_offset, .. } => {
                let out =
                    &mut plain[(image.start - range.start) as usize..(image.end - range.start) as usize];
                let reader = open_object(&self.engine, &self.layers, object);
                reader.is_ok_and(|reader| reader.read_at(out, object_offset, &mut NothingElse).is_ok())
            }
        });
        let verified = read.then(|| VerifiedBlock::verify(&plain, &hash).ok())?;
        verified.map(Arc::new)
    }

    /// Files a whole block that was decoded on the way to another, if it is right; if not, whoever asks for it will say so.
    fn file(&self, block: BlockIndex, object: ObjectIndex, bytes: &[u8]) {
        if block.0 >= self.table.count() {
            return;
        }
        // Where a newer backup hides the object, the block is another one.
        if self.holder(block).is_none_or(|(holder, _)| holder != object) {
            return;
        }
        let Some(Ok(hash)) = self.table.get(block.0..block.0 + 1).pop() else { return };
        if hash == *self.zero_hash(block) || self.engine.cache().get(&hash).is_some() {
            return;
        }
        if let Ok(verified) = VerifiedBlock::verify(bytes, &hash) {
            self.engine.keep(hash, Arc::new(verified));
        }
    }

    /// Where the bytes of a range come from, for a message.
    fn sources(
        &self,
        range: Range<u64>,
    ) -> impl Iterator<Item = (ObjectName, Option<Arc<ObjectReader>>, u64)> + '_ {
        self.map.pieces(range).filter_map(|piece| match piece {
            Piece::Gap(_) => None,
            Piece::Data { object, object_offset, .. } => {
                let (backup, data) = super::object_of(&self.layers, object).ok()?;
                let name = backup.object_name(data).ok()?;
                Some((name, open_object(&self.engine, &self.layers, object).ok(), object_offset))
            }
        })
    }
}

/// Notes what became of a block, and tells those who wait for it.
fn land(wanted: Wanted<'_>, result: Result<Arc<VerifiedBlock>>, found: &mut BTreeMap<BlockIndex, Found>) {
    let became = match result {
        Ok(verified) => {
            if let Some(lead) = wanted.lead {
                lead.land(verified.clone());
            }
            Found::Block(verified)
        }
        Err(error) => Found::Lost(error),
    };
    found.insert(wanted.block, became);
}

fn no_object() -> Error {
    Error::new(
        ErrorKind::NoData,
        "no object of the chain covers all of this block, and its digest is not that of zeros in the gap",
    )
}

/// Files the blocks that lie before the wanted ones in the same object and are decoded on the way.
struct Neighbours<'v, 'w, 'l> {
    view: &'v View,
    reading: Reading,
    run: &'w [Wanted<'l>],
    image: &'w Range<u64>,
    object: ObjectIndex,
    object_offset: u64,
    /// The beginning of a block of which more is to be passed.
    begun: Vec<u8>,
    meanwhile: Option<Vec<Arc<VerifiedBlock>>>,
}

impl Passing for Neighbours<'_, '_, '_> {
    fn urgency(&self) -> Urgency {
        self.reading.urgency
    }

    fn already_there(&mut self) -> bool {
        self.meanwhile = self.run.iter().map(|wanted| self.view.cached(wanted.block, &wanted.hash)).collect();
        self.meanwhile.is_some()
    }

    /// What lies shortly before: reads that are under way at once are not far apart, and hashing costs half as much as
    /// decoding. (It belongs to the volume as it stands, except where a newer backup hides it.)
    fn useful_from(&self) -> u64 {
        let lengths = if self.reading.bytes < SMALL_READ_BYTES { 1 } else { PASSED_USEFUL };
        self.object_offset.saturating_sub(self.reading.bytes.saturating_mul(lengths))
    }

    fn passed(&mut self, offset: u64, bytes: &[u8]) {
        let (view, block_bytes) = (self.view, self.view.table.block_bytes());
        let mut at = self.image.start - (self.object_offset - offset);
        let mut rest = bytes;
        while !rest.is_empty() {
            let into = at % block_bytes;
            let (now, later) = rest.split_at(rest.len().min((block_bytes - into) as usize));
            // A block whose beginning was not passed is of no use.
            if into == self.begun.len() as u64 {
                let block = BlockIndex(at / block_bytes);
                if self.begun.is_empty() && now.len() as u64 == block_bytes {
                    view.file(block, self.object, now);
                } else {
                    self.begun.extend_from_slice(now);
                    if self.begun.len() as u64 == block_bytes {
                        view.file(block, self.object, &self.begun);
                        self.begun.clear();
                    }
                }
            }
            at += now.len() as u64;
            rest = later;
        }
    }
}

/// The image cut at block borders into groups, one for each object that holds a block's first byte.
pub(super) fn groups(map: &ExtentMap, block_bytes: u64) -> Vec<Vec<Range<u64>>> {
    let mut of_object: BTreeMap<Option<ObjectIndex>, Vec<Range<u64>>> = BTreeMap::new();
    let mut at = 0;
    for piece in map.pieces(0..map.len()) {
        let (object, image) = match piece {
            Piece::Gap(image) => (None, image),
            Piece::Data { image, object, .. } => (Some(object), image),
        };
        // A block that this piece ends in the middle of is read with it.
        let end = image.end.div_ceil(block_bytes).saturating_mul(block_bytes).min(map.len());
        if end > at {
            of_object.entry(object).or_default().push(at..end);
            at = end;
        }
    }
    of_object.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::extent_map::Extent;

    #[test]
    fn groups_are_the_whole_image_once() {
        let extent = |start, len, object| Extent {
            start,
            len,
            object: ObjectIndex { layer: 0, object },
            object_offset: 0,
        };
        let map = ExtentMap::paint(
            [extent(0, 100, 0), extent(100, 50, 1), extent(30, 20, 2), extent(170, 13, 1)],
            190,
        );
        for block_bytes in [1, 7, 10, 32, 500] {
            let mut ranges: Vec<_> = groups(&map, block_bytes).into_iter().flatten().collect();
            ranges.sort_by_key(|range| range.start);
            let mut at = 0;
            for range in ranges {
                assert_eq!(range.start, at);
                assert!(range.end == 190 || range.end % block_bytes == 0);
                at = range.end;
            }
            assert_eq!(at, 190);
        }
        assert_eq!(groups(&map, 10).len(), 4);
    }
}
