//! All cores on one volume, its objects in order.
//!
//! Problem: objects are streams with an md5 over their plain bytes, which runs at 650 MB/s on one core; the volume is read,
//! hashed and compressed several times as fast on all of them. Idea: several windows (the part of the volume that one object of
//! a full backup holds) are in progress at once, one for each thread if there are so many; their pieces are made by any
//! thread, and put in order within their window only.
//!
//! ```text
//! next window, or the next piece of one in progress       Schedule: a lock for some instructions
//!   piece.rs      read, zeros?, sha256, parent's, compress    any thread
//!   window.rs     in order: joined runs become objects        whoever brings the piece that was missing
//!   object.rs     md5, stored bytes, restart points
//!   documents.rs  digests in their places, objects listed in the order of windows
//! ```
//!
//! Invariants:
//! - Memory is bounded by the pieces that were begun and are not in order yet, and the windows that are ahead of the first
//!   unfinished one; both have fixed bounds, whatever the volume's and the objects' size.
//! - Nobody waits for what nobody does: the earliest piece of a window that is not in order is always some thread's.
//! - An object never crosses a window's border, as in Cinder.

mod documents;
mod object;
mod piece;
mod window;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use self::documents::{Digests, Listing};
use self::object::{Objects, ZeroDigests};
use self::piece::PieceMaker;
use self::window::Window;
use super::encode::Encoder;
use super::ranges::Ranges;
use super::source::Source;
use super::source::changed::Changed;
use super::staging::Staging;
use crate::backup::BlockHashTable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::write::MetadataHead;

/// What pieces and compressors may take, in bytes. The rest of 256 MiB is for the program, its stacks, and lists.
const MEMORY_BYTES_MAX: u64 = 144 << 20;

/// Pieces begun and not in order, for each thread: the one it works at, and one that waits.
const PIECES_PER_THREAD: usize = 2;

/// How far windows may be ahead of the first unfinished one. Between windows with data lie many without, which take no time;
/// and md5 of what has data keeps one core busy for each window.
const WINDOWS_AHEAD_MAX: u64 = 4096;

/// How many objects may wait for those of earlier windows to be listed: about 10 MiB.
const OBJECTS_WAITING_MAX: u64 = 50_000;

/// Most restart points in one backup. Each takes some five bytes of the metadata, which Cinder and we read whole.
pub(in crate::writer) const POINTS_MAX: u64 = 2_000_000;

/// What is to be done.
pub(super) struct Plan<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) encoder: &'a Encoder,
    pub(super) staging: &'a Staging,
    pub(super) head: &'a MetadataHead,
    pub(super) parent: Option<&'a BlockHashTable>,
    pub(super) changed: Option<&'a Changed>,
    pub(super) paranoid: bool,
    pub(super) object_bytes: u64,
    pub(super) block_bytes: u64,
    pub(super) threads: usize,
    pub(super) cancel: &'a AtomicBool,
    pub(super) on_progress: &'a (dyn Fn(&Progress) + Sync),
}

/// How far a backup is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Bytes of the volume that were looked at, holes included.
    pub done_bytes: u64,
    /// The volume's length in bytes.
    pub total_bytes: u64,
    /// Bytes of the volume that are stored: all of a full backup, what changed of an incremental.
    pub changed_bytes: u64,
    /// Bytes that they take in objects; of objects that are complete.
    pub stored_bytes: u64,
    /// Bytes of blocks that changed although the list of changes does not tell so.
    pub unlisted_bytes: u64,
}

#[derive(Default)]
struct Counters {
    done: AtomicU64,
    changed: AtomicU64,
    stored: AtomicU64,
}

