//! Who does what next; a lock for some instructions, and no I/O.
//!
//! Pieces are made in any order by any thread, and wait in their window's lane until those before them are in order. What
//! takes md5 long is put in order for several windows at once, which [`md5`](super::md5) makes worth waiting for: so all threads
//! rather make pieces until enough windows have one ready, or no more may be begun.
//!
//! Holes are windows of one piece, which takes nothing but a part of the digest file to be written; and one file is written by one
//! thread at a time, whatever the others do. So one thread at most is given a hole, and windows behind some holes may be begun.
//!
//! Invariant: as long as anything is left to do, there is a job to take or some thread has one; for the earliest piece of a
//! lane is with a thread, or ready.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use super::md5::LANES;
use super::window::{Done, Window};
use crate::error::Error;

/// How many holes may wait: enough to find the data behind them, few enough to be looked through for each job.
const HOLES_MAX: usize = 256;

/// How many windows may wait to be ended, each with some open files.
const COMPLETE_MAX: usize = 16;

/// How many objects may wait for those of earlier windows to be listed: about 10 MiB.
const OBJECTS_WAITING_MAX: u64 = 50_000;

/// What does not change.
pub(super) struct Bounds {
    pub(super) piece_bytes: u64,
    /// How many windows the volume has.
    pub(super) windows: u64,
    /// How far they may be ahead of the first unfinished one.
    pub(super) windows_ahead: u64,
    /// How many that are no holes may be in progress.
    pub(super) lanes: usize,
    /// How many pieces may be begun and not in order.
    pub(super) pieces: usize,
}

#[derive(Default)]
pub(super) struct Schedule<'a> {
    pub(super) failure: Option<Error>,
    /// The first window that nobody began.
    next_window: u64,
    /// Windows that are listed, from the volume's beginning on.
    listed: u64,
    /// Objects of later ones, which wait to be listed.
    waiting: u64,
    /// Windows that somebody looks at for holes, or ends.
    between: usize,
    /// Those of them that are looked at.
    opening: usize,
    lanes: Vec<Lane<'a>>,
    /// How many of these are holes, and whether a thread is at one.
    holes: usize,
    is_at_hole: bool,
    /// Windows of which all is in order.
    complete: VecDeque<Arc<Window<'a>>>,
    /// Threads that wait for a job.
    pub(super) sleepers: usize,
    /// Pieces begun and not in order.
    outstanding: usize,
}

/// A window in progress.
struct Lane<'a> {
    window: Arc<Window<'a>>,
    /// Its holes that were not given out; each is one piece.
    holes: VecDeque<Range<u64>>,
    /// Whether all of it is one.
    is_hole: bool,
    /// What of it was given out.
    next_piece: u64,
    next_offset: u64,
    /// Its pieces that were made, and are not in order.
    made: BTreeMap<u64, Done>,
    /// How many are.
    in_order: u64,
    /// Somebody puts one in order.
    is_busy: bool,
}

