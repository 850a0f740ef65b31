//! The stored bytes of an object, in order, through one small buffer.
//!
//! Problem: codecs want input in slices, objects hold gigabytes. Idea: one buffer that is filled by positioned reads
//! and handed out until it is empty. Invariant: the object is never read whole, and no byte is read twice.

use std::sync::Arc;

use super::Needed;
use crate::error::Result;
use crate::scratch::Scratch;
use crate::store::ObjectSource;

/// Stored bytes read at once: larger reads no longer gain speed from a page cache or a disk's readahead, and a pool of
/// idle cursors pays for each one. It also holds a whole zstd block, which then decodes without a copy.
const INPUT_BYTES_MAX: usize = 128 * 1024;

/// Smallest buffer. Most objects of an incremental are tiny, so the buffer follows the object's size; this is for
/// one that has grown since, or whose store reports no size.
const INPUT_BYTES_MIN: usize = 4 * 1024;

/// Stored bytes of the first read of a cursor that starts inside an object; each further one may be twice as long. A random
/// read often needs only some kilobytes behind a restart point, and a slow store is asked for little more than that.
const FIRST_READ_BYTES: usize = 16 * 1024;

/// Smallest first read, whatever is said to be needed.
const READ_BYTES_MIN: usize = 512;

/// A forward cursor over an object's stored bytes.
pub(super) struct StoredInput {
    source: Arc<dyn ObjectSource>,
    buffer: Scratch,
    /// What is read and not consumed: `buffer[start..end]`.
    start: usize,
    end: usize,
    /// Stored offset of `buffer[end]`, where the next read begins.
    read_offset: u64,
    /// How long the next read is at most; the buffer's length is the other bound.
    read_bytes_max: usize,
    /// Stored offset behind which nothing is read until the cursor comes there.
    until: u64,
    /// Stored offset behind which what is left of that has not been announced; `u64::MAX` where nothing is left.
    announced: u64,
}

impl StoredInput {
    /// Starts at the stored byte `offset`; `needed` is what is known of how far, and with `is_gradual` the codec begins with a part of it.
    pub(super) fn at(
        source: Arc<dyn ObjectSource>,
        offset: u64,
        needed: Option<Needed>,
        is_gradual: bool,
    ) -> Self {
        let stored = usize::try_from(source.stat().len_bytes).unwrap_or(usize::MAX);
        let usual = if offset == 0 { INPUT_BYTES_MAX } else { FIRST_READ_BYTES };
        let first_bytes = |needed: Needed| usize::try_from(needed.first_bytes).unwrap_or(usize::MAX);
        // What is known comes from the store, so it may be nothing or too much.
        let mut read_bytes_max =
            needed.map_or(usual, |needed| first_bytes(needed).clamp(READ_BYTES_MIN, INPUT_BYTES_MAX));
        let until = needed.map_or(u64::MAX, |needed| needed.until);
        let announced = needed.map_or(u64::MAX, |needed| offset.saturating_add(needed.first_bytes));
        if is_gradual && needed.is_some() && read_bytes_max >= 2 * FIRST_READ_BYTES {
            // What comes first is decoded while the rest comes. Told apart, or the first would come with the rest.
            let first_bytes = FIRST_READ_BYTES as u64;
            source.will_need(offset, first_bytes);
            source.will_need(offset + first_bytes, announced - offset - first_bytes);
            read_bytes_max = FIRST_READ_BYTES;
        } else if needed.is_some_and(|needed| needed.first_bytes > INPUT_BYTES_MAX as u64) {
            source.will_need(offset, announced - offset);
        }
        let buffer = Scratch::take(stored.clamp(INPUT_BYTES_MIN, INPUT_BYTES_MAX));
        Self { source, buffer, start: 0, end: 0, read_offset: offset, read_bytes_max, until, announced }
    }

    /// The next stored bytes; empty only at the object's end. Reads only when nothing is left of the last read.
    pub(super) fn fill(&mut self) -> Result<&[u8]> {
        if self.start == self.end {
            let before = self.until.checked_sub(self.read_offset).filter(|before| *before > 0);
            let before = before.and_then(|before| usize::try_from(before).ok()).unwrap_or(usize::MAX);
            let room = self.buffer.len().min(self.read_bytes_max).min(before);
            self.read_bytes_max = (room * 2).max(FIRST_READ_BYTES);
            if (self.announced..self.until).contains(&self.read_offset) {
                // The guess was too short. That is all that is needed before the next point.
                self.source.will_need(self.read_offset, self.until - self.read_offset);
                self.announced = u64::MAX;
            }
            let read = self.source.read_at(&mut self.buffer[..room], self.read_offset)?;
            (self.start, self.end) = (0, read);
            self.read_offset += read as u64;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Takes the first `bytes` of what [`StoredInput::fill`] gave.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.start = self.end.min(self.start + bytes);
    }

    /// Stored offset of the next byte that is not consumed.
    pub(super) fn offset(&self) -> u64 {
        self.read_offset - (self.end - self.start) as u64
    }

    /// The buffer's size in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.buffer.len()
    }
}
