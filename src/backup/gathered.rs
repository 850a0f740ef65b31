//! All digests of one document, on this machine, for whoever goes through them more than once.
//!
//! Problem: a command that names an image by its content, counts its data and then reads all of it needs each digest three times, and those of
//! a server come over the network each time. Idea: the first pass keeps them, packed, in memory or an unlinked temporary file.
//!
//! Invariants: what is gathered is the whole document, without a damaged entry; once a block is not what its digest says, the store is asked again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::packed::PackedHashes;

/// The digests of a document, once they are gathered.
#[derive(Default)]
pub(super) struct Gathered {
    hashes: OnceLock<PackedHashes>,
    is_doubted: AtomicBool,
}

impl Gathered {
    /// All digests, unless they are not known or not trusted.
    pub(super) fn get(&self) -> Option<&PackedHashes> {
        self.hashes.get().filter(|_| !self.is_doubted.load(Ordering::Relaxed))
    }

    /// Whether somebody has gathered them, trusted or not.
    pub(super) fn is_done(&self) -> bool {
        self.hashes.get().is_some()
    }

    pub(super) fn set(&self, hashes: PackedHashes) {
        // Of two who gather at once, both have the same.
        let _ = self.hashes.set(hashes);
    }

    /// A block is not what its digest says.
    pub(super) fn doubt(&self) {
        if self.is_done() {
            self.is_doubted.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BlockHash;

    #[test]
    fn what_is_doubted_is_not_told_any_more() {
        let gathered = Gathered::default();
        assert!(gathered.get().is_none() && !gathered.is_done());
        gathered.doubt();
        gathered.set(PackedHashes::Memory(vec![BlockHash([7; 32])]));
        assert_eq!(gathered.get().and_then(|hashes| hashes.get(0)), Some(BlockHash([7; 32])));
        gathered.doubt();
        assert!(gathered.get().is_none() && gathered.is_done(), "nor gathered again");
    }
}
