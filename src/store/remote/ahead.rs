//! Who reads an object on and on, and how much is fetched ahead of him.
//!
//! Problem: one journey takes 20 ms, in which a server could have sent 20 MB; but who reads at random places wants what he asks for and no
//! byte more. Idea: readers are told apart by where they read. Whoever goes on where a read ended, behind what he announced, or for long, is
//! fetched ahead for, the further the longer he goes on. Threads that take pieces of one object in turn are one reader: they read near each other, and in
//! what was fetched ahead.
//!
//! Invariants: no I/O happens here; the number of readers is bounded.

/// Most that is asked for at once, in bytes. Longer ones would gain nothing: several are on their way at once.
pub(super) const WINDOW_BYTES_MAX: u64 = 4 << 20;

/// Least that is asked for at once for who reads on.
pub(super) const WINDOW_BYTES_MIN: u64 = 256 << 10;

/// How far ahead of a reader windows are asked for, where there is memory: eighteen of the largest, since one connection carries only a part
/// of what a server can send. Of these some have come and wait for their turn, and what is on its way is what makes the speed: half as much
/// gave two thirds of what a server sends at 1 GB/s, 20 ms away, and this three quarters.
pub(super) const AHEAD_BYTES_MAX: u64 = 72 << 20;

/// How far ahead of a reader windows are asked for, for each byte that he has read in a row. So whoever reads on is at full speed after three
/// journeys, and whoever soon stops has wasted little.
pub(super) const AHEAD_FACTOR: u64 = 4;

/// In how many windows what is ahead is fetched, at least: they come side by side.
pub(super) const AHEAD_WINDOWS_MIN: u64 = 4;

/// How much somebody counts as having read who says that he will read on: sixteen megabytes are fetched for him at once.
const TOLD_BYTES: u64 = 4 << 20;

/// Who has read so much in pieces that nearly follow each other goes on.
const PROVEN_BYTES: u64 = 512 << 10;

/// How far behind the foremost thread of a reader another one may be: each of four reads a piece of 4 MiB, and may hold another one that waits
/// for its turn to be written. Windows that they have read whole take no memory meanwhile.
pub(super) const BEHIND_BYTES_MAX: u64 = 32 << 20;

/// How far from where one large read ended another one may begin and still be of the same reader.
const SIDE_BY_SIDE_BYTES: u64 = 4 << 20;

/// What a reader skips who takes only the bytes of blocks that are stored as they are: their headers.
const SKIPPED_BYTES_MAX: u64 = 64;

/// Readers of one object that are followed.
const STREAMS_MAX: usize = 16;

/// A reader that may go on where it was.
pub(super) struct Stream {
    /// Where it was.
    pub(super) next: u64,
    /// Behind what was asked for on its behalf.
    pub(super) asked: u64,
    /// Whether it goes on, so that more is asked for than it reads.
    pub(super) goes_on: bool,
    /// Whether its last read began just where the one before had ended.
    pub(super) is_exact: bool,
    /// How much it has read in a row, in bytes.
    run: u64,
    /// How often it has gone on behind what was fetched.
    surprises: u32,
}

impl Stream {
    /// One that was told to read on from `offset`.
    pub(super) fn reading_on(offset: u64) -> Self {
        Self { next: offset, asked: offset, goes_on: true, is_exact: false, run: TOLD_BYTES, surprises: 0 }
    }

    /// Takes note of a read up to `end`.
    pub(super) fn read(&mut self, offset: u64, end: u64) {
        self.next = self.next.max(end);
        self.run = self.run.saturating_add(end - offset);
    }

    /// Takes note that what it reads now is not fetched, and decides whether it goes on. One block may lie on both sides of a restart point, so who
    /// goes on behind one announcement gets what he asks for; who does so again goes on.
    pub(super) fn surprise(&mut self) {
        if self.is_exact {
            self.goes_on |= self.surprises > 0;
            self.surprises = self.surprises.saturating_add(1);
        }
    }

    /// How far ahead of it windows are asked for, in bytes, where there is memory for `share` bytes.
    pub(super) fn ahead(&self, share: u64) -> u64 {
        let most = self.run.saturating_mul(AHEAD_FACTOR).max(WINDOW_BYTES_MIN * AHEAD_WINDOWS_MIN);
        most.min(AHEAD_BYTES_MAX).min(share)
    }

    /// How much is asked for at once, in bytes.
    pub(super) fn window(&self) -> u64 {
        (self.ahead(AHEAD_BYTES_MAX) / AHEAD_WINDOWS_MIN).min(WINDOW_BYTES_MAX)
    }

    /// Whether a read at `offset` is in what is fetched for it, or was until lately.
    fn is_around(&self, offset: u64) -> bool {
        self.goes_on && (self.next.saturating_sub(BEHIND_BYTES_MAX)..self.asked).contains(&offset)
    }
}

