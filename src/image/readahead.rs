//! Who reads on and on, and what he will want next.
//!
//! Problem: decoding, hashing and answering take turns when nobody begins before he is asked, and the kernel asks for 1 MiB at
//! a time. Objects are up to 2 GB, so "the next object" is no hint. Idea: readers are told apart by byte offset alone. A read
//! that begins where another ended belongs to the same reader; when he has read on for a while, what comes next is fetched into
//! the block cache by idle threads, further ahead the longer he goes on.
//!
//! Invariants: what is ahead of all readers together is bounded, and is a part of the block cache, not beside it; reads at
//! random places cause none; nothing waits for what is ahead. No I/O happens here.

use std::ops::Range;

/// Bytes that one must have read on before anything is fetched ahead: a file's first pages or a directory are no reason to.
const PROVEN_BYTES: u64 = 256 << 10;

/// Fetched by one job, in bytes, and the alignment of what it fetches. Jobs that decode one stream take turns at it, and each
/// turn that goes from one thread to another costs a wakeup: with 4 MiB a first pass takes 0.88 of the time that it takes
/// with 1 MiB. A small cache has smaller ones.
pub(super) const WINDOW_BYTES_MAX: u64 = 4 << 20;
const WINDOW_BYTES_MIN: u64 = 1 << 20;

/// Windows that are ahead of one reader at least, if there is room for windows at all.
const WINDOWS_AHEAD: u64 = 8;

/// Furthest ahead of one reader, in bytes: some stretches between restart points, so that several cores have work.
const AHEAD_BYTES_MAX: u64 = 32 << 20;

/// The part of the block cache that may be ahead of readers.
const CACHE_SHARE: u64 = 4;

/// Readers that are told apart, of all images together.
const READERS_MAX: usize = 64;

/// Who has not read for so many reads of others has stopped, and what is ahead of him no longer counts.
const STOPPED_READS: u64 = 1024;

/// Requests of one reader that are in flight at once come in any order, but not further apart than some of them.
const DISORDER: u64 = 4;

/// The readers of all images that share a cache.
#[derive(Debug)]
pub(super) struct Readers {
    ahead_bytes_max: u64,
    window_bytes: u64,
    clock: u64,
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    image: u64,
    /// The end of what he has read.
    at: u64,
    /// How much he has read on.
    proven: u64,
    /// The end of what was fetched for him.
    fetched_to: u64,
    used: u64,
}

impl Readers {
    /// For images whose blocks share a cache of this size, in bytes.
    pub(super) fn new(cache_bytes_max: u64) -> Self {
        let ahead_bytes_max = (cache_bytes_max / CACHE_SHARE).min(AHEAD_BYTES_MAX);
        let window_bytes = ahead_bytes_max / WINDOWS_AHEAD / WINDOW_BYTES_MIN * WINDOW_BYTES_MIN;
        let window_bytes = window_bytes.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        Self { ahead_bytes_max, window_bytes, clock: 0, readers: Vec::new() }
    }

    /// Takes note of a read of an image, and returns what is to be fetched of it now; it may be empty.
    pub(super) fn note(&mut self, image: u64, read: Range<u64>) -> Range<u64> {
        self.clock += 1;
        let len = read.end.saturating_sub(read.start);
        let near = len.saturating_mul(DISORDER);
        let is_his = |reader: &&mut Reader| {
            reader.image == image
                && read.start.saturating_add(near) >= reader.at
                && read.start <= reader.at.saturating_add(near)
        };
        let now = self.clock;
        let is_going_on = |reader: &&Reader| reader.ahead() > 0 && reader.used + STOPPED_READS > now;
        let active = self.readers.iter().filter(is_going_on).count().max(1) as u64;
        let all_ahead: u64 = self.readers.iter().filter(is_going_on).map(Reader::ahead).sum();
        let Some(reader) = self.readers.iter_mut().filter(is_his).min_by_key(|r| r.at.abs_diff(read.start))
        else {
            let new = Reader { image, at: read.end, proven: 0, fetched_to: 0, used: self.clock };
            let is_full = self.readers.len() >= READERS_MAX;
            match self.readers.iter_mut().min_by_key(|reader| reader.used) {
                Some(oldest) if is_full => *oldest = new,
                _ => self.readers.push(new),
            }
            return 0..0;
        };
        let others_ahead = all_ahead.saturating_sub(reader.ahead());
        reader.used = self.clock;
        reader.proven = reader.proven.saturating_add(read.end.saturating_sub(reader.at));
        reader.at = reader.at.max(read.end);
        if reader.proven < PROVEN_BYTES {
            return 0..0;
        }
        let most = (self.ahead_bytes_max / active).min(self.ahead_bytes_max.saturating_sub(others_ahead));
        let ahead = reader.proven.saturating_mul(2).min(most);
        // At first it is little and comes soon.
        let step = if ahead < self.window_bytes { WINDOW_BYTES_MIN } else { self.window_bytes };
        let to = reader.at.saturating_add(ahead) / step * step;
        // Where nothing is left of what was fetched, it begins anew.
        let from = if reader.fetched_to > reader.at { reader.fetched_to } else { reader.at };
        if to <= from {
            return 0..0;
        }
        reader.fetched_to = to;
        from..to
    }