pub(super) enum Job<'a> {
    /// Look at a new window.
    Open(u64),
    /// Make a piece.
    Make { window: Arc<Window<'a>>, number: u64, range: Range<u64>, is_hole: bool },
    /// Put one piece in order in each of these windows.
    Order(Vec<(Arc<Window<'a>>, Done)>),
    /// End a window of which all pieces are in order.
    End(Arc<Window<'a>>),
}

impl<'a> Lane<'a> {
    fn is_given_out(&self) -> bool {
        self.next_offset >= self.window.range.end
    }

    fn outstanding(&self) -> u64 {
        self.next_piece - self.in_order
    }

    /// The piece that may be put in order now.
    fn ready(&self) -> Option<&Done> {
        self.made.get(&self.in_order).filter(|_| !self.is_busy)
    }

    fn take_ready(&mut self) -> Option<(Arc<Window<'a>>, Done)> {
        let done = self.made.remove(&self.in_order)?;
        self.is_busy = true;
        Some((self.window.clone(), done))
    }

    fn take_piece(&mut self, piece_bytes: u64) -> Job<'a> {
        let is_hole = self.holes.front().is_some_and(|hole| hole.start == self.next_offset);
        let hole = if is_hole { self.holes.pop_front() } else { None };
        let piece_end = self.window.range.end.min(self.next_offset + piece_bytes);
        let end = hole.map_or(piece_end, |hole| hole.end);
        let job = Job::Make {
            window: self.window.clone(),
            number: self.next_piece,
            range: self.next_offset..end,
            is_hole,
        };
        self.next_offset = end;
        self.next_piece += 1;
        job
    }
}

impl<'a> Schedule<'a> {
    /// Whether nothing is left that this thread may wait for.
    pub(super) fn is_over(&self, bounds: &Bounds) -> bool {
        self.next_window == bounds.windows
            && self.between == 0
            && self.lanes.is_empty()
            && self.complete.is_empty()
    }

    /// What a thread does that makes pieces.
    pub(super) fn next_job(&mut self, bounds: &Bounds) -> Option<Job<'a>> {
        self.order(false)
            .or_else(|| self.begin(bounds))
            .or_else(|| self.order(true))
            .or_else(|| self.next_end())
    }

    /// What a thread does that ends windows.
    pub(super) fn next_end(&mut self) -> Option<Job<'a>> {
        let window = self.complete.pop_front()?;
        self.between += 1;
        Some(Job::End(window))
    }

    /// What is ready to be put in order: what takes no time at once, else several together, or some if they `must`.
    fn order(&mut self, must: bool) -> Option<Job<'a>> {
        let enough = if must { 1 } else { LANES.min(self.lanes.len() - self.holes) };
        let is_small = |lane: &&mut Lane<'a>| lane.ready().is_some_and(|done| !done.is_large());
        if let Some(lane) = self.lanes.iter_mut().find(is_small) {
            return lane.take_ready().map(|one| Job::Order(vec![one]));
        }
        if self.lanes.iter().filter(|lane| lane.ready().is_some()).count() < enough.max(1) {
            return None;
        }
        let ready = self.lanes.iter_mut().filter(|lane| lane.ready().is_some()).take(LANES);
        Some(Job::Order(ready.filter_map(Lane::take_ready).collect()))
    }

    /// A piece of a window that nobody works at, else a new window, else a piece of that with the fewest threads.
    fn begin(&mut self, bounds: &Bounds) -> Option<Job<'a>> {
        if self.outstanding >= bounds.pieces || self.complete.len() >= COMPLETE_MAX {
            return None;
        }
        let is_first = self.next_window == self.listed;
        let may_open = self.next_window < bounds.windows
            && self.next_window < self.listed + bounds.windows_ahead
            && (is_first || self.waiting < OBJECTS_WAITING_MAX)
            && self.lanes.len() - self.holes + self.opening < bounds.lanes
            && self.holes < HOLES_MAX;
        if !self.is_at_hole
            && let Some(hole) = self.lanes.iter_mut().find(|lane| lane.is_hole && !lane.is_given_out())
        {
            self.outstanding += 1;
            self.is_at_hole = true;
            return Some(hole.take_piece(bounds.piece_bytes));
        }
        let unfinished = self.lanes.iter_mut().filter(|lane| !lane.is_hole && !lane.is_given_out());
        match unfinished.min_by_key(|lane| lane.outstanding()) {
            Some(lane) if lane.outstanding() == 0 || !may_open => {
                self.outstanding += 1;
                Some(lane.take_piece(bounds.piece_bytes))
            }
            _ if may_open => {
                self.next_window += 1;
                self.between += 1;
                self.opening += 1;
                Some(Job::Open(self.next_window - 1))
            }
            _ => None,
        }
    }

    /// A window was looked at. `holes` begin where pieces do.
    pub(super) fn opened(&mut self, window: Window<'a>, holes: VecDeque<Range<u64>>) {
        let next_offset = window.range.start;
        let is_hole = holes.front() == Some(&window.range);
        self.between -= 1;
        self.opening -= 1;
        self.holes += usize::from(is_hole);
        self.lanes.push(Lane {
            window: Arc::new(window),
            holes,
            is_hole,
            next_piece: 0,
            next_offset,
            made: BTreeMap::new(),
            in_order: 0,
            is_busy: false,
        });
    }

    /// A piece was made.
    pub(super) fn made(&mut self, window: u64, number: u64, done: Done) {
        let Some(place) = self.place_of(window) else { return };
        self.is_at_hole &= !self.lanes[place].is_hole;
        self.lanes[place].made.insert(number, done);
        self.pass_empty(place);
    }

    /// A piece is in order now.
    pub(super) fn ordered(&mut self, window: u64) {
        let Some(place) = self.place_of(window) else { return };
        self.lanes[place].is_busy = false;
        self.lanes[place].in_order += 1;
        self.outstanding -= 1;
        self.pass_empty(place);
    }

    /// A window was ended; how many are listed from the first on, and how many objects wait.
    pub(super) fn ended(&mut self, listed: u64, waiting: u64) {
        self.between -= 1;
        if listed >= self.listed {
            (self.listed, self.waiting) = (listed, waiting);
        }
    }

    fn place_of(&self, window: u64) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.window.index == window)
    }

    /// Pieces of which nothing is stored are in order at once.
    fn pass_empty(&mut self, place: usize) {
        let lane = &mut self.lanes[place];
        while lane.ready().is_some_and(|done| done.runs.is_empty()) {
            lane.made.remove(&lane.in_order);
            lane.in_order += 1;
            self.outstanding -= 1;
        }
        if lane.is_given_out() && lane.outstanding() == 0 {
            self.holes -= usize::from(lane.is_hole);
            let lane = self.lanes.remove(place);
            self.complete.push_back(lane.window);
        }
    }
}
