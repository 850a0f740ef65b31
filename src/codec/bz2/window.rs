//! A small window on an object's stored bytes that moves forward, and back where it must.
//!
//! Problem: heads and checksums are looked at in place, blocks begin at any bit, and the same few bytes are wanted by the
//! scanner and by the decoder. Idea: one buffer, and "the bytes from here on" as the question. Invariant: a forward
//! walk reads no stored byte twice.

use std::sync::Arc;

use crate::error::Result;
use crate::store::ObjectSource;

/// Stored bytes held at once. A block is some hundred kilobytes, and what is read behind its end is read for nothing where
/// only that block is wanted.
const WINDOW_BYTES: usize = 32 * 1024;

/// The smallest window: for objects that are tiny, or whose store reports no size. More than any question asks for.
const WINDOW_BYTES_MIN: usize = 4 * 1024;

/// A window on an object's stored bytes.
pub(super) struct Window {
    source: Arc<dyn ObjectSource>,
    buffer: Box<[u8]>,
    /// Stored offset of `buffer[0]`.
    base: u64,
    /// How much of the buffer is filled.
    filled: usize,
    /// The object ends where the filled part does.
    has_ended: bool,
}

impl Window {
    /// A window that has seen nothing yet.
    pub(super) fn new(source: Arc<dyn ObjectSource>) -> Self {
        Self { source, buffer: Box::default(), base: 0, filled: 0, has_ended: false }
    }

    /// The stored bytes from `offset` on: at least `wanted` of them (at most 4 KiB), fewer only when the object ends.
    pub(super) fn at(&mut self, offset: u64, wanted: usize) -> Result<&[u8]> {
        let within = offset.checked_sub(self.base).and_then(|skip| usize::try_from(skip).ok());
        let mut start = match within {
            Some(skip) if skip <= self.filled => skip,
            _ => {
                (self.base, self.filled, self.has_ended) = (offset, 0, false);
                0
            }
        };
        if self.filled - start < wanted && !self.has_ended {
            if self.buffer.is_empty() {
                let stored = usize::try_from(self.source.stat().len_bytes).unwrap_or(usize::MAX);
                self.buffer = vec![0; stored.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES)].into_boxed_slice();
            }
            self.buffer.copy_within(start..self.filled, 0);
            (self.base, self.filled, start) = (offset, self.filled - start, 0);
            while self.filled < wanted.min(self.buffer.len()) && !self.has_ended {
                let read =
                    self.source.read_at(&mut self.buffer[self.filled..], offset + self.filled as u64)?;
                self.filled += read;
                self.has_ended = read == 0;
            }
        }
        Ok(&self.buffer[start..self.filled])
    }

    /// `count` bits, at most 56, from bit `at`; `None` when the object ends before.
    pub(super) fn bits(&mut self, at: u64, count: u64) -> Result<Option<u64>> {
        let bytes = self.at(at / 8, 8)?;
        if (bytes.len() as u64) * 8 < at % 8 + count {
            return Ok(None);
        }
        let mut word = [0; 8];
        let len = bytes.len().min(8);
        word[..len].copy_from_slice(&bytes[..len]);
        Ok(Some(u64::from_be_bytes(word) << (at % 8) >> (64 - count)))
    }

    /// Gives its memory back.
    pub(super) fn clear(&mut self) {
        (self.buffer, self.filled, self.has_ended) = (Box::default(), 0, false);
    }

    /// Stored offset of the end of what was read.
    pub(super) fn end(&self) -> u64 {
        self.base + self.filled as u64
    }

    /// The buffer's size in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.buffer.len()
    }
}
