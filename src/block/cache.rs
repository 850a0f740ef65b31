//! A cache of verified blocks, bounded in bytes.
//!
//! Problem: blocks are 1 byte to 16 MiB, depending on the backup, so a bound on entries is no bound on memory; and a
//! mount reads with many threads. Idea: least recently used first, counted in bytes, in shards by the digest's first
//! byte so that threads seldom meet.
//!
//! Invariant: the sum of what all shards hold, overhead included, never exceeds the bound. A block larger than a
//! shard's share is not kept.

use std::sync::{Arc, PoisonError};

use super::VerifiedBlock;
use crate::byte_lru::ByteLru;
use crate::sync::{Mutex, MutexGuard};
use crate::types::BlockHash;

/// Shards of a large cache. A small one has fewer, so that a shard holds some blocks of any usual size.
const SHARDS_MAX: u64 = 16;

/// The least share of a shard, in bytes. A block that a shard cannot keep is decoded anew for each part of it that is
/// asked for, so a share holds blocks of any size in use.
const SHARD_BYTES_MIN: u64 = 32 << 20;

/// What an entry costs beside its bytes: map slot, list node, two allocations.
const ENTRY_OVERHEAD_BYTES: u64 = 192;

/// Verified blocks by digest.
pub struct BlockCache {
    shards: Box<[Mutex<Shard>]>,
}

type Shard = ByteLru<BlockHash, Arc<VerifiedBlock>>;

impl BlockCache {
    /// A cache that holds at most `bytes_max` bytes; 0 keeps nothing.
    pub fn new(bytes_max: u64) -> Self {
        let shards = (bytes_max / SHARD_BYTES_MIN).clamp(1, SHARDS_MAX);
        Self { shards: (0..shards).map(|_| Mutex::new(ByteLru::new(bytes_max / shards))).collect() }
    }

    /// The block of this digest, now the most recently used of its shard.
    pub fn get(&self, hash: &BlockHash) -> Option<Arc<VerifiedBlock>> {
        self.shard(hash).get(hash).cloned()
    }

    /// Keeps a block, and drops the least recently used ones that no longer fit.
    ///
    /// `hash` must be the digest that `block` was verified against.
    pub fn insert(&self, hash: BlockHash, block: Arc<VerifiedBlock>) {
        let cost = block.bytes().len() as u64 + ENTRY_OVERHEAD_BYTES;
        self.shard(&hash).insert(hash, block, cost);
    }

    /// What is held now, in bytes, overhead included.
    pub fn held_bytes(&self) -> u64 {
        let held = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).bytes();
        self.shards.iter().map(held).sum()
    }

    fn shard(&self, hash: &BlockHash) -> MutexGuard<'_, Shard> {
        let index = usize::from(hash.0[0]) % self.shards.len();
        // A panic elsewhere cannot leave a shard half-changed in a way that matters: at worst its count is off.
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash_of;
    use super::*;

    fn block(seed: u32, len: usize) -> (BlockHash, Arc<VerifiedBlock>) {
        let bytes: Vec<u8> = seed.to_le_bytes().into_iter().cycle().take(len).collect();
        let hash = hash_of(&bytes);
        (hash, Arc::new(VerifiedBlock::verify(&bytes, &hash).ok().unwrap()))
    }

    #[test]
    fn the_bound_holds_whatever_the_sizes() {
        for bytes_max in [0, 1000, 100_000, 20 << 20] {
            let cache = BlockCache::new(bytes_max);
            for seed in 0..3000 {
                let (hash, block) = block(seed, 1 + (seed as usize * 7919) % 60_000);
                cache.insert(hash, block.clone());
                cache.insert(hash, block);
                assert!(cache.held_bytes() <= bytes_max);
            }
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = BlockCache::new(3 * (100 + ENTRY_OVERHEAD_BYTES));
        let blocks: Vec<_> = (0..4).map(|seed| block(seed, 100)).collect();
        for (hash, block) in &blocks[..3] {
            cache.insert(*hash, block.clone());
        }
        assert!(cache.get(&blocks[0].0).is_some());
        cache.insert(blocks[3].0, blocks[3].1.clone());
        let held = blocks.iter().map(|(hash, _)| cache.get(hash).is_some()).collect::<Vec<_>>();
        assert_eq!(held, [true, false, true, true]);
    }
}
