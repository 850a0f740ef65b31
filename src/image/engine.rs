//! What all images of a process share: the store, the opened objects, the caches and the decodes under way.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::copies::Copies;
use super::readahead::Readers;
use crate::backup::DigestPages;
use crate::block::{BlockCache, Flights, VerifiedBlock};
use crate::cache_dir::blocks::BlockRing;
use crate::object::indexing::Indexing;
use crate::object::pool::ObjectPool;
use crate::store::Store;
use crate::types::{BlockHash, ObjectName};
use crate::workers::Workers;

/// Shared by all images of a process.
pub struct Engine {
    objects: ObjectPool,
    workers: Arc<Workers>,
    cache: BlockCache,
    disk: Option<Arc<BlockRing>>,
    flights: Flights,
    digests: Arc<DigestPages>,
    copies: OnceLock<Weak<dyn Copies>>,
    readers: Mutex<Readers>,
    images: AtomicU64,
}

/// The part of the memory for blocks that a store may take for what it fetches ahead: one that is far away is read at the speed of its line only
/// with much on the way.
const FETCHED_AHEAD_SHARE: u64 = 5;

impl Engine {
    /// For images of `store`, with a block cache of at most `cache_bytes_max` bytes, what the store takes of them to fetch ahead included, and
    /// idle decoders of at most `idle_decoder_bytes_max`.
    pub fn new(
        store: Arc<dyn Store>,
        cache_bytes_max: u64,
        idle_decoder_bytes_max: usize,
        indexing: Arc<Indexing>,
    ) -> Self {
        let cache_bytes_max = cache_bytes_max - store.allow_ahead(cache_bytes_max / FETCHED_AHEAD_SHARE);
        let workers = indexing.workers().clone();
        let objects = ObjectPool::new(store, idle_decoder_bytes_max, indexing);
        Self {
            objects,
            workers,
            cache: BlockCache::new(cache_bytes_max),
            disk: None,
            flights: Flights::default(),
            digests: Arc::default(),
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

    /// The same, which also keeps verified blocks and the digests they are compared with on disk.
    #[must_use]
    pub fn with_disk(self, disk: Arc<BlockRing>) -> Self {
        Self { disk: Some(disk), ..self }
    }

    /// Where blocks are kept on disk, if they are.
    pub(super) fn disk(&self) -> Option<&Arc<BlockRing>> {
        self.disk.as_ref()
    }

    /// A block of `len_bytes` that was kept on disk and still has its digest; from now on it is in the cache as well.
    pub(super) fn recall(&self, hash: &BlockHash, len_bytes: u64) -> Option<Arc<VerifiedBlock>> {
        let verify = |bytes: &[u8]| VerifiedBlock::verify(bytes, hash).ok();
        let block = Arc::new(self.disk.as_ref()?.get(&hash.0, len_bytes as usize, verify)?);
        self.cache.insert(*hash, block.clone());
        Some(block)
    }

    /// Whether a block of `len_bytes` was kept on disk, unless it is damaged there.
    pub(super) fn holds_on_disk(&self, hash: &BlockHash, len_bytes: u64) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.holds(&hash.0, len_bytes as usize))
    }

    /// Files a block in the cache and on disk.
    pub(super) fn keep(&self, hash: BlockHash, block: Arc<VerifiedBlock>) {
        if let Some(disk) = &self.disk {
            disk.put(&hash.0, block.bytes());
        }
        self.cache.insert(hash, block);
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

    /// The names of all opened objects.
    pub fn opened_objects(&self) -> Vec<ObjectName> {
        self.objects.opened()
    }

    /// Closes opened objects, each once nobody reads it.
    pub fn close_objects(&self, names: &HashSet<ObjectName>) {
        self.objects.close(names);
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

    /// Digests that are held in memory.
    pub(super) fn digests(&self) -> &Arc<DigestPages> {
        &self.digests
    }

    pub(super) fn flights(&self) -> &Flights {
        &self.flights
    }
}
