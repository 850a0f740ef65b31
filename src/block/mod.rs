//! Blocks that are proven right, and the cache of them.
//!
//! Problem: bytes from a store are claims. Idea: a [`VerifiedBlock`] is a value that only hashing can make; whoever
//! holds one need not think about trust again, and readers are given nothing else. The cache is keyed by the digest, so
//! all images of a chain, and of volumes cloned from one template, share their blocks.
//!
//! Invariants: a block's bytes have the digest it is filed under; memory is bounded in bytes, not in entries; of many
//! readers that miss the same block, one decodes it.

mod bytes;
mod cache;
mod flight;

pub use cache::BlockCache;
pub use flight::{Claim, Flights, Follow, Lead};

use sha2::{Digest, Sha256};

use self::bytes::BlockBytes;
use crate::types::BlockHash;

/// Plain bytes that were compared with their digest.
pub struct VerifiedBlock(BlockBytes);

impl VerifiedBlock {
    /// Hashes `bytes`; on a mismatch the digest that they do have.
    pub fn verify(bytes: &[u8], expected: &BlockHash) -> Result<Self, BlockHash> {
        let actual = hash_of(bytes);
        if actual == *expected { Ok(Self(BlockBytes::copy_of(bytes))) } else { Err(actual) }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The digest of a block's bytes.
pub fn hash_of(bytes: &[u8]) -> BlockHash {
    BlockHash(Sha256::digest(bytes).into())
}

/// Whether all bytes are zero, many times quicker than their digest would tell.
pub fn is_zeros(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}

/// The digest of `len` zero bytes.
pub fn hash_of_zeros(len: u64) -> BlockHash {
    let zeros = [0; 4096];
    let mut hasher = Sha256::new();
    let mut left = len;
    while left > 0 {
        let part = left.min(zeros.len() as u64);
        hasher.update(&zeros[..part as usize]);
        left -= part;
    }
    BlockHash(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_bytes_become_a_block() {
        let hash = hash_of(b"right");
        assert_eq!(VerifiedBlock::verify(b"right", &hash).ok().unwrap().bytes(), b"right");
        assert_eq!(VerifiedBlock::verify(b"wrong", &hash).err(), Some(hash_of(b"wrong")));
    }

    #[test]
    fn zeros_have_a_digest_of_their_own_for_each_length() {
        for len in [0, 1, 4095, 4096, 4097, 32768, 100_001] {
            assert_eq!(hash_of_zeros(len), hash_of(&vec![0; len as usize]));
        }
    }
}
