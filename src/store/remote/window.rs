//! Stored bytes that were fetched, or are on their way.
//!
//! Problem: readers ask for 72 bytes, for 16 KiB, or for one object from its beginning to its end; each request costs a journey to the server and
//! back. Idea: what is fetched at once is a *window* of an object. It fills while it is read, several readers may wait for it, and all windows of
//! a store together have a budget of memory.
//!
//! Invariants: a byte of a window never changes once it is there; a window that failed or gave way says so and hands out nothing made up; the
//! bytes of all windows stay within [`BUDGET_BYTES`] and what was [allowed](Shelf::allow), but for those that somebody waits for; besides, [`SPARE_MIN`] of the largest windows'
//! memory is kept for the next ones, and more only for those that are on their way and within the budget.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::ahead::WINDOW_BYTES_MAX;
use crate::error::{Error, Result};

/// Memory for all windows of a store, in bytes, unless more is allowed.
const BUDGET_BYTES: u64 = 48 << 20;

/// How much more may be allowed, in bytes: with it one reader has [`AHEAD_BYTES_MAX`](super::ahead::AHEAD_BYTES_MAX) ahead.
const ALLOWED_BYTES_MAX: u64 = 48 << 20;

/// How much of the budget may be ahead of readers, in quarters; the rest is what is being read.
const AHEAD_QUARTERS: u64 = 3;

/// Of how many windows of the largest size the memory is kept though none is on its way: what goes back to the kernel comes back page by page,
/// cleared, which takes a fifth of the time of receiving.
const SPARE_MIN: usize = 1;

/// The part of a window that may be left of one that was read.
const UNREAD_SHARE: u64 = 512;

/// Places for windows that are kept free at least when those of windows that went are taken away.
const PLACES_MIN: usize = 64;

/// How many turns at reading ahead are remembered.
const GOERS_MAX: usize = 32;

/// The windows of a store, oldest first.
#[derive(Default)]
pub(super) struct Shelf {
    windows: Mutex<VecDeque<Weak<Window>>>,
    bytes: AtomicU64,
    /// Beside [`BUDGET_BYTES`].
    allowed_bytes: AtomicU64,
    spare: Mutex<Spare>,
    /// Whom something was fetched ahead for lately, the latest last.
    goers: Mutex<VecDeque<usize>>,
}

/// Memory of windows of the largest size that went, for those that come.
#[derive(Default)]
struct Spare {
    kept: Vec<Vec<u8>>,
    /// Windows of that size of which no byte has come, so that they have no memory yet.
    awaited: usize,
}

impl Spare {
    /// Memory for one that was awaited.
    fn take(&mut self) -> Option<Vec<u8>> {
        self.awaited = self.awaited.saturating_sub(1);
        self.kept.pop()
    }

    /// One that was awaited needs none; what is left over.
    fn give_up(&mut self) -> Vec<Vec<u8>> {
        self.awaited = self.awaited.saturating_sub(1);
        self.trim()
    }

    /// Keeps `memory`, if it may be needed; what is left over.
    fn put(&mut self, mut memory: Vec<u8>) -> Vec<Vec<u8>> {
        memory.clear();
        self.kept.push(memory);
        self.trim()
    }

    fn trim(&mut self) -> Vec<Vec<u8>> {
        let kept = self.kept.len().min(self.awaited.max(SPARE_MIN));
        self.kept.split_off(kept)
    }
}

/// A range of an object.
pub(super) struct Window {
    /// Where in the object it begins.
    pub(super) start: u64,
    /// How long it will be, in bytes; never 0.
    pub(super) len: u64,
    state: Mutex<State>,
    moved: Condvar,
    was_read: AtomicBool,
    /// How many bytes were read, those that were read twice counted twice.
    read_bytes: AtomicU64,
    shelf: Arc<Shelf>,
}

struct State {
    bytes: Vec<u8>,
    end: Option<End>,
}

/// Which windows give way.
#[derive(Clone, Copy)]
enum Round {
    Done,
    Unread,
}

/// Why a window that is not full gets no more.
enum End {
    Failed(Error),
    GaveWay,
}

/// What a window says to a reader.
pub(super) enum Answer {
    /// So many bytes were read.
    Read(usize),
    /// What it should have held has to be asked for again.
    Gone,
}

