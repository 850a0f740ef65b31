//! A whole image as a file beside the store: what names its content, and blocks out of it.
//!
//! Problem: what was decoded once and written down need not be decoded again, but a file on a disk is a claim like any
//! other. Idea: such a file is one more place where a block may be, looked into before any object. An image holds it
//! weakly: whoever opened the file keeps it open, and closing it gives its space back.
//!
//! Invariants: a block out of it is compared with its digest like one out of an object; a file that was wrong once is
//! not asked again.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use sha2::{Digest, Sha256};

use super::{Content, Image};
use crate::block::hash_of;
use crate::error::{Error, ErrorKind, Result};
use crate::types::{BlockHash, BlockIndex};

/// An opened file that is said to hold all bytes of an image.
#[derive(Debug)]
pub struct Materialised {
    file: File,
    path: PathBuf,
    refuted: AtomicBool,
}

impl Materialised {
    /// A file that was opened at `path`, which is named in the log when it turns out to be wrong.
    pub fn new(file: File, path: &Path) -> Self {
        Self { file, path: path.to_owned(), refuted: AtomicBool::new(false) }
    }

    /// Fills `buf` from `offset`; false when it cannot.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> bool {
        let read = self.file.read_exact_at(buf, offset);
        read.inspect_err(|error| self.refute(offset, &error.to_string())).is_ok()
    }

    /// Notes that it is not what it is said to be.
    pub(super) fn refute(&self, offset: u64, why: &str) {
        if !self.refuted.swap(true, Ordering::Relaxed) {
            let path = &self.path;
            tracing::warn!(?path, offset, "the hydrated image is not used any more, the store is: {why}");
        }
    }
}

/// Where an image looks for its materialised file.
#[derive(Default)]
pub(super) struct Slot(RwLock<Weak<Materialised>>);

impl Slot {
    pub(super) fn set(&self, file: &Arc<Materialised>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(file);
    }

    /// The file, while somebody keeps it open and nothing speaks against it.
    pub(super) fn get(&self) -> Option<Arc<Materialised>> {
        let file = self.0.read().unwrap_or_else(PoisonError::into_inner).upgrade()?;
        (!file.refuted.load(Ordering::Relaxed)).then_some(file)
    }
}

impl Image {
    /// Names this image among all others by the documents it was opened from: 32 hexadecimal digits, the same wherever
    /// the store lies. Costs no I/O. Equal names do not prove equal bytes, because the digests stand in a document of
    /// their own; [`content`](Self::content) does.
    pub fn key(&self) -> String {
        let mut hasher = Sha256::new();
        let (len, block) = (self.len_bytes(), self.block_bytes());
        hasher.update(format!("image 1 {} {len} {block}\n", self.verification().name()));
        for layer in &*self.layers {
            hasher.update(layer.summary.fingerprint.0);
        }
        hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// A word that changes when the digests may have changed; `None` when nothing tells.
    pub fn digests_version(&self) -> Option<&str> {
        match &self.content {
            Content::Proven(view) => Some(&*view.table().version()?.0),
            // The md5 of its objects stand in the documents that the key is made of.
            Content::Unproven(_) => Some("md5"),
        }
    }

    /// Has the digests on this machine, if they are far away, for whoever will go through all of them more than once. Fails when the store does.
    pub fn gather_digests(&self) -> Result<()> {
        match &self.content {
            Content::Proven(view) => view.table().gather(),
            Content::Unproven(_) => Ok(()),
        }
    }

    /// Names the content: the length and the digest of every block. Reads all digests on the first call, 2.25 GiB for a
    /// TiB of volume. An error when one of them is damaged or cannot be read.
    pub fn content(&self) -> Result<BlockHash> {
        if let Some(known) = self.content_hash.get() {
            return Ok(*known);
        }
        let mut hasher = Sha256::new();
        hasher.update(format!("content 1 {} {}\n", self.len_bytes(), self.block_bytes()));
        match &self.content {
            Content::Unproven(_) => hasher.update(self.key()),
            Content::Proven(view) => {
                let mut damaged = None;
                view.table().scan(BlockIndex(0), &mut |block, hash| match hash {
                    Some(hash) => {
                        hasher.update(hash.0);
                        std::ops::ControlFlow::Continue(())
                    }
                    None => {
                        damaged = Some(block);
                        std::ops::ControlFlow::Break(())
                    }
                })?;
                if let Some(block) = damaged {
                    let start = block.0.saturating_mul(self.block_bytes());
                    let message = format!(
                        "the digest of block {}, at offset {start}, is damaged: nothing can prove this block",
                        block.0
                    );
                    return Err(Error::new(ErrorKind::Malformed, message));
                }
            }
        }
        Ok(*self.content_hash.get_or_init(|| BlockHash(hasher.finalize().into())))
    }

    /// Looks for blocks in `file` before it looks into objects, for as long as somebody else holds the `Arc`. Without
    /// effect where only an md5 proves whole objects.
    pub fn look_into(&self, file: &Arc<Materialised>) {
        if let Content::Proven(view) = &self.content {
            view.materialised().set(file);
        }
    }

    /// The ranges of `bytes`, which are said to stand at `offset`, that are not those of this image. `offset` is a
    /// multiple of the block's size, and `bytes` end at one or with the image. Objects are read only where nothing but
    /// an md5 proves them.
    pub fn differing(&self, offset: u64, bytes: &[u8]) -> Result<Vec<Range<u64>>> {
        let block_bytes = self.block_bytes();
        let chunks = || {
            let starts = (offset..).step_by(block_bytes as usize);
            starts.zip(bytes.chunks(block_bytes as usize))
        };
        let range = |start: u64, chunk: &[u8]| start..start + chunk.len() as u64;
        let mut differing = Vec::new();
        match &self.content {
            Content::Proven(view) => {
                let first = offset / block_bytes;
                let blocks = first..first + (bytes.len() as u64).div_ceil(block_bytes);
                for ((start, chunk), hash) in chunks().zip(view.table().get(blocks)) {
                    if hash_of(chunk) != hash? {
                        differing.push(range(start, chunk));
                    }
                }
            }
            Content::Unproven(_) => {
                let mut right = vec![0; bytes.len()];
                self.read_at(&mut right, offset)?;
                for ((start, chunk), right) in chunks().zip(right.chunks(block_bytes as usize)) {
                    if chunk != right {
                        differing.push(range(start, chunk));
                    }
                }
            }
        }
        Ok(differing)
    }
}
