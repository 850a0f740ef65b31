//! A range of blocks with digests, read through extents, objects and the cache.
//!
//! A read asks for the digests of its blocks and then, block by block: zeros are known from the digest alone; what is in
//! the cache is there; the rest is claimed, looked for on disk, decoded in runs, hashed, and filed. What a decoder passes
//! on the way to the wanted bytes is hashed and filed as well, since the kernel's read-ahead asks for it in any order.
//!
//! - [`runs`]: blocks that follow each other, decoded at once.
//! - [`neighbours`]: what is passed on the way to them.
//! - [`second_look`]: a wrong block is read again before it is believed.
//! - [`heal`]: a lost block out of another backup.
//!
//! Invariants: [`Part::Data`] comes from a [`VerifiedBlock`] only; a run of more than one block lies in one object; of a run,
//! a block that cannot be read or is wrong does not take its neighbours with it, and is looked for in other backups before
//! it is given up.

mod heal;
mod neighbours;
mod preparing;
mod runs;
mod second_look;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::engine::Engine;
use super::lately::LostLately;
use super::materialised::Slot;
use super::{Part, block_range, object_of, open_object};
use crate::backup::{Backup, BlockHashTable};
use crate::block::{Claim, Follow, Lead, VerifiedBlock, hash_of_zeros};
use crate::chain::extent_map::{ExtentMap, ObjectIndex, Piece};
use crate::error::{Error, Result};
use crate::object::{ObjectReader, Urgency};
use crate::types::{BlockHash, BlockIndex, ObjectName};

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
        for (block, found) in self.find(self.blocks_of(&range), Urgency::Wanted) {
            let bytes = self.range_of(block);
            let part = bytes.start.max(range.start)..bytes.end.min(range.end);
            match &found {
                Found::Zeros => visitor(part, Part::Zeros)?,
                Found::Lost(error) => visitor(part, Part::Lost(error))?,
                Found::Block(verified) => {
                    let data = &verified.bytes()[within(&part, &bytes)];
                    visitor(part, Part::Data(data))?;
                }
            }
        }
        Ok(())
    }

    /// Whether the blocks of `range`, which ends within the image, are zeros, in memory or on this machine's disk.
    pub(super) fn is_at_hand(&self, range: &Range<u64>) -> bool {
        let blocks = self.blocks_of(range);
        let Some(digests) = self.table.held(&blocks) else { return false };
        let is_materialised = self.materialised.get().is_some();
        blocks.zip(digests).all(|(index, digest)| {
            let block = BlockIndex(index);
            // What is damaged is told at once.
            let Ok(hash) = digest else { return true };
            let bytes = self.range_of(block);
            is_materialised
                || hash == *self.zero_hash(block)
                || self.cached(block, &hash).is_some()
                || self.engine.holds_on_disk(&hash, bytes.end - bytes.start)
        })
    }

    /// Whether the blocks of `range`, which ends within the image, are in the disk cache, or zeros. Nothing is read of them, or asked of the store.
    pub(super) fn is_on_disk(&self, range: &Range<u64>) -> bool {
        if self.engine.disk().is_none() {
            return false;
        }
        let blocks = self.blocks_of(range);
        let Some(digests) = self.table.at_hand(&blocks) else { return false };
        blocks.zip(digests).all(|(index, digest)| {
            let (block, bytes) = (BlockIndex(index), self.range_of(BlockIndex(index)));
            digest.is_ok_and(|hash| {
                hash == *self.zero_hash(block) || self.engine.holds_on_disk(&hash, bytes.end - bytes.start)
            })
        })
    }

    /// Gets the blocks of a range into the cache.
    pub(super) fn fetch(&self, range: Range<u64>) {
        self.find(self.blocks_of(&range), Urgency::Ahead);
    }

    /// The blocks that `range`, which ends within the image, lies in.
    fn blocks_of(&self, range: &Range<u64>) -> Range<u64> {
        let block_bytes = self.table.block_bytes();
        range.start / block_bytes..range.end.div_ceil(block_bytes).min(self.table.count())
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

    /// The object that holds all of a block, and where in it; `None` when there are several, or none.
    fn holder(&self, block: BlockIndex) -> Option<(ObjectIndex, u64)> {
        let mut pieces = self.map.pieces(self.range_of(block));
        match (pieces.next(), pieces.next()) {
            (Some(Piece::Data { object, object_offset, .. }), None) => Some((object, object_offset)),
            _ => None,
        }
    }

    /// Opens the object that a piece of the map names.
    fn open(&self, object: ObjectIndex) -> Result<Arc<ObjectReader>> {
        open_object(&self.engine, &self.layers, object)
    }

    fn name_of(&self, object: ObjectIndex) -> Result<ObjectName> {
        let (backup, data) = object_of(&self.layers, object)?;
        backup.object_name(data)
    }

    /// Where the bytes of a range come from: the names of objects, and plain offsets in them.
    fn sources(&self, range: Range<u64>) -> impl Iterator<Item = (ObjectName, u64)> + '_ {
        self.map.pieces(range).filter_map(|piece| match piece {
            Piece::Gap(_) => None,
            Piece::Data { object, object_offset, .. } => Some((self.name_of(object).ok()?, object_offset)),
        })
    }

    /// All of `blocks`, in order.
    fn find(&self, blocks: Range<u64>, urgency: Urgency) -> BTreeMap<BlockIndex, Found> {
        let (blocks_start, blocks_end) = (blocks.start, blocks.end);
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        let digests = self.table.get(blocks.clone());
        for (index, hash) in blocks.zip(&digests) {
            let block = BlockIndex(index);
            match hash.clone() {
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
        let told = |block: BlockIndex| digests.get((block.0 - blocks_start) as usize)?.as_ref().ok();
        let again = self.with_other_digests(&told, &mut found);
        self.load(again, reading, &mut found);
        found
    }

    /// Blocks that were lost by a digest that was read wrong once and held in memory since: the file tells another one now.
    fn with_other_digests<'d>(
        &self,
        told: &dyn Fn(BlockIndex) -> Option<&'d BlockHash>,
        found: &mut BTreeMap<BlockIndex, Found>,
    ) -> Vec<Wanted<'static>> {
        let is_damaged = |found: &Found| matches!(found, Found::Lost(error) if error.kind().is_damage());
        let lost = found.iter().filter(|(_, found)| is_damaged(found));
        let lost: Vec<_> = lost.filter_map(|(&block, _)| Some((block, *told(block)?))).collect();
        lost.iter().for_each(|(block, _)| self.table.doubt(*block));
        let mut again = Vec::new();
        for (block, old) in lost {
            let Some(Ok(hash)) = self.table.get(block.0..block.0 + 1).pop() else { continue };
            if hash == old {
                continue;
            }
            self.lost_lately.forget(block);
            if hash == *self.zero_hash(block) {
                found.insert(block, Found::Zeros);
            } else {
                again.push(Wanted { block, hash, lead: None });
            }
        }
        again
    }
}

/// Where the bytes of `part` lie in a buffer that holds those of `whole`.
fn within(part: &Range<u64>, whole: &Range<u64>) -> Range<usize> {
    (part.start - whole.start) as usize..(part.end - whole.start) as usize
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