    /// What one job fetches, in bytes.
    pub(super) fn window_bytes(&self) -> u64 {
        self.window_bytes
    }
}

impl Reader {
    /// How much is ahead of him, in bytes.
    fn ahead(&self) -> u64 {
        self.fetched_to.saturating_sub(self.at)
    }
}

/// A range cut at multiples of the window.
pub(super) fn windows(range: Range<u64>, window_bytes: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = range.end.min((start / window_bytes + 1) * window_bytes);
        (start < range.end).then_some(start..at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    /// Reads of `len` bytes at `offsets`; what was fetched for them.
    fn fetched(readers: &mut Readers, len: u64, offsets: impl IntoIterator<Item = u64>) -> Vec<Range<u64>> {
        let ranges = offsets.into_iter().map(|offset| readers.note(0, offset..offset + len));
        ranges.filter(|range| !range.is_empty()).collect()
    }

    #[test]
    fn one_who_reads_on_is_served_without_a_gap_and_no_byte_twice() {
        let mut readers = Readers::new(256 * MIB);
        for len in [4 * KIB, 128 * KIB, MIB] {
            let start = len * 1_000_000;
            let ranges = fetched(&mut readers, len, (0..500).map(|n| start + n * len));
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "{ranges:?}");
            let (first, last) = (&ranges[0], &ranges[ranges.len() - 1]);
            assert!(first.start <= start + 2 * PROVEN_BYTES + 2 * len, "{first:?}");
            let ahead = last.end - (start + 500 * len);
            assert!((MIB..=AHEAD_BYTES_MAX).contains(&ahead), "{ahead}");
        }
    }

    #[test]
    fn requests_in_flight_may_change_places() {
        let mut readers = Readers::new(256 * MIB);
        let order = (0..64).flat_map(|n| [2 * n + 1, 2 * n]).map(|n| n * MIB);
        let ranges = fetched(&mut readers, MIB, order);
        assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start), "{ranges:?}");
        assert!(ranges[ranges.len() - 1].end >= 128 * MIB);
    }

    #[test]
    fn random_reads_fetch_nothing() {
        let mut readers = Readers::new(256 * MIB);
        let mut seed = 1u64;
        // In a small image, where chance brings reads close together.
        let offsets = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % (16 * MIB) / (4 * KIB) * (4 * KIB)
        });
        assert_eq!(fetched(&mut readers, 4 * KIB, offsets.take(100_000)), []);
    }

    #[test]
    fn what_is_ahead_of_all_readers_is_bounded() {
        let mut readers = Readers::new(64 * MIB);
        let starts: Vec<u64> = (0..8).map(|n| n << 40).collect();
        let mut fetched_to = starts.clone();
        for n in 0..300 {
            for (image, (start, to)) in starts.iter().zip(&mut fetched_to).enumerate() {
                let range = readers.note(image as u64 / 2, start + n * MIB..start + (n + 1) * MIB);
                *to = (*to).max(range.end);
            }
        }
        let ahead: u64 = starts.iter().zip(&fetched_to).map(|(s, to)| to.saturating_sub(s + 300 * MIB)).sum();
        assert!(ahead <= 64 * MIB / CACHE_SHARE, "{ahead}");
        let mut readers = Readers::new(4 * MIB);
        let ranges = fetched(&mut readers, MIB, (0..100).map(|n| n * MIB));
        assert!(ranges.iter().all(|range| range.end - range.start <= MIB), "{ranges:?}");
    }

    #[test]
    fn windows_are_aligned() {
        let cut: Vec<_> = windows(5..2 * MIB + 7, MIB).collect();
        assert_eq!(cut, [5..MIB, MIB..2 * MIB, 2 * MIB..2 * MIB + 7]);
        assert_eq!(windows(3..3, MIB).count(), 0);
    }
}
