//! The stored bytes that follow a restart point, kept while the decoder goes over them.
//!
//! Problem: which bytes of a window are referred to is only seen in what follows the point, and to read that again from an object store is one
//! journey for each point. Idea: the decoder that noted the point has these bytes in its hands a moment later, so they are kept
//! then: as many as it takes for the next 32 KiB of plain bytes, behind which nothing refers to the window.
//!
//! Invariants: nothing is read for it; what is kept is bounded whatever the stream is like.

use super::inflate::WINDOW_BYTES_MAX;
use super::state;
use crate::codec::RestartPoint;

/// Stored bytes that are kept behind a point. 32 KiB of plain bytes that a sane writer stored do not take more than 33 KiB; of one
/// that wrote thousands of empty blocks the whole window is kept.
const STORED_BYTES_MAX: usize = 48 * 1024;

/// Consumed bytes whose bits an inflater may count as unused at a border: 63 bits at most.
const UNUSED_BYTES_MAX: usize = 8;

/// The point that is followed, and what was consumed since. Where points are to be so dense that another one is noted meanwhile, that
/// one's window stays whole.
#[derive(Default)]
pub(super) struct Tail {
    point: Option<RestartPoint>,
    stored: Vec<u8>,
    /// The last bytes that were consumed.
    last: Vec<u8>,
}

impl Tail {
    /// Follows a point that was noted just now, where the bytes before the stored offset `consumed_to` are consumed, unless there is
    /// another one.
    pub(super) fn follow(&mut self, point: &RestartPoint, consumed_to: u64) {
        if self.point.is_none() {
            let unused = consumed_to.saturating_sub(point.stored_bits / 8) as usize;
            self.stored.extend(&self.last[self.last.len().saturating_sub(unused)..]);
            self.point = Some(point.clone());
        }
    }

    /// Takes note of what was consumed.
    pub(super) fn consumed(&mut self, bytes: &[u8]) {
        if self.point.is_some() {
            let room = STORED_BYTES_MAX - self.stored.len().min(STORED_BYTES_MAX);
            self.stored.extend(&bytes[..bytes.len().min(room)]);
        }
        let newest = &bytes[bytes.len().saturating_sub(UNUSED_BYTES_MAX)..];
        self.last.drain(..(self.last.len() + newest.len()).saturating_sub(UNUSED_BYTES_MAX));
        self.last.extend(newest);
    }

    /// The point with what follows it, once nothing refers to its window behind `plain_offset`, or that is the end.
    pub(super) fn take(&mut self, plain_offset: u64, is_end: bool) -> Option<RestartPoint> {
        let point = self.point.as_ref()?;
        let is_done = is_end || plain_offset - point.plain_offset >= WINDOW_BYTES_MAX as u64;
        if !is_done && self.stored.len() < STORED_BYTES_MAX {
            return None;
        }
        let followed = state::followed(&point.state, &self.stored).filter(|_| is_done);
        let done = followed.map(|state| RestartPoint { state, ..*point });
        (self.point, self.stored) = (None, Vec::new());
        done
    }

    /// About how much memory is held, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.point.as_ref().map_or(0, |point| point.state.len()) + self.stored.capacity()
    }
}