impl Shelf {
    /// Lets windows take up to so many bytes more; how many of them they will take.
    pub(super) fn allow(&self, bytes_max: u64) -> u64 {
        let bytes = bytes_max.min(ALLOWED_BYTES_MAX);
        self.allowed_bytes.store(bytes, Ordering::Relaxed);
        bytes
    }

    fn budget(&self) -> u64 {
        BUDGET_BYTES + self.allowed_bytes.load(Ordering::Relaxed)
    }

    /// Makes room and a window in it; `None` where there is no room and the caller can do without. That caller drives out only what was
    /// read: what others have fetched ahead would be fetched twice else.
    pub(super) fn window(self: &Arc<Self>, start: u64, len: u64, is_needed: bool) -> Option<Arc<Window>> {
        let has_room = self.make_room(len, is_needed);
        if !has_room && !is_needed {
            return None;
        }
        self.bytes.fetch_add(len, Ordering::Relaxed);
        if len == WINDOW_BYTES_MAX {
            lock(&self.spare).awaited += 1;
        }
        let window = Arc::new(Window {
            start,
            len,
            state: Mutex::new(State { bytes: Vec::new(), end: None }),
            moved: Condvar::new(),
            was_read: AtomicBool::new(false),
            read_bytes: AtomicU64::new(0),
            shelf: self.clone(),
        });
        let mut windows = lock(&self.windows);
        if windows.len() == windows.capacity() {
            // One that stays in front would keep the places of all that went; half of them free makes this rare.
            windows.retain(|window| window.strong_count() > 0);
            let live = windows.len();
            windows.reserve(live.max(PLACES_MIN));
        }
        windows.push_back(Arc::downgrade(&window));
        drop(windows);
        Some(window)
    }

    #[cfg(test)]
    fn places(&self) -> usize {
        lock(&self.windows).capacity()
    }

    /// How much may be ahead of the readers of one object, told apart from others by `goer`: those for whom something was fetched ahead lately
    /// have equal parts of three quarters of the budget.
    pub(super) fn share(&self, goer: usize) -> u64 {
        let mut goers = lock(&self.goers);
        if goers.len() == GOERS_MAX {
            goers.pop_front();
        }
        goers.push_back(goer);
        let others =
            goers.iter().enumerate().filter(|(at, one)| goers.iter().take(*at).all(|known| known != *one));
        self.budget() / 4 * AHEAD_QUARTERS / others.count().max(1) as u64
    }

    /// Lets the oldest windows give way that were read, and (`is_needed`) then those that nobody has read since the last time,
    /// until `len` more bytes fit.
    fn make_room(&self, len: u64, is_needed: bool) -> bool {
        let fits = || self.bytes.load(Ordering::Relaxed) + len <= self.budget();
        let mut windows = lock(&self.windows);
        // First go those that were read whole, then those that were not read since the last time; the mark of that is taken first.
        let rounds: &[Round] =
            if is_needed { &[Round::Done, Round::Unread, Round::Unread] } else { &[Round::Done] };
        for round in rounds {
            for _ in 0..windows.len() {
                if fits() {
                    break;
                }
                let Some(oldest) = windows.pop_front() else { break };
                let Some(window) = oldest.upgrade() else { continue };
                let may_go = match round {
                    Round::Done => window.is_done() || window.is_spent(),
                    Round::Unread => !window.was_read.swap(false, Ordering::Relaxed),
                };
                if !may_go || !window.give_way() {
                    windows.push_back(oldest);
                }
            }
        }
        // Those whose object was closed have left nothing but their place.
        while windows.front().is_some_and(|window| window.strong_count() == 0) {
            windows.pop_front();
        }
        fits()
    }

    /// Memory for a window of `len` bytes that has none.
    fn memory(&self, len: u64) -> Vec<u8> {
        let spare = if len == WINDOW_BYTES_MAX { lock(&self.spare).take() } else { None };
        spare.unwrap_or_else(|| Vec::with_capacity(len as usize))
    }