/// The readers of one object, the latest last.
#[derive(Default)]
pub(super) struct Streams(Vec<Stream>);

impl Streams {
    /// Takes out the reader that a read of `len` bytes at `offset` belongs to, or a new one.
    pub(super) fn take(&mut self, offset: u64, len: u64) -> Stream {
        if let Some(at) = self.0.iter().rposition(|stream| stream.next == offset) {
            let mut stream = self.0.remove(at);
            stream.is_exact = true;
            return stream;
        }
        let nearly = self.0.iter().rposition(|stream| {
            offset.checked_sub(stream.next).is_some_and(|skipped| skipped <= SKIPPED_BYTES_MAX)
        });
        let around = || self.0.iter().rposition(|stream| stream.is_around(offset));
        // Small reads near each other are random reads, and get what they ask for.
        let is_near = |stream: &Stream| stream.next.abs_diff(offset) <= SIDE_BY_SIDE_BYTES;
        let beside = || (len >= WINDOW_BYTES_MIN).then(|| self.0.iter().rposition(is_near)).flatten();
        match nearly.or_else(around).or_else(beside) {
            Some(at) => {
                let mut stream = self.0.remove(at);
                stream.is_exact = false;
                stream.goes_on |= stream.run >= PROVEN_BYTES;
                stream
            }
            None => {
                Stream { next: offset, asked: offset, goes_on: false, is_exact: false, run: 0, surprises: 0 }
            }
        }
    }

    /// Puts it back, or a new one.
    pub(super) fn put(&mut self, stream: Stream) {
        if self.0.len() == STREAMS_MAX {
            self.0.remove(0);
        }
        self.0.push(stream);
    }

    /// Whether what begins at `offset` is read by one that goes on.
    pub(super) fn is_followed(&self, offset: u64) -> bool {
        self.0.iter().any(|stream| stream.is_around(offset))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `[offset, offset + len)`.
    fn read(streams: &mut Streams, offset: u64, len: u64) -> (bool, bool) {
        let mut stream = streams.take(offset, len);
        stream.read(offset, offset + len);
        let found = (stream.is_exact, stream.goes_on);
        streams.put(stream);
        found
    }

    #[test]
    fn small_reads_near_each_other_are_readers_of_their_own() {
        let mut streams = Streams::default();
        for at in [0, 300, 200, 100] {
            assert_eq!(read(&mut streams, at << 10, 16 << 10), (false, false));
        }
        assert_eq!(streams.len(), 4);
        assert_eq!(read(&mut streams, 216 << 10, 1), (true, false));
    }

    #[test]
    fn who_skips_headers_goes_on_once_he_has_read_for_long() {
        let mut streams = Streams::default();
        let mut at = 0;
        for round in 0..6 {
            assert_eq!(read(&mut streams, at, 128 << 10), (false, round * (128 << 10) >= PROVEN_BYTES));
            at += (128 << 10) + 11;
        }
        assert_eq!(streams.len(), 1);
    }

    #[test]
    fn what_was_fetched_for_a_reader_is_read_by_his_threads_in_any_order() {
        let mut streams = Streams::default();
        let mut one = Stream::reading_on(100);
        assert!(one.ahead(u64::MAX) == 16 << 20 && one.window() == 4 << 20);
        assert_eq!(one.ahead(5), 5, "there is memory for no more");
        one.asked = 8 << 20;
        streams.put(one);
        assert!(streams.is_followed(5 << 20) && !streams.is_followed(9 << 20));
        for mib in [5, 1, 7] {
            assert_eq!(read(&mut streams, mib << 20, 1000), (false, true));
        }
        assert_eq!(streams.len(), 1);
    }

    #[test]
    fn who_goes_on_behind_one_announcement_reads_on_only_if_he_does_so_again() {
        let mut streams = Streams::default();
        let mut goes_on = |at: u64| {
            let mut stream = streams.take(at << 20, 128 << 10);
            stream.surprise();
            stream.read(at << 20, (at + 1) << 20);
            let goes_on = stream.goes_on;
            streams.put(stream);
            goes_on
        };
        assert_eq!([5, 6, 7, 8].map(&mut goes_on), [false, false, true, true]);
        assert_eq!([105, 106].map(&mut goes_on), [false, false]);
    }

    #[test]
    fn readers_are_bounded_and_the_latest_is_kept() {
        let mut streams = Streams::default();
        (0..100).for_each(|n| assert!(!read(&mut streams, n << 30, 10).0));
        assert_eq!(streams.len(), STREAMS_MAX);
        assert!(read(&mut streams, (99 << 30) + 10, 10).0);
    }
}
