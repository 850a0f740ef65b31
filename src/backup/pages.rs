//! Digests kept in memory, so that a block that is in memory can be served without the store.
//!
//! Problem: a cached block is found by its digest, and the digest is read from the store: a system call with each read, and no
//! answer at all while the store hangs. Idea: digests are read and kept in small pages, for all images of a process together.
//!
//! What the store once gave may be wrong where the next read is right, so a page is forgotten when a block is not what its digest says, and
//! one with an entry that is no digest is not kept.
//!
//! Invariants: a page holds what the file said while it was as it had been opened; memory is bounded by [`PAGES_BYTES_MAX`], and a page is
//! of one opened file only.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::byte_lru::ByteLru;
use crate::types::BlockHash;

/// Digests in a page: what one request of 1 MiB asks for. Random readers waste little of it, and it is 2 KiB of the file.
pub(super) const PAGE_BLOCKS: u64 = 32;

/// Bound on all pages, in bytes: those of 6 GiB of volume, or of each block of the default block cache where no two are neighbours.
const PAGES_BYTES_MAX: u64 = 10 << 20;

/// Threads seldom meet in one of these.
const SHARDS: usize = 16;

/// What a page costs beside its digests: map slot, list node, allocation.
const PAGE_OVERHEAD_BYTES: u64 = 160;

/// The digests of a page.
pub(super) type Page = Arc<[BlockHash]>;

type Shard = Mutex<ByteLru<(u64, u64), Page>>;

/// The pages of all files.
pub struct DigestPages {
    shards: Box<[Shard]>,
    files: AtomicU64,
}

impl Default for DigestPages {
    fn default() -> Self {
        let share = PAGES_BYTES_MAX / SHARDS as u64;
        let shards = (0..SHARDS).map(|_| Mutex::new(ByteLru::new(share))).collect();
        Self { shards, files: AtomicU64::new(0) }
    }
}

impl DigestPages {
    /// A number that no other opened file has.
    pub(super) fn next_file(&self) -> u64 {
        self.files.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self, file: u64, page: u64) -> Option<Page> {
        self.shard(page).lock().unwrap_or_else(PoisonError::into_inner).get(&(file, page)).cloned()
    }

    pub(super) fn keep(&self, file: u64, page: u64, digests: Page) {
        let cost = size_of_val(&*digests) as u64 + PAGE_OVERHEAD_BYTES;
        self.shard(page).lock().unwrap_or_else(PoisonError::into_inner).insert((file, page), digests, cost);
    }

    pub(super) fn forget(&self, file: u64, page: u64) {
        self.shard(page).lock().unwrap_or_else(PoisonError::into_inner).remove(&(file, page));
    }

    fn shard(&self, page: u64) -> &Shard {
        &self.shards[page as usize % SHARDS]
    }
}