    /// Takes back the memory of a window of `len` bytes; it may have none.
    fn take_back(&self, memory: Vec<u8>, len: u64) {
        if len != WINDOW_BYTES_MAX {
            return;
        }
        let mut spare = lock(&self.spare);
        let left_over = if memory.capacity() == 0 { spare.give_up() } else { spare.put(memory) };
        // Giving memory back to the kernel takes its time.
        drop(spare);
        drop(left_over);
    }

    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Window {
    /// The offset behind its last byte.
    pub(super) fn end(&self) -> u64 {
        self.start + self.len
    }

    pub(super) fn covers(&self, offset: u64) -> bool {
        (self.start..self.end()).contains(&offset)
    }

    /// How many bytes are there.
    pub(super) fn filled(&self) -> u64 {
        lock(&self.state).bytes.len() as u64
    }

    /// Whether the byte at `offset`, which it covers, is there.
    pub(super) fn holds(&self, offset: u64) -> bool {
        let state = lock(&self.state);
        offset - self.start < state.bytes.len() as u64
    }

    /// Whether all of them are.
    pub(super) fn is_full(&self) -> bool {
        self.filled() == self.len
    }

    /// Adds what came; what is more than its length is not taken.
    pub(super) fn push(&self, piece: &[u8]) {
        let mut state = lock(&self.state);
        if state.end.is_none() {
            if state.bytes.capacity() == 0 {
                state.bytes = self.shelf.memory(self.len);
            }
            let room = self.len as usize - state.bytes.len();
            state.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        drop(state);
        self.moved.notify_all();
    }

    /// It gets no more bytes.
    pub(super) fn fail(&self, error: Error) {
        lock(&self.state).end.get_or_insert(End::Failed(error));
        self.moved.notify_all();
    }

    /// Whether as much was read as it holds: who reads in order, alone or with others, needs it no more.
    pub(super) fn is_done(&self) -> bool {
        // Headers of blocks that are stored as they are may be skipped.
        self.read_bytes.load(Ordering::Relaxed) >= self.len - self.len / UNREAD_SHARE
    }

    /// Whether any of it was read.
    pub(super) fn is_begun(&self) -> bool {
        self.read_bytes.load(Ordering::Relaxed) > 0
    }

    /// Whether it has failed or given way, so that another one is needed.
    pub(super) fn is_spent(&self) -> bool {
        lock(&self.state).end.is_some()
    }

    /// Reads at `offset`, which it covers, as much as `buf` and the window hold; waits until that is there, `patience` at most for each
    /// piece.
    pub(super) fn read(
        &self,
        buf: &mut [u8],
        offset: u64,
        patience: Duration,
    ) -> Result<Answer, WindowError> {
        let from = (offset - self.start) as usize;
        let until = (self.len as usize).min(from.saturating_add(buf.len()));
        let mut state = lock(&self.state);
        while state.bytes.len() < until {
            match &state.end {
                Some(End::Failed(error)) if state.bytes.len() <= from => {
                    return Err(WindowError::Failed(error.clone()));
                }
                Some(End::GaveWay) => return Ok(Answer::Gone),
                // What came before it failed is right, and the next read tells.
                Some(End::Failed(_)) => break,
                None => {}
            }
            let before = state.bytes.len();
            let (woken, timeout) =
                self.moved.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if timeout.timed_out() && state.bytes.len() == before && state.end.is_none() {
                return Err(WindowError::Late);
            }
        }
        Ok(Answer::Read(self.copy(&state, from, &mut buf[..until - from])))
    }

    /// Reads at `offset`, which it covers, what is there; `None` where that is nothing.
    pub(super) fn read_now(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        let from = (offset - self.start) as usize;
        let state = lock(&self.state);
        (from < state.bytes.len()).then(|| self.copy(&state, from, buf))
    }

    /// Copies what is there from `from` on.
    fn copy(&self, state: &State, from: usize, buf: &mut [u8]) -> usize {
        let read = buf.len().min(state.bytes.len() - from);
        buf[..read].copy_from_slice(&state.bytes[from..from + read]);
        self.was_read.store(true, Ordering::Relaxed);
        self.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        read
    }

    /// Frees its bytes if all are there; those that are on their way are waited for.
    fn give_way(&self) -> bool {
        let mut state = lock(&self.state);
        if state.end.is_none() && (state.bytes.len() as u64) < self.len {
            return false;
        }
        let had = matches!(state.end, Some(End::GaveWay));
        state.end = Some(End::GaveWay);
        if !had {
            self.shelf.take_back(std::mem::take(&mut state.bytes), self.len);
            self.shelf.bytes.fetch_sub(self.len, Ordering::Relaxed);
        }
        true
    }
}

/// Why a window gives nothing.
#[derive(Debug)]
pub(super) enum WindowError {
    /// It was not fetched.
    Failed(Error),
    /// Nothing came in time.
    Late,
}

impl Drop for Window {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if !matches!(state.end, Some(End::GaveWay)) {
            self.shelf.take_back(std::mem::take(&mut state.bytes), self.len);
            self.shelf.bytes.fetch_sub(self.len, Ordering::Relaxed);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code between the parts of a change can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const SOON: Duration = Duration::from_millis(10);

    fn full(shelf: &Arc<Shelf>, start: u64, len: u64) -> Option<Arc<Window>> {
        let window = shelf.window(start, len, false)?;
        window.push(&vec![start as u8; len as usize]);
        Some(window)
    }

    #[test]
    fn a_window_is_read_while_it_fills() {
        let shelf = Arc::new(Shelf::default());
        let window = shelf.window(100, 10, true).unwrap();
        window.push(b"01234");
        let mut buf = [0; 4];
        assert!(matches!(window.read(&mut buf, 101, SOON), Ok(Answer::Read(4))));
        assert_eq!(&buf, b"1234");
        assert!(matches!(window.read(&mut buf, 104, SOON), Err(WindowError::Late)));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut buf = [0; 100];
                let Ok(Answer::Read(n)) = window.read(&mut buf, 104, Duration::from_secs(60)) else {
                    panic!()
                };
                buf[..n].to_vec()
            });
            window.push(b"567");
            window.push(b"89 and more");
            assert_eq!(reader.join().unwrap(), b"456789");
        });
    }

    #[test]
    fn what_is_there_is_read_without_waiting() {
        let shelf = Arc::new(Shelf::default());
        let window = shelf.window(100, 10, true).unwrap();
        let mut buf = [0; 20];
        assert_eq!((window.holds(100), window.read_now(&mut buf, 100)), (false, None));
        window.push(b"01234");
        assert_eq!((window.holds(104), window.holds(105)), (true, false));
        assert_eq!((window.read_now(&mut buf, 103), &buf[..2]), (Some(2), &b"34"[..]));
        assert_eq!(window.read_now(&mut buf[..1], 103), Some(1));
        assert!(!window.is_done());
        window.give_way();
        assert_eq!(window.read_now(&mut buf, 103), Some(2), "it is on its way");
        window.push(b"56789");
        window.give_way();
        assert_eq!(window.read_now(&mut buf, 103), None);
    }

    #[test]
    fn memory_of_windows_that_went_is_for_the_next_ones_and_bounded() {
        let shelf = Arc::new(Shelf::default());
        let push = |byte: u8| {
            let window = shelf.window(0, WINDOW_BYTES_MAX, true).unwrap();
            window.push(&[byte]);
            window
        };
        let first = push(1);
        let memory = |window: &Window| {
            let state = lock(&window.state);
            (state.bytes.as_ptr() as usize, state.bytes.clone())
        };
        let (place, _) = memory(&first);
        drop(first);
        let again = push(2);
        assert_eq!(memory(&again), (place, vec![2]));
        let spare = || {
            let spare = lock(&shelf.spare);
            (spare.kept.len(), spare.awaited)
        };
        drop((0..4).map(push).collect::<Vec<_>>());
        assert_eq!(spare(), (SPARE_MIN, 0));
        drop((again, shelf.window(0, 10, true)));
        assert_eq!((spare(), shelf.bytes()), ((SPARE_MIN, 0), 0));

        // More only for what is on its way.
        let filled: Vec<_> = (0..4).map(push).collect();
        let coming: Vec<_> = (0..3).map(|at| shelf.window(at, WINDOW_BYTES_MAX, true).unwrap()).collect();
        drop(filled);
        assert_eq!(spare(), (3, 3));
        coming[0].push(b"0");
        coming[1].fail(Error::new(ErrorKind::StoreIo, "torn"));
        drop(coming);
        assert_eq!(spare(), (SPARE_MIN, 0));
    }

    #[test]
    fn windows_that_went_leave_no_places_behind_one_that_stays() {
        let shelf = Arc::new(Shelf::default());
        let first = full(&shelf, 0, 1).unwrap();
        for start in 1..10_000 {
            full(&shelf, start, 1).unwrap();
        }
        assert_eq!(shelf.bytes(), 1);
        assert!(shelf.places() <= 4 * PLACES_MIN, "{}", shelf.places());
        drop(first);
    }

    #[test]
    fn what_came_before_a_failure_is_read_and_nothing_behind_it() {
        let shelf = Arc::new(Shelf::default());
        let window = shelf.window(0, 10, true).unwrap();
        window.push(b"012");
        window.fail(Error::new(ErrorKind::StoreIo, "torn"));
        window.push(b"345");
        let mut buf = [0; 10];
        assert!(matches!(window.read(&mut buf, 0, SOON), Ok(Answer::Read(3))));
        assert!(matches!(window.read(&mut buf, 3, SOON), Err(WindowError::Failed(_))));
        assert!(window.is_spent());
    }

    #[test]
    fn windows_give_way_and_those_that_are_read_last_longest() {
        let shelf = Arc::new(Shelf::default());
        let quarter = BUDGET_BYTES / 4;
        let mut windows: Vec<_> = (0..4).map(|at| full(&shelf, at, quarter).unwrap()).collect();
        let mut buf = [0; 1];
        windows[0].read(&mut buf, 0, SOON).unwrap();
        windows.push(shelf.window(4, quarter, true).unwrap());
        let gone: Vec<bool> = windows.iter().map(|window| window.is_spent()).collect();
        assert_eq!(gone, [false, true, false, false, false]);
        assert!(matches!(windows[1].read(&mut buf, 1, SOON), Ok(Answer::Gone)));
        assert_eq!(shelf.bytes(), BUDGET_BYTES);
        windows.clear();
        assert_eq!(shelf.bytes(), 0);
    }

    #[test]
    fn what_is_fetched_ahead_drives_out_what_was_read_and_nothing_else() {
        let shelf = Arc::new(Shelf::default());
        let quarter = BUDGET_BYTES / 4;
        let windows: Vec<_> = (0..4).map(|at| full(&shelf, at * quarter, quarter).unwrap()).collect();
        assert!(full(&shelf, 4 * quarter, quarter).is_none(), "nobody has read anything");
        let mut half = vec![0; quarter as usize / 2];
        windows[2].read(&mut half, 2 * quarter, SOON).unwrap();
        assert!(full(&shelf, 4 * quarter, quarter).is_none(), "somebody is reading");
        windows[2].read(&mut half, 2 * quarter + quarter / 2, SOON).unwrap();
        assert!(full(&shelf, 4 * quarter, quarter).is_some());
        let gone: Vec<bool> = windows.iter().map(|window| window.is_spent()).collect();
        assert_eq!(gone, [false, false, true, false]);
    }

    #[test]
    fn who_was_fetched_ahead_for_lately_has_an_equal_part() {
        let shelf = Shelf::default();
        let all = BUDGET_BYTES / 4 * AHEAD_QUARTERS;
        assert_eq!([1, 1, 2, 1, 3].map(|goer| shelf.share(goer)), [all, all, all / 2, all / 2, all / 3]);
        for _ in 0..GOERS_MAX {
            shelf.share(2);
        }
        assert_eq!(shelf.share(2), all);
        assert_eq!(shelf.allow(4 << 20), 4 << 20);
        assert_eq!(shelf.share(2), all + (3 << 20));
        assert_eq!(shelf.allow(u64::MAX), ALLOWED_BYTES_MAX);
        assert_eq!(shelf.share(2), super::super::ahead::AHEAD_BYTES_MAX);
    }

    #[test]
    fn what_is_on_its_way_keeps_its_place_and_the_needed_gets_one_anyway() {
        let shelf = Arc::new(Shelf::default());
        let on_its_way = shelf.window(0, BUDGET_BYTES, true).unwrap();
        assert!(shelf.window(0, 1, false).is_none());
        assert!(shelf.window(0, 1, true).is_some());
        on_its_way.fail(Error::new(ErrorKind::StoreIo, "torn"));
        assert!(shelf.window(0, 1, false).is_some());
    }
}
