//! What all images of a process share: the store, the opened objects, the cache and the decodes under way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::copies::Copies;
use super::readahead::Readers;
use crate::block::{BlockCache, Flights};
use crate::object::indexing::Indexing;
use crate::object::pool::ObjectPool;
use crate::store::Store;
use crate::workers::Workers;

/// Shared by all images of a process.
pub struct Engine {
    objects: ObjectPool,
    workers: Arc<Workers>,
    cache: BlockCache,
    flights: Flights,
    copies: OnceLock<Weak<dyn Copies>>,
    readers: Mutex<Readers>,
    images: AtomicU64,
}

impl Engine {
    /// For images of `store`, with a block cache of at most `cache_bytes_max` bytes and idle decoders of at most
    /// `idle_decoder_bytes_max`.
    pub fn new(
        store: Arc<dyn Store>,
        cache_bytes_max: u64,
        idle_decoder_bytes_max: usize,
        indexing: Arc<Indexing>,
    ) -> Self {
        let workers = indexing.workers().clone();
        let objects = ObjectPool::new(store, idle_decoder_bytes_max, indexing);
        Self {
            objects,
            workers,
            cache: BlockCache::new(cache_bytes_max),
            flights: Flights::default(),
            copies: OnceLock::new(),
            readers: Mutex::new(Readers::new(cache_bytes_max)),
            images: AtomicU64::new(0),
        }
    }

    /// Who reads on and on.
    pub(super) fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other image has.
    pub(super) fn next_image(&self) -> u64 {
        self.images.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn workers(&self) -> &Workers {
        &self.workers
    }

    pub(super) fn objects(&self) -> &ObjectPool {
        &self.objects
    }

    /// Names who knows where other copies of a lost block may be. Only the first call counts.
    pub fn set_copies(&self, copies: Weak<dyn Copies>) {
        let _ = self.copies.set(copies);
    }

    pub(super) fn copies(&self) -> Option<Arc<dyn Copies>> {
        self.copies.get()?.upgrade()
    }

    /// Saves the restart points that were noted and not saved yet.
    pub fn keep_indexes(&self) {
        self.objects.keep_indexes();
    }

    /// Bytes of restart points' states that are held in memory.
    pub fn restart_state_bytes(&self) -> u64 {
        self.objects.indexing().held_bytes()
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