/// Writes all files of the backup to its staging; what was done, and how many objects there are.
pub(super) fn run(plan: &Plan<'_>) -> Result<(Progress, u64)> {
    let len_bytes = plan.source.len_bytes();
    let encode_bytes = plan.encoder.piece_bytes(usize::try_from(plan.block_bytes).unwrap_or(usize::MAX));
    let piece_bytes = (encode_bytes as u64).max(plan.block_bytes);
    let digests =
        Digests::begin(plan.staging, plan.head, plan.block_bytes, len_bytes.div_ceil(plan.block_bytes))?;
    let listing = Listing::begin(plan.staging, plan.head)?;
    let objects = Objects {
        staging: plan.staging,
        encoder: plan.encoder,
        block_bytes: plan.block_bytes,
        point_spacing_bytes: len_bytes / POINTS_MAX,
        zeros: ZeroDigests::default(),
    };
    let maker = PieceMaker {
        source: plan.source,
        ranges: Ranges::new(plan.source),
        encoder: plan.encoder,
        parent: plan.parent,
        changed: plan.changed,
        paranoid: plan.paranoid,
        len_bytes,
        unlisted: AtomicU64::new(0),
        digests: &digests,
        block_bytes: plan.block_bytes,
        encode_bytes,
        idle: Mutex::default(),
    };
    // A piece takes its plain and its stored bytes.
    let thread_bytes = plan.encoder.context_bytes() as u64 + 2 * PIECES_PER_THREAD as u64 * piece_bytes;
    let threads = (MEMORY_BYTES_MAX / thread_bytes).clamp(1, plan.threads.max(1) as u64) as usize;
    let pipeline = Pipeline {
        plan,
        maker: &maker,
        objects: &objects,
        listing: &listing,
        piece_bytes,
        len_bytes,
        windows: len_bytes.div_ceil(plan.object_bytes),
        threads,
        schedule: Mutex::default(),
        changed: Condvar::new(),
        counters: Counters::default(),
    };
    thread::scope(|scope| {
        for number in 1..threads {
            let started = thread::Builder::new()
                .name(format!("create {number}"))
                .spawn_scoped(scope, || pipeline.work());
            if let Err(error) = started {
                tracing::warn!("only {number} threads could be started: {error}");
                break;
            }
        }
        pipeline.work();
    });
    let progress = pipeline.progress();
    let failure = pipeline.schedule.into_inner().unwrap_or_else(PoisonError::into_inner).failure;
    if let Some(error) = failure {
        return Err(error);
    }
    plan.source.check_len()?;
    digests.finish()?;
    Ok((progress, listing.finish()?))
}

struct Pipeline<'a, 'l> {
    plan: &'a Plan<'a>,
    maker: &'a PieceMaker<'a>,
    objects: &'a Objects<'a>,
    listing: &'a Listing<'l>,
    piece_bytes: u64,
    len_bytes: u64,
    windows: u64,
    threads: usize,
    schedule: Mutex<Schedule<'a>>,
    changed: Condvar,
    counters: Counters,
}

/// Who does what next.
#[derive(Default)]
struct Schedule<'a> {
    failure: Option<Error>,
    /// The first window that nobody began.
    next_window: u64,
    /// Windows that are listed, from the volume's beginning on.
    listed: u64,
    /// Objects of later ones, which wait to be listed.
    waiting: u64,
    /// Windows that somebody looks at for holes, or ends.
    between: usize,
    in_progress: Vec<Lane<'a>>,
    /// Pieces begun and not in order.
    outstanding: usize,
}

/// A window in progress, and how far its pieces were given out.
struct Lane<'a> {
    window: Arc<Window<'a>>,
    is_hole: bool,
    next_piece: u64,
    next_offset: u64,
    outstanding: usize,
}

enum Job<'a> {
    Open(u64),
    Make { window: Arc<Window<'a>>, number: u64, range: Range<u64>, is_hole: bool },
}

