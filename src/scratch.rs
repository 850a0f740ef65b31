//! Buffers that each thread keeps for what it decodes next.
//!
//! Problem: a random read needs a decoder with an input buffer, room for what is passed on the way and room for the block,
//! for a fraction of a millisecond; a run of megabytes is decoded hundreds of times a minute. Memory that is freed and asked
//! for again each time is cleared each time, goes back to the kernel and comes back page by page, and leaves holes between cached
//! blocks that fit nothing (a quarter of the cache's size, measured). Idea: the thread that drops a buffer keeps it.
//!
//! Invariant: a thread keeps at most [`KEPT_BYTES_MAX`], what was dropped last.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

/// Most that one thread keeps, in bytes: the longest run of blocks, and some of the smaller ones.
const KEPT_BYTES_MAX: usize = (4 << 20) + (512 << 10);

/// Buffers have sizes of 2^n bytes, from here on.
const BYTES_MIN: usize = 4 << 10;

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept { buffers: VecDeque::new(), bytes: 0 }) };
}

struct Kept {
    buffers: VecDeque<Box<[u8]>>,
    bytes: usize,
}

/// A buffer, given back when this is dropped.
pub(crate) struct Scratch {
    buffer: Box<[u8]>,
    len: usize,
}

impl Scratch {
    /// A buffer of `len` bytes, whatever they are.
    pub(crate) fn take(len: usize) -> Self {
        let size = len.max(BYTES_MIN).checked_next_power_of_two().unwrap_or(len);
        let kept = KEPT.try_with(|kept| kept.try_borrow_mut().ok()?.take(size)).ok().flatten();
        Self { buffer: kept.unwrap_or_else(|| vec![0; size].into()), len }
    }
}

impl Kept {
    fn take(&mut self, size: usize) -> Option<Box<[u8]>> {
        let index = self.buffers.iter().rposition(|buffer| buffer.len() == size)?;
        self.bytes -= size;
        self.buffers.remove(index)
    }

    fn put(&mut self, buffer: Box<[u8]>) {
        if buffer.len() > KEPT_BYTES_MAX {
            return;
        }
        self.bytes += buffer.len();
        self.buffers.push_back(buffer);
        while self.bytes > KEPT_BYTES_MAX {
            self.bytes -= self.buffers.pop_front().map_or(self.bytes, |oldest| oldest.len());
        }
    }
}

impl Deref for Scratch {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // A thread that is ending keeps nothing.
        let _ = KEPT.try_with(|kept| kept.try_borrow_mut().map(|mut kept| kept.put(buffer)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Vec<usize> {
        KEPT.with_borrow(|kept| {
            let sizes: Vec<usize> = kept.buffers.iter().map(|buffer| buffer.len()).collect();
            assert_eq!(kept.bytes, sizes.iter().sum::<usize>());
            sizes
        })
    }

    #[test]
    fn a_buffer_comes_back_in_its_size() {
        Scratch::take(5000).fill(7);
        let (again, other) = (Scratch::take(6000), Scratch::take(6000));
        assert_eq!((&again[..5000], other[0], other.len()), (&[7; 5000][..], 0, 6000));
        drop((again, other));
        assert_eq!(Scratch::take(100).len(), 100);
        assert_eq!(Scratch::take(0).len(), 0);
        assert_eq!(kept(), [8192, 8192, 4096]);
    }

    #[test]
    fn what_was_dropped_last_is_kept() {
        drop(Scratch::take(1 << 20));
        drop((0..40).map(|_| Scratch::take(128 << 10)).collect::<Vec<_>>());
        assert_eq!(kept(), [128 << 10; KEPT_BYTES_MAX / (128 << 10)]);
        drop(Scratch::take(4 << 20));
        assert_eq!(kept()[4..], [4 << 20]);
        drop(Scratch::take(KEPT_BYTES_MAX + 1));
        assert_eq!(kept().len(), 5);
    }
}
