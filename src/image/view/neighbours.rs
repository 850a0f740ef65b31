//! Blocks that lie before the wanted ones in the same object, and are decoded on the way.
//!
//! The kernel's requests come in any order, so what one reader's decoder passes is what another asks for next. Invariant: only
//! whole blocks are filed, and only with their own digest.

use std::ops::Range;
use std::sync::Arc;

use super::{Reading, View, Wanted};
use crate::block::VerifiedBlock;
use crate::chain::extent_map::ObjectIndex;
use crate::object::{Passing, Urgency};
use crate::types::BlockIndex;

/// How much of what is passed on the way to the wanted bytes is kept, in lengths of the whole read.
const PASSED_USEFUL: u64 = 16;

/// The same for reads of less than this, in bytes. They are mostly at random places, and hashing half a megabyte for one block
/// would cost as much as decoding it. (Small reads in order are fetched ahead, in large ones.)
const SMALL_READ_BYTES: u64 = 256 << 10;

/// Files the blocks that lie before the wanted ones in the same object and are decoded on the way.
pub(super) struct Neighbours<'v, 'w, 'l> {
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

impl<'v, 'w, 'l> Neighbours<'v, 'w, 'l> {
    /// For reading the part of `run` that lies at `object_offset` in an object and at `image` in the image.
    pub(super) fn new(
        view: &'v View,
        reading: Reading,
        run: &'w [Wanted<'l>],
        image: &'w Range<u64>,
        (object, object_offset): (ObjectIndex, u64),
    ) -> Self {
        Self { view, reading, run, image, object, object_offset, begun: Vec::new(), meanwhile: None }
    }

    /// The whole run, if others had filed it by the time it was this reader's turn.
    pub(super) fn into_meanwhile(self) -> Option<Vec<Arc<VerifiedBlock>>> {
        self.meanwhile
    }
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

impl View {
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
}
