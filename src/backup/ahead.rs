//! Digests around those that are read, asked for in time.
//!
//! Problem: a random read of an image needs one digest out of 72 bytes of a file, and waits for the disk before it can wait for its data. Idea:
//! the first read of each window of the file tells the store that the rest of it will be wanted; nobody waits for that.
//!
//! Invariant: a window is told once, and takes one bit.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::ObjectSource;

/// Bytes of a window: the digests of 14 MiB of volume in usual blocks. A first read of a large volume makes the disk read no more
/// than this for nothing.
const WINDOW_BYTES: u64 = 32 << 10;

/// Windows that are told at once where somebody reads on: each request is a journey. The digests of 114 MiB of volume.
const WINDOWS_AT_ONCE: u64 = 8;

/// Which windows have been told.
pub(super) struct Ahead(Box<[AtomicU64]>);

impl Ahead {
    /// For a file that is `len_bytes` long: 32 bytes for each 8 MiB of it.
    pub(super) fn new(len_bytes: u64) -> Self {
        let words = len_bytes.div_ceil(WINDOW_BYTES).div_ceil(64);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Something at `offset` was read.
    pub(super) fn touch(&self, source: &dyn ObjectSource, offset: u64) {
        let window = offset / WINDOW_BYTES;
        if self.is_first(window) {
            source.will_need(window * WINDOW_BYTES, WINDOW_BYTES);
        }
    }

    /// Somebody who reads on will come to `bytes`.
    pub(super) fn announce(&self, source: &dyn ObjectSource, bytes: &Range<u64>) {
        let at_once = WINDOW_BYTES * WINDOWS_AT_ONCE;
        for first in (bytes.start / at_once..bytes.end.div_ceil(at_once)).map(|n| n * WINDOWS_AT_ONCE) {
            // What was told before has been fetched, and perhaps read and gone: only the windows between are asked for.
            let mut news = first..first;
            for window in first..first + WINDOWS_AT_ONCE {
                if self.is_first(window) {
                    news.end = window + 1;
                    continue;
                }
                tell(source, &news);
                news = window + 1..window + 1;
            }
            tell(source, &news);
        }
    }

    /// Whether a window had not been told before; now it is.
    fn is_first(&self, window: u64) -> bool {
        let Some(word) = usize::try_from(window / 64).ok().and_then(|at| self.0.get(at)) else {
            return false;
        };
        let bit = 1 << (window % 64);
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}

fn tell(source: &dyn ObjectSource, windows: &Range<u64>) {
    if !windows.is_empty() {
        source.will_need(windows.start * WINDOW_BYTES, (windows.end - windows.start) * WINDOW_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::error::Result;
    use crate::store::{ObjectStat, ObjectVersion, Ownership};

    /// Writes down what it is told.
    struct Told(ObjectStat, Mutex<Vec<(u64, u64)>>);

    impl ObjectSource for Told {
        fn stat(&self) -> &ObjectStat {
            &self.0
        }

        fn read_at(&self, _: &mut [u8], _: u64) -> Result<usize> {
            Ok(0)
        }

        fn will_need(&self, offset: u64, len: u64) {
            self.1.lock().unwrap().push((offset, len));
        }
    }

    #[test]
    fn no_window_is_told_twice_and_who_reads_on_is_told_of_many_at_once() {
        let owner = Ownership { mode: 0o400, uid: 0, gid: 0 };
        let stat = ObjectStat { len_bytes: 0, version: ObjectVersion("".into()), modified: None, owner };
        let source = Told(stat, Mutex::default());
        let told = || std::mem::take(&mut *source.1.lock().unwrap());
        let many = WINDOW_BYTES * WINDOWS_AT_ONCE;
        let ahead = Ahead::new(4 * many);
        ahead.touch(&source, 5);
        ahead.touch(&source, WINDOW_BYTES - 1);
        assert_eq!(told(), [(0, WINDOW_BYTES)]);
        ahead.announce(&source, &(0..10));
        ahead.announce(&source, &(10..many + 1));
        assert_eq!(told(), [(WINDOW_BYTES, many - WINDOW_BYTES), (many, many)]);
        ahead.touch(&source, 2 * many - 1);
        ahead.announce(&source, &(many..2 * many));
        assert_eq!(told(), []);
        // Behind the end of the file there is nothing to be told of.
        ahead.announce(&source, &(100 * many..101 * many));
        assert_eq!(told(), []);
    }
}
