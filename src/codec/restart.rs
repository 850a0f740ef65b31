//! Places inside a stream from which decoding may start.
//!
//! Problem: an object is by default one stream of up to 2 GB, and a stream is decoded from its beginning. Idea: whoever
//! decodes it anyway notes, every few megabytes of plain bytes, what a decoder must know to go on from there: the stored
//! bit, and the codec's own state (zlib: the last 32 KiB of plain bytes; bz2: its stream's level; zstd: its window and tables).
//!
//! Invariant: a point is a claim, like everything that comes from a file. A decoder that starts from a wrong one gives
//! wrong bytes or an error, never more, and the digests decide about bytes.

use std::sync::Arc;

/// A place inside an object's stream from which decoding may start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestartPoint {
    /// Plain offset, in bytes, of the first byte that a decoder started here gives.
    pub plain_offset: u64,
    /// Where its stored bits begin, counted in bits from the object's start, in the codec's own bit order.
    pub stored_bits: u64,
    /// What the codec must know beside, in its own format; empty where the bits are enough.
    pub state: Arc<[u8]>,
}

/// Stored bytes that a decoder at a restart point is about to need. A wrong guess costs a further read of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needed {
    /// How many bytes are read first.
    pub first_bytes: u64,
    /// Stored offset, in bytes, behind which nothing is read unless the decoder comes there.
    pub until: u64,
}

/// Where a decoder is to note restart points.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Recording {
    /// Plain offset, in bytes, before which no point is wanted.
    pub from: u64,
    /// About how many plain bytes lie between two points, at least 1. A codec whose points cost next to nothing may note more.
    pub spacing_bytes: u64,
}
