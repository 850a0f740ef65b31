//! Memory of blocks that are gone, for those that come.
//!
//! Problem: with a full cache each new block pushes an old one out, thousands of times a second; what is freed goes back to
//! the kernel and comes back page by page, cleared. Idea: the thread that drops a block keeps its memory for the next one
//! of that length, since whoever pushes a block out is about to make another.
//!
//! Invariant: a thread keeps at most [`KEPT_BYTES_MAX`].

use std::cell::RefCell;
use std::ops::Deref;

/// Most memory of dropped blocks that one thread keeps, in bytes: as many as somebody else may have held a little longer.
const KEPT_BYTES_MAX: usize = 512 << 10;

thread_local! {
    /// Of one length.
    static KEPT: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// The bytes of one block.
pub(super) struct BlockBytes(Box<[u8]>);

impl BlockBytes {
    /// A copy of `bytes`.
    pub(super) fn copy_of(bytes: &[u8]) -> Self {
        let kept = KEPT.with_borrow_mut(|kept| kept.pop_if(|kept| kept.len() == bytes.len()));
        match kept {
            Some(mut memory) => {
                memory.copy_from_slice(bytes);
                Self(memory)
            }
            None => Self(bytes.into()),
        }
    }
}

impl Deref for BlockBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for BlockBytes {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.0);
        // A thread that is ending keeps nothing.
        let _ = KEPT.try_with(|kept| {
            let Ok(mut kept) = kept.try_borrow_mut() else { return };
            if kept.last().is_some_and(|other| other.len() != memory.len()) {
                kept.clear();
            }
            if (kept.len() + 1) * memory.len() <= KEPT_BYTES_MAX && !memory.is_empty() {
                kept.push(memory);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> (usize, usize) {
        KEPT.with_borrow(|kept| (kept.len(), kept.iter().map(|memory| memory.len()).sum()))
    }

    #[test]
    fn the_next_block_of_a_length_gets_the_memory_of_the_last() {
        let first = BlockBytes::copy_of(&[7; 1000]);
        let address = first.as_ptr();
        drop(first);
        let second = BlockBytes::copy_of(&[8; 1000]);
        assert_eq!((second.as_ptr(), &*second), (address, &[8; 1000][..]));
        drop(second);
        assert_eq!(&*BlockBytes::copy_of(&[9; 1001]), &[9; 1001]);
        assert_eq!(kept(), (1, 1001), "of one length only");
    }

    #[test]
    fn a_thread_keeps_little() {
        let many: Vec<_> = (0..100).map(|_| BlockBytes::copy_of(&[1; 32 << 10])).collect();
        drop(many);
        assert_eq!(kept().1, KEPT_BYTES_MAX);
        drop(BlockBytes::copy_of(&vec![1; KEPT_BYTES_MAX + 1]));
        drop(BlockBytes::copy_of(&[]));
        assert_eq!(kept(), (0, 0));
    }
}
