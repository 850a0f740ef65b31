//! Makes a restart point small.
//!
//! Problem: a window is 2 MiB, and most of it is never copied from. Idea: walk the sequences of the blocks that follow
//! the point until the window is behind them, and keep only the bytes that they copy from before it; all others become
//! zeros, which pack to nothing.
//!
//! Invariant: when the blocks cannot be read or understood, the window stays whole.

use super::block::{Body, Tables};
use super::framing::{BLOCK_BYTES_MAX, BlockKind, block_header};
use super::sequences::{Offsets, walk};
use super::state::State;
use crate::store::ObjectSource;

/// Stored bytes read at once: a few blocks.
const READ_BYTES: usize = 256 * 1024;

/// How many blocks one walk looks at; a window is sixteen full ones, and a frame of tiny ones is not worth the time.
const BLOCKS_MAX: usize = 1024;

/// Stored bytes from an offset on.
struct Stored<'a> {
    source: &'a dyn ObjectSource,
    buffer: Vec<u8>,
    start: usize,
    /// Stored offset of the buffer's end.
    offset: u64,
}

impl Stored<'_> {
    /// The next `bytes` bytes, at most [`BLOCK_BYTES_MAX`].
    fn take(&mut self, bytes: usize) -> Option<&[u8]> {
        if self.buffer.len() - self.start < bytes {
            self.buffer.drain(..self.start);
            self.start = 0;
            let mut have = self.buffer.len();
            self.buffer.resize(READ_BYTES, 0);
            while have < bytes {
                match self.source.read_at(&mut self.buffer[have..], self.offset).ok()? {
                    0 => return None,
                    read => {
                        have += read;
                        self.offset += read as u64;
                    }
                }
            }
            self.buffer.truncate(have);
        }
        let taken = self.buffer.get(self.start..self.start + bytes)?;
        self.start += bytes;
        Some(taken)
    }
}

/// Zeroes what no block after stored offset `stored` copies from the state's window.
pub(super) fn prune(state: &mut State, source: &dyn ObjectSource, stored: u64) {
    let mut needed = vec![false; state.window().len()];
    let found = state.tables().and_then(|(tables, offsets)| {
        let stored = Stored { source, buffer: Vec::new(), start: 0, offset: stored };
        mark(stored, tables, offsets, state.frame().window_bytes, &mut needed)
    });
    if found.is_some() {
        for (byte, is_needed) in state.window_mut().iter_mut().zip(needed) {
            *byte &= if is_needed { 0xFF } else { 0 };
        }
    }
}

/// Marks the bytes before the point that the next `window_bytes` plain bytes are copied from.
fn mark(
    mut stored: Stored<'_>,
    mut tables: Tables,
    mut offsets: Offsets,
    window_bytes: u64,
    needed: &mut [bool],
) -> Option<()> {
    // Plain bytes since the point.
    let mut plain = 0u64;
    for _ in 0..BLOCKS_MAX {
        let header = stored.take(3)?;
        let (is_last, kind, size, stored_bytes) = block_header([header[0], header[1], header[2]])?;
        let stored_bytes = usize::try_from(stored_bytes).ok().filter(|bytes| *bytes <= BLOCK_BYTES_MAX)?;
        let content = stored.take(stored_bytes)?;
        match kind {
            BlockKind::Compressed if !content.is_empty() => {
                let body = Body::parse(content)?;
                tables.update(&body);
                let mut matched = 0;
                if body.sequences > 0 {
                    let mut at = plain;
                    walk(&tables.decoding()?, body.bits, body.sequences, &mut offsets, |sequence| {
                        at += u64::from(sequence.literals);
                        if u64::from(sequence.offset) > at {
                            // From this far before the window's end, for that many bytes.
                            let back = u64::from(sequence.offset) - at;
                            let first = (needed.len() as u64).saturating_sub(back) as usize;
                            let last = needed.len().min(first + sequence.matched as usize);
                            needed[first..last].fill(true);
                        }
                        at += u64::from(sequence.matched);
                        matched += u64::from(sequence.matched);
                    })?;
                }
                plain += matched + u64::from(body.literal_bytes);
            }
            _ => plain += u64::from(size),
        }
        if is_last || plain >= window_bytes {
            return Some(());
        }
    }
    None
}
