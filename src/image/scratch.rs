//! A buffer that each thread keeps for what it decodes next.
//!
//! A run of megabytes is decoded hundreds of times a minute; memory of that size goes back to the kernel each time it is
//! freed, and comes back page by page. Invariant: a thread keeps one buffer of at most [`KEPT_BYTES_MAX`].

use std::cell::Cell;

use super::readahead;

/// Longest buffer kept, in bytes: a run of blocks of the usual sizes. Larger blocks are rare, and get memory of their own.
const KEPT_BYTES_MAX: usize = readahead::WINDOW_BYTES_MAX as usize;

thread_local! {
    static KEPT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The thread's buffer, given back when this is dropped.
pub(super) struct Scratch {
    buffer: Vec<u8>,
    len: usize,
}

impl Scratch {
    /// A buffer of `len` bytes, whatever they are. Taken twice by one thread, the second is a new one.
    pub(super) fn take(len: usize) -> Self {
        let mut buffer = KEPT.take();
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        Self { buffer, len }
    }

    /// The bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.buffer.len() <= KEPT_BYTES_MAX {
            KEPT.set(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_one_small_buffer() {
        Scratch::take(1000).bytes().fill(7);
        let (mut again, mut other) = (Scratch::take(10), Scratch::take(10));
        assert_eq!((again.bytes(), other.bytes()), (&mut [7; 10][..], &mut [0; 10][..]));
        drop(again);
        drop(Scratch::take(KEPT_BYTES_MAX + 1));
        assert!(KEPT.take().len() <= KEPT_BYTES_MAX);
    }
}
