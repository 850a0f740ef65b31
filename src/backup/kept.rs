//! Digests kept on disk, for when the store does not answer, or is far away.
//!
//! Problem: a block on disk is worth nothing without the digest that asks for it, and digests are read from the store, a few
//! with each read. Idea: the `_sha256file` is cut into pages of [`PAGE_BLOCKS`] lines; whoever reads a line sees to it that its
//! page lies on disk beside the blocks. When the store fails, or is at a server that need not be asked for what it gave before, the page answers.
//!
//! Which file a page is of is part of its key: the name, the version as the store tells it, and a sha256 of the file's head
//! and tail, which hold the ids and the first digests. So a file that is replaced never meets the old one's pages, whatever its
//! times say.
//!
//! Invariants: a page is as it was read from the store while the file was unchanged, or it is not served (each carries a
//! sha256 of its key and its bytes); memory does not depend on how many digests there are.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::byte_lru::ByteLru;
use crate::cache_dir::blocks::{BlockRing, Key};
use crate::error::Result;
use crate::format::sha256file::StrideLayout;
use crate::store::ObjectStat;
use crate::types::BlockHash;

/// Digests in a page: 18 KiB of the file, for 8 MiB of volume.
const PAGE_BLOCKS: u64 = 256;

/// Of how many pages it is remembered that they lie on disk: each read asks, and most are of few pages.
const REMEMBERED_MAX: u64 = 1024;

/// And while how much of the ring goes on, as a share of it: a page must be put again before it is overwritten.
const REMEMBERED_SHARE: u64 = 8;

/// A store that failed is not asked for digests that lie on disk for this long: it may take its time to fail.
const FAILURE_BELIEVED: Duration = Duration::from_secs(3);

/// A digest file may take this share of the ring through scans, which look at digests without reading their blocks.
const SCAN_SHARE: u64 = 16;

const CHECK_BYTES: usize = 32;

/// The pages of one `_sha256file`.
pub(super) struct KeptPages {
    ring: Arc<BlockRing>,
    identity: [u8; 32],
    layout: StrideLayout,
    remembered: Mutex<ByteLru<u64, u64>>,
    failed: Mutex<Option<Instant>>,
    /// Something that a page said was not so.
    is_doubted: AtomicBool,
}

impl KeptPages {
    /// For the file `name`, of which a store has told `stat`, and whose head and tail have the sha256 `ends`.
    pub(super) fn new(
        ring: Arc<BlockRing>,
        name: &str,
        stat: &ObjectStat,
        ends: &BlockHash,
        layout: StrideLayout,
    ) -> Self {
        let mut hasher = Sha256::new();
        for text in ["digests of", name, &stat.version.0] {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        hasher.update(stat.len_bytes.to_le_bytes());
        hasher.update(ends.0);
        Self {
            ring,
            identity: hasher.finalize().into(),
            layout,
            remembered: Mutex::new(ByteLru::new(REMEMBERED_MAX)),
            failed: Mutex::default(),
            is_doubted: AtomicBool::new(false),
        }
    }

    /// Whether the digests of a scan are worth keeping too.
    pub(super) fn keeps_scans(&self) -> bool {
        self.layout.count().saturating_mul(self.layout.stride()) <= self.ring.data_bytes() / SCAN_SHARE
    }

    /// Says that a block is not what its digest says, which may have come wrong from the store once, and be kept so: from now on the store is
    /// asked while it answers.
    pub(super) fn doubt(&self) {
        self.is_doubted.store(true, Ordering::Relaxed);
    }

    /// Whether anything was doubted.
    pub(super) fn is_doubted(&self) -> bool {
        self.is_doubted.load(Ordering::Relaxed)
    }

    /// Whether the store failed a moment ago.
    pub(super) fn failed_lately(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|since| since.elapsed() < FAILURE_BELIEVED)
    }

    /// Notes how the store answered.
    pub(super) fn note(&self, failed: bool) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed.then(Instant::now);
    }

    /// Sees to it that the pages of `blocks` lie on disk. `read` fills a buffer from an offset of the file, and fails when the
    /// file has changed.
    pub(super) fn keep(&self, blocks: &Range<u64>, read: impl Fn(&mut [u8], u64) -> Result<()>) {
        let (now, passes) = (self.ring.given_bytes(), self.ring.data_bytes() / REMEMBERED_SHARE);
        for page in self.pages(blocks) {
            let remembered = {
                let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
                remembered.get(&page).is_some_and(|then| now.saturating_sub(*then) < passes)
            };
            if remembered {
                continue;
            }
            let (key, bytes) = (self.key(page), self.bytes_of(page));
            let len = (bytes.end - bytes.start) as usize;
            if !self.ring.holds(&key, CHECK_BYTES + len) {
                let mut record = vec![0; CHECK_BYTES + len];
                // What the store does not give now will be asked for again.
                if read(&mut record[CHECK_BYTES..], bytes.start).is_err() {
                    return;
                }
                let check = check(&key, &record[CHECK_BYTES..]);
                record[..CHECK_BYTES].copy_from_slice(&check);
                self.ring.put(&key, &record);
            }
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            remembered.insert(page, now, 1);
        }
    }

    /// The lines of `blocks` from disk; `None` when a page is missing.
    pub(super) fn lines(&self, blocks: &Range<u64>) -> Option<Vec<u8>> {
        let wanted = self.layout.bytes_of(blocks.clone());
        let mut lines = Vec::with_capacity((wanted.end - wanted.start) as usize);
        for page in self.pages(blocks) {
            let (key, bytes) = (self.key(page), self.bytes_of(page));
            let from = wanted.start.max(bytes.start) - bytes.start;
            let until = wanted.end.min(bytes.end) - bytes.start;
            self.ring.get(&key, CHECK_BYTES + (bytes.end - bytes.start) as usize, |record| {
                let (stored, page) = record.split_at(CHECK_BYTES);
                (stored == check(&key, page))
                    .then(|| lines.extend_from_slice(&page[from as usize..until as usize]))
            })?;
        }
        Some(lines)
    }

    /// Whether the lines of `blocks` lie on disk, as far as can be told without reading them.
    pub(super) fn holds(&self, blocks: &Range<u64>) -> bool {
        self.pages(blocks).all(|page| {
            let bytes = self.bytes_of(page);
            self.ring.holds(&self.key(page), CHECK_BYTES + (bytes.end - bytes.start) as usize)
        })
    }

    /// `blocks`, widened to all whose digests lie in the same pages.
    pub(super) fn whole_pages(&self, blocks: &Range<u64>) -> Range<u64> {
        let pages = self.pages(blocks);
        pages.start * PAGE_BLOCKS..(pages.end * PAGE_BLOCKS).min(self.layout.count())
    }

    fn pages(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start / PAGE_BLOCKS..blocks.end.div_ceil(PAGE_BLOCKS)
    }

    /// The bytes of the file that a page holds.
    fn bytes_of(&self, page: u64) -> Range<u64> {
        self.layout.bytes_of(page * PAGE_BLOCKS..((page + 1) * PAGE_BLOCKS).min(self.layout.count()))
    }

    fn key(&self, page: u64) -> Key {
        let mut hasher = Sha256::new();
        hasher.update(self.identity);
        hasher.update(page.to_le_bytes());
        hasher.finalize().into()
    }
}

fn check(key: &Key, page: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = Sha256::new();
    hasher.update(key);
    hasher.update(page);
    hasher.finalize().into()
}
