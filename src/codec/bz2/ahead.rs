//! Has the next blocks decoded while a reader is still busy with this one.
//!
//! Problem: one core decodes 46 MB/s, and a block tells where the next one begins only when it has been decoded. Idea: the
//! scanner finds where blocks seem to begin, and idle threads decode from there, without a word about whether it is
//! true. The reader goes from block to block as if nobody helped, and finds some of them done.
//!
//! Invariants: what is decoded ahead never changes what is read, only when. A place that was no block costs one decode
//! and is never looked at; a reader that meets too many of these goes on alone, so that an object full of magics costs
//! at most about twice its decoding. The stored bytes are scanned once for each reader.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Object;
use super::decoded::Key;
use super::scan::{self, MAGIC_BITS, Magic};
use super::window::Window;

/// Blocks ahead of one reader for each thread: one that it decodes, and one for when it is done.
const BLOCKS_PER_THREAD: usize = 2;

/// How far ahead is scanned, in stored bytes. A block of random data has 900 KB, so this is more than all the blocks ahead;
/// it bounds how long one read may look where there are none.
const SCAN_BYTES_MAX: u64 = 16 << 20;

/// How many more places than half of all may turn out to be no blocks before a reader goes on alone.
const WASTED_MAX: u64 = 8;

/// Stored bytes scanned at a time.
const SCAN_STEP_BYTES: usize = 4096;

/// The blocks ahead of one reader.
pub(super) struct Ahead {
    window: Window,
    /// The bit from which on there was no scan yet.
    scanned: u64,
    /// The level of the stream to which the blocks are thought to belong.
    level: u8,
    /// The blocks noted and not reached, in order, by the bit at which they begin.
    wanted: VecDeque<u64>,
    used: u64,
    wasted: u64,
}

impl Ahead {
    /// For a reader in a stream of `level`.
    pub(super) fn new(object: &Object, level: u8) -> Self {
        let window = Window::new(object.source.clone());
        Self { window, scanned: 0, level, wanted: VecDeque::new(), used: 0, wasted: 0 }
    }

    /// Notes that the reader came to the block at `at` of a stream of `level`, and drops those it did not come to.
    pub(super) fn reached(&mut self, object: &Object, at: u64, level: u8) {
        while let Some(first) = self.wanted.front().copied().filter(|first| *first <= at) {
            self.wanted.pop_front();
            if first == at && level == self.level {
                self.used += 1;
            } else {
                self.wasted += 1;
                object.decoded.release(self.key(object, first));
            }
        }
        if level != self.level {
            self.wasted += self.wanted.len() as u64;
            self.release_all(object);
            (self.level, self.scanned) = (level, at + 1);
        }
    }

    /// Has blocks behind bit `from` decoded, as many as are worth it.
    pub(super) fn top_up(&mut self, object: &Arc<Object>, from: u64) {
        let blocks_max = object.workers.threads() * BLOCKS_PER_THREAD;
        if self.wasted > self.used + WASTED_MAX {
            return;
        }
        self.scanned = self.scanned.max(from);
        let scan_end = from.saturating_add(SCAN_BYTES_MAX * 8);
        while self.wanted.len() < blocks_max {
            let Some(at) = self.next_place(scan_end) else { return };
            let key = self.key(object, at);
            let is_queued = match object.decoded.enqueue(key) {
                Some(false) => true,
                Some(true) => {
                    let own = object.clone();
                    let is_queued = object.workers.submit(move || own.decode_ahead(key));
                    if !is_queued {
                        object.decoded.release(key);
                    }
                    is_queued
                }
                None => false,
            };
            if !is_queued {
                return; // the place is found again the next time
            }
            self.wanted.push_back(at);
            self.scanned = at + MAGIC_BITS;
        }
    }

    /// Looks for the next place from bit `from` on.
    pub(super) fn look_from(&mut self, from: u64) {
        self.scanned = from;
    }

    /// The next place at which a block seems to begin. Stops at the end of the object, and where the store fails: who
    /// needs those bytes will be told.
    pub(super) fn next_place(&mut self, scan_end: u64) -> Option<u64> {
        while self.scanned < scan_end {
            let first = self.scanned / 8;
            let bytes = self.window.at(first, SCAN_STEP_BYTES).ok()?;
            match scan::find(bytes, self.scanned % 8) {
                Some((bit, Magic::Block)) => {
                    self.scanned = first * 8 + bit;
                    return Some(self.scanned);
                }
                Some((bit, Magic::End)) => self.scanned = first * 8 + bit + 1,
                None if bytes.len() < SCAN_STEP_BYTES => return None,
                None => self.scanned = (first + bytes.len() as u64) * 8 - (MAGIC_BITS - 1),
            }
        }
        None
    }

    /// Gives up what is ahead.
    pub(super) fn release_all(&mut self, object: &Object) {
        for at in std::mem::take(&mut self.wanted) {
            object.decoded.release(self.key(object, at));
        }
    }

    fn key(&self, object: &Object, at: u64) -> Key {
        Key { object: object.id, at, level: self.level }
    }

    /// About how much memory this holds, in bytes. The blocks ahead are not this reader's but the table's, which bounds them:
    /// counted here once more, for each of several readers that go side by side, they would drive those readers out.
    pub(super) fn memory_bytes(&self) -> usize {
        self.window.memory_bytes() + self.wanted.capacity() * size_of::<u64>()
    }
}
