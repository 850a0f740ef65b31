//! Opened objects, kept for the next read.
//!
//! Problem: a read of a chain touches objects all over the store, an incremental may have 100,000 of them, and a process
//! may have 1,024 files open. Idea: the most recently used ones stay open.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::ObjectReader;
use super::cursors::IdleCursors;
use super::indexing::Indexing;
use crate::codec::Codec;
use crate::error::Result;
use crate::store::Store;
use crate::types::ObjectName;

/// Most objects kept open. With the idle decoders' it stays well below the usual limit of 1,024 open files.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// The opened objects of a store.
pub struct ObjectPool {
    store: Arc<dyn Store>,
    cursors: Arc<IdleCursors>,
    indexing: Arc<Indexing>,
    open: Mutex<LruCache<(ObjectName, Codec, u64), Arc<ObjectReader>>>,
}

impl ObjectPool {
    /// A pool for `store` that keeps idle decoders of about `idle_decoder_bytes_max` bytes.
    pub fn new(store: Arc<dyn Store>, idle_decoder_bytes_max: usize, indexing: Arc<Indexing>) -> Self {
        let cursors = Arc::new(IdleCursors::new(idle_decoder_bytes_max));
        Self { store, cursors, indexing, open: Mutex::new(LruCache::new(OPEN_MAX)) }
    }

    /// The object `name`, which is compressed as `codec` says and should hold `len_bytes` plain bytes.
    pub fn get(&self, name: ObjectName, codec: Codec, len_bytes: u64) -> Result<Arc<ObjectReader>> {
        let key = (name, codec, len_bytes);
        let known = self.lock().get(&key).cloned();
        if let Some(reader) = known.as_ref().filter(|reader| !reader.is_stale()) {
            return Ok(reader.clone());
        }
        // Opened without the lock: a slow store must not stop readers of what is open.
        let source = self.store.open(&key.0)?;
        let (cursors, indexing) = (self.cursors.clone(), self.indexing.clone());
        let reader = ObjectReader::new(key.0.clone(), codec, len_bytes, source, cursors, indexing);
        if let Some(known) = known {
            reader.inherit(&known);
        }
        let mut open = self.lock();
        // Another thread may have been quicker; two readers of one object would decode it twice.
        if let Some(other) = open.get(&key)
            && !other.is_stale()
        {
            return Ok(other.clone());
        }
        let replaced = open.push(key, reader.clone());
        drop(open);
        drop(replaced);
        Ok(reader)
    }

    /// Saves the restart points of all opened objects.
    pub fn keep_indexes(&self) {
        let open: Vec<_> = self.lock().iter().map(|(_, reader)| reader.clone()).collect();
        open.iter().for_each(|reader| reader.keep_index());
    }

    /// What is shared about restart points.
    pub(crate) fn indexing(&self) -> &Indexing {
        &self.indexing
    }

    /// The store that the objects are in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<(ObjectName, Codec, u64), Arc<ObjectReader>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
