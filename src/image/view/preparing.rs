//! What a store far away is told before it is asked.
//!
//! Problem: a decoder asks for its stored bytes piece by piece, and each piece of an object store is a journey of milliseconds; to open an object
//! takes three of them. Idea: who reads an image knows more than a decoder. What will be read of one object is announced as a whole, as far
//! as restart points tell where it lies, and objects that a reader will come to are opened before he does.
//!
//! What holds only zeros is left out: its readers have them from the digests, and never come to the object.
//!
//! Invariant: advice only. Nothing here fails, and no byte is read that would not be read anyway, but for those of a reader who stops.
//! A store that fails to open an object is not asked for the next one: each may take as long as the store has, and somebody waits.

use std::ops::Range;

use super::{View, Wanted};
use crate::chain::extent_map::{ObjectIndex, Piece};
use crate::error::Result;
use crate::types::{BlockHash, BlockIndex};

/// Shorter pieces of objects, in bytes, are not worth that these are opened ahead of time.
const PREPARED_BYTES_MIN: u64 = 1 << 20;

/// Most objects that are opened ahead of time at once.
const PREPARED_MAX: usize = 16;

/// Blocks of a piece whose digests are looked at for the first one that is not zeros: 128 MiB of volume in usual blocks, more than two objects
/// of the usual size for object stores, and 300 KB of the digests' document.
const LOOKED_AT_BLOCKS: u64 = 4096;

impl View {
    /// Tells the objects what will be read of them, as far as they know where that lies.
    pub(super) fn announce(&self, wanted: &[Wanted<'_>]) {
        if self.materialised.get().is_some() {
            return;
        }
        for part in wanted.chunk_by(|one, next| one.block.0 + 1 == next.block.0) {
            let (Some(first), Some(last)) = (part.first(), part.last()) else { continue };
            for piece in self.map.pieces(self.range_of(first.block).start..self.range_of(last.block).end) {
                if let Piece::Data { image, object, object_offset } = piece
                    && image.end - image.start > self.table.block_bytes()
                {
                    let Ok(reader) = self.open(object) else { return };
                    reader.announce(object_offset..object_offset + (image.end - image.start), false);
                }
            }
        }
    }

    /// Long pieces of objects that begin in `range`: the object, where in it, and where in the image.
    fn beginning_in(&self, range: Range<u64>) -> impl Iterator<Item = (ObjectIndex, u64, u64)> + '_ {
        // What goes on from before begins a byte before it here, and what begins at the end is seen as long as it must be.
        let until = range.end.saturating_add(PREPARED_BYTES_MIN).min(self.len());
        self.map.pieces(range.start.saturating_sub(1)..until).filter_map(move |piece| match piece {
            Piece::Data { image, object, object_offset }
                if range.contains(&image.start) && image.end - image.start >= PREPARED_BYTES_MIN =>
            {
                Some((object, object_offset, image.start))
            }
            Piece::Data { .. } | Piece::Gap(_) => None,
        })
    }

    /// The first byte of `range`, of whose blocks the first [`LOOKED_AT_BLOCKS`] are looked at, that may be something else than zeros.
    fn first_data(&self, range: &Range<u64>) -> Option<u64> {
        let mut blocks = self.blocks_of(range);
        blocks.end = blocks.end.min(blocks.start.saturating_add(LOOKED_AT_BLOCKS));
        self.table.announce(&blocks);
        let digests = self.table.get(blocks.clone());
        let is_zeros = |block: u64, digest: &Result<BlockHash>| {
            digest.as_ref().is_ok_and(|hash| hash == self.zero_hash(BlockIndex(block)))
        };
        let data = blocks.zip(&digests).find(|(block, digest)| !is_zeros(*block, digest));
        data.map(|(block, _)| self.range_of(BlockIndex(block)).start.max(range.start))
    }

    /// Where the piece of an object ends that shows the byte `at` of the image; that it goes on further than is looked at does not matter.
    fn piece_end(&self, at: u64) -> u64 {
        let looked_at = at.saturating_add(LOOKED_AT_BLOCKS.saturating_mul(self.table.block_bytes()));
        match self.map.pieces(at..looked_at).next() {
            Some(Piece::Data { image, .. }) => image.end,
            Some(Piece::Gap(_)) | None => at,
        }
    }

    /// Whether no object is read, since the whole image lies on this machine.
    pub(in crate::image) fn is_materialised(&self) -> bool {
        self.materialised.get().is_some()
    }

    /// Has the store send what `range` shows of objects that are open, as far as they know where that lies. Ranges that follow each other leave
    /// nothing out.
    pub(in crate::image) fn announce_all(&self, range: Range<u64>) {
        for piece in self.map.pieces(range) {
            if let Piece::Data { image, object, object_offset } = piece
                && image.end - image.start >= PREPARED_BYTES_MIN
                && self.first_data(&image).is_some()
            {
                let Ok(reader) = self.open(object) else { return };
                reader.announce(object_offset..object_offset + (image.end - image.start), true);
            }
        }
    }

    /// Opens the objects of which the image shows something from a place in `range` on, and has the store send what lies there, and the digests.
    pub(in crate::image) fn prepare(&self, range: Range<u64>) {
        self.table.announce(&self.blocks_of(&range));
        // A piece that begins with more zeros than are looked at is left to whoever comes to what follows them.
        let with_data = self.beginning_in(range).filter_map(|(object, offset, at)| {
            let data = self.first_data(&(at..self.piece_end(at)))?;
            Some((object, offset + (data - at)))
        });
        for (object, offset) in with_data.take(PREPARED_MAX) {
            let Ok(reader) = self.open(object) else { return };
            reader.read_on(offset);
        }
    }
}
