//! What all images of a process share: the store, the opened objects, the cache and the decodes under way.

use std::sync::Arc;

use crate::block::{BlockCache, Flights};
use crate::object::pool::ObjectPool;
use crate::store::Store;

/// Idle decoders may hold this much, in bytes, however large the cache: about 200 zlib streams, or 8 of bz2 or zstd.
const IDLE_DECODER_BYTES_MAX: usize = 32 << 20;

/// Shared by all images of a process.
pub struct Engine {
    objects: ObjectPool,
    cache: BlockCache,
    flights: Flights,
}

impl Engine {
    /// For images of `store`, with a block cache of at most `cache_bytes_max` bytes.
    pub fn new(store: Arc<dyn Store>, cache_bytes_max: u64) -> Self {
        let objects = ObjectPool::new(store, IDLE_DECODER_BYTES_MAX);
        Self { objects, cache: BlockCache::new(cache_bytes_max), flights: Flights::default() }
    }

    pub(super) fn objects(&self) -> &ObjectPool {
        &self.objects
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        self.objects.store()
    }

    pub(super) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    pub(super) fn flights(&self) -> &Flights {
        &self.flights
    }
}