impl<'a> Pipeline<'a, '_> {
    fn work(&self) {
        let _alarm = Alarm(self);
        while let Some(job) = self.next_job() {
            if let Err(error) = self.run_job(job) {
                self.lock().failure.get_or_insert(error);
                self.changed.notify_all();
                return;
            }
        }
    }

    fn next_job(&self) -> Option<Job<'a>> {
        let mut schedule = self.lock();
        loop {
            if self.plan.cancel.load(Ordering::Relaxed) && schedule.failure.is_none() {
                schedule.failure = Some(Error::new(ErrorKind::Interrupted, "the backup was interrupted"));
                self.changed.notify_all();
            }
            if schedule.failure.is_some() {
                return None;
            }
            if let Some(job) = self.choose(&mut schedule) {
                return Some(job);
            }
            let is_all_begun = schedule.next_window == self.windows;
            if is_all_begun
                && schedule.between == 0
                && schedule.in_progress.iter().all(|lane| self.is_given_out(lane))
            {
                return None;
            }
            schedule = self.changed.wait(schedule).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_given_out(&self, lane: &Lane<'_>) -> bool {
        lane.next_offset >= lane.window.range.end
    }

    /// A window that nobody works at, else a new one, else the one with the fewest threads.
    fn choose(&self, schedule: &mut Schedule<'a>) -> Option<Job<'a>> {
        if schedule.outstanding >= PIECES_PER_THREAD * self.threads {
            return None;
        }
        let is_first = schedule.next_window == schedule.listed;
        let may_open = schedule.next_window < self.windows
            && schedule.next_window < schedule.listed + WINDOWS_AHEAD_MAX
            && (is_first || schedule.waiting < OBJECTS_WAITING_MAX)
            && schedule.in_progress.len() + schedule.between < self.threads;
        let lanes = schedule.in_progress.iter_mut().filter(|lane| !self.is_given_out(lane));
        let idlest = lanes.min_by_key(|lane| lane.outstanding);
        match idlest {
            Some(lane) if lane.outstanding == 0 || !may_open => {
                let job = self.take(lane);
                schedule.outstanding += 1;
                Some(job)
            }
            _ if may_open => {
                schedule.next_window += 1;
                schedule.between += 1;
                Some(Job::Open(schedule.next_window - 1))
            }
            _ => None,
        }
    }

    fn take(&self, lane: &mut Lane<'a>) -> Job<'a> {
        let window_end = lane.window.range.end;
        let end = if lane.is_hole { window_end } else { window_end.min(lane.next_offset + self.piece_bytes) };
        let job = Job::Make {
            window: lane.window.clone(),
            number: lane.next_piece,
            range: lane.next_offset..end,
            is_hole: lane.is_hole,
        };
        lane.next_offset = end;
        lane.next_piece += 1;
        lane.outstanding += 1;
        job
    }

    fn run_job(&self, job: Job<'a>) -> Result<()> {
        match job {
            Job::Open(index) => {
                let start = index * self.plan.object_bytes;
                let range = start..self.len_bytes.min(start.saturating_add(self.plan.object_bytes));
                // A list of changes asks for piece after piece.
                let is_hole = self.plan.changed.is_none() && self.maker.ranges.is_hole(&range)?;
                let window = Arc::new(Window::new(index, range, self.objects));
                let next_offset = window.range.start;
                let lane = Lane { window, is_hole, next_piece: 0, next_offset, outstanding: 0 };
                let mut schedule = self.lock();
                schedule.between -= 1;
                schedule.in_progress.push(lane);
                drop(schedule);
                self.changed.notify_all();
                Ok(())
            }
            Job::Make { window, number, range, is_hole } => {
                let (start, end) = (range.start, range.end);
                let done = self.maker.make(range, is_hole)?;
                let changed = done.runs.iter().map(|run| run.range.end - run.range.start).sum();
                self.counters.changed.fetch_add(changed, Ordering::Relaxed);
                self.counters.done.fetch_add(end - start, Ordering::Relaxed);
                let in_order = window.deliver(number, done, |done| {
                    self.maker.give_back(done.plain);
                    let mut schedule = self.lock();
                    schedule.outstanding -= 1;
                    if let Some(lane) =
                        schedule.in_progress.iter_mut().find(|lane| lane.window.index == window.index)
                    {
                        lane.outstanding -= 1;
                    }
                    drop(schedule);
                    self.changed.notify_one();
                })?;
                if let Some(in_order) = in_order {
                    self.end_if_complete(&window, in_order)?;
                }
                (self.plan.on_progress)(&self.progress());
                Ok(())
            }
        }
    }

    /// Ends a window of which all pieces are in order. Several threads may see that; one does it.
    fn end_if_complete(&self, window: &Window<'_>, in_order: u64) -> Result<()> {
        let mut schedule = self.lock();
        let is_complete = |lane: &Lane<'_>| {
            lane.window.index == window.index && self.is_given_out(lane) && lane.next_piece == in_order
        };
        let Some(place) = schedule.in_progress.iter().position(is_complete) else { return Ok(()) };
        schedule.in_progress.swap_remove(place);
        schedule.between += 1;
        drop(schedule);
        let objects = window.finish()?;
        let stored = objects.iter().map(|object| object.stored_bytes).sum();
        self.counters.stored.fetch_add(stored, Ordering::Relaxed);
        let (listed, waiting) = self.listing.put(window.index, objects)?;
        let mut schedule = self.lock();
        schedule.between -= 1;
        if listed >= schedule.listed {
            (schedule.listed, schedule.waiting) = (listed, waiting);
        }
        drop(schedule);
        self.changed.notify_all();
        Ok(())
    }

    fn progress(&self) -> Progress {
        let done_bytes = self.counters.done.load(Ordering::Relaxed);
        Progress {
            done_bytes,
            total_bytes: self.len_bytes,
            // Others go on counting between the two.
            changed_bytes: self.counters.changed.load(Ordering::Relaxed).min(done_bytes),
            stored_bytes: self.counters.stored.load(Ordering::Relaxed),
            unlisted_bytes: self.maker.unlisted.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Schedule<'a>> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the others' waiting when a thread panics, for which they would wait for ever.
struct Alarm<'s, 'a, 'l>(&'s Pipeline<'a, 'l>);

impl Drop for Alarm<'_, '_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let error = Error::new(ErrorKind::Source, "a thread of the backup panicked");
            self.0.lock().failure.get_or_insert(error);
            self.0.changed.notify_all();
        }
    }
}
