//! All cores on one volume, its objects in order.
//!
//! Problem: objects are streams with an md5 over their plain bytes, which runs at 730 MB/s on one core; the volume is read,
//! hashed and compressed several times as fast on all of them. Idea: several windows (the part of the volume that one object of
//! a full backup holds) are in progress at once, one for each thread and some at least; their pieces are made by any
//! thread, and put in order within their window only, in several windows at once.
//!
//! ```text
//! schedule.rs     a new window, a piece, or pieces in order   a lock for some instructions
//!   piece.rs      read, zeros?, sha256, parent's, compress    any thread
//!   window.rs     in order: joined runs become objects        a thread for some windows
//!   object.rs     stored bytes, restart points
//!   md5.rs        of several objects side by side
//!   documents.rs  digests in their places, objects listed in the order of windows
//! ```
//!
//! Invariants:
//! - Memory is bounded by the pieces that were begun and are not in order yet, and the windows that are ahead of the first
//!   unfinished one; both have fixed bounds, whatever the volume's and the objects' size. (What is in memory of finished objects is
//!   the destination's to bound.)
//! - Nobody waits for what nobody does: the earliest piece of a window that is not in order is always some thread's.
//! - An object never crosses a window's border, as in Cinder.

mod documents;
mod md5;
mod object;
mod piece;
mod schedule;
mod window;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use self::documents::{Digests, Listing};
use self::md5::LANES;
use self::object::{Objects, ZeroDigests};
use self::piece::PieceMaker;
use self::schedule::{Bounds, Job, Schedule};
use self::window::{Window, append_all};
use super::destination::Destination;
use super::encode::Encoder;
use super::ranges::Ranges;
use super::source::Source;
use super::source::changed::Changed;
use crate::backup::BlockHashTable;
use crate::error::{Error, ErrorKind, Result};
use crate::format::write::MetadataHead;

/// What pieces and compressors may take, in bytes. The rest of 256 MiB is for the program, its stacks, and lists.
const MEMORY_BYTES_MAX: u64 = 144 << 20;

/// Pieces begun and not in order, for each thread: the one it works at, and one that waits.
const PIECES_PER_THREAD: usize = 2;

/// Pieces that wait to be put in order together, beside those.
const PIECES_TOGETHER: u64 = 2 * LANES as u64;

/// Threads beside the others that end objects, so that these go on while the disk makes files durable.
const ENDING_THREADS: usize = 2;

/// Most restart points in one backup. Each takes some five bytes of the metadata, which Cinder and we read whole.
pub(in crate::writer) const POINTS_MAX: u64 = 2_000_000;

/// What is to be done.
pub(super) struct Plan<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) encoder: &'a Encoder,
    pub(super) destination: &'a dyn Destination,
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

/// Writes all files of the backup to its destination; what was done, and how many objects there are.
pub(super) fn run(plan: &Plan<'_>) -> Result<(Progress, u64)> {
    let len_bytes = plan.source.len_bytes();
    let encode_bytes = plan.encoder.piece_bytes(usize::try_from(plan.block_bytes).unwrap_or(usize::MAX));
    let piece_bytes = (encode_bytes as u64).max(plan.block_bytes);
    let digests =
        Digests::begin(plan.destination, plan.head, plan.block_bytes, len_bytes.div_ceil(plan.block_bytes))?;
    let listing = Listing::begin(plan.destination, plan.head, plan.block_bytes)?;
    let objects = Objects {
        destination: plan.destination,
        encoder: plan.encoder,
        block_bytes: plan.block_bytes,
        point_spacing_bytes: len_bytes / POINTS_MAX,
        zero_digests: ZeroDigests::default(),
        last_zeros: Mutex::default(),
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
    let together_bytes = (2 * PIECES_TOGETHER * piece_bytes).min(MEMORY_BYTES_MAX / 2);
    let thread_bytes = plan.encoder.context_bytes() as u64 + 2 * PIECES_PER_THREAD as u64 * piece_bytes;
    let most = (MEMORY_BYTES_MAX - together_bytes) / thread_bytes;
    let threads = most.clamp(1, plan.threads.max(1) as u64) as usize;
    let pipeline = Pipeline {
        plan,
        maker: &maker,
        objects: &objects,
        listing: &listing,
        bounds: Bounds {
            piece_bytes,
            windows: len_bytes.div_ceil(plan.object_bytes),
            windows_ahead: plan.destination.windows_ahead_max(plan.object_bytes),
            lanes: threads.max(LANES),
            pieces: PIECES_PER_THREAD * threads + (together_bytes / (2 * piece_bytes)) as usize,
        },
        len_bytes,
        schedule: Mutex::default(),
        changed: Condvar::new(),
        counters: Counters::default(),
    };
    thread::scope(|scope| {
        let roles = [(Role::All, threads - 1), (Role::End, ENDING_THREADS)];
        let roles = roles.into_iter().flat_map(|(role, count)| std::iter::repeat_n(role, count));
        for (number, role) in (1..).zip(roles) {
            let pipeline = &pipeline;
            let started = thread::Builder::new()
                .name(format!("create {number}"))
                .spawn_scoped(scope, move || pipeline.work(role));
            if let Err(error) = started {
                tracing::warn!("only {number} threads could be started: {error}");
                break;
            }
        }
        pipeline.work(Role::All);
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

/// What a thread is for.
#[derive(Clone, Copy)]
enum Role {
    All,
    /// Ends windows, which is waiting for the disk.
    End,
}

struct Pipeline<'a, 'l> {
    plan: &'a Plan<'a>,
    maker: &'a PieceMaker<'a>,
    objects: &'a Objects<'a>,
    listing: &'a Listing<'l>,
    bounds: Bounds,
    len_bytes: u64,
    schedule: Mutex<Schedule<'a>>,
    changed: Condvar,
    counters: Counters,
}

impl<'a> Pipeline<'a, '_> {
    fn work(&self, role: Role) {
        let _alarm = Alarm(self);
        while let Some(job) = self.next_job(role) {
            if let Err(error) = self.run_job(job) {
                self.lock().failure.get_or_insert(error);
                self.changed.notify_all();
                return;
            }
        }
    }

    fn next_job(&self, role: Role) -> Option<Job<'a>> {
        let mut schedule = self.lock();
        loop {
            if self.plan.cancel.load(Ordering::Relaxed) && schedule.failure.is_none() {
                schedule.failure = Some(Error::new(ErrorKind::Interrupted, "the backup was interrupted"));
                self.changed.notify_all();
            }
            if schedule.failure.is_some() {
                return None;
            }
            let job = match role {
                Role::All => schedule.next_job(&self.bounds),
                Role::End => schedule.next_end(),
            };
            if job.is_some() {
                return job;
            }
            if schedule.is_over(&self.bounds) {
                return None;
            }
            schedule.sleepers += 1;
            schedule = self.changed.wait(schedule).unwrap_or_else(PoisonError::into_inner);
            schedule.sleepers -= 1;
        }
    }

    fn run_job(&self, job: Job<'a>) -> Result<()> {
        match job {
            Job::Open(index) => {
                let start = index * self.plan.object_bytes;
                let range = start..self.len_bytes.min(start.saturating_add(self.plan.object_bytes));
                // A list of changes asks for piece after piece.
                let holes = match self.plan.changed {
                    None => self.maker.ranges.holes(&range, self.bounds.piece_bytes)?,
                    Some(_) => VecDeque::new(),
                };
                let mut schedule = self.lock();
                schedule.opened(Window::new(index, range, self.objects), holes);
                self.wake(schedule);
            }
            Job::Make { window, number, range, is_hole } => {
                let len_bytes = range.end - range.start;
                let done = self.maker.make(range, is_hole)?;
                let changed = done.runs.iter().map(|run| run.range.end - run.range.start).sum();
                self.counters.changed.fetch_add(changed, Ordering::Relaxed);
                self.counters.done.fetch_add(len_bytes, Ordering::Relaxed);
                let mut schedule = self.lock();
                schedule.made(window.index, number, done);
                self.wake(schedule);
                (self.plan.on_progress)(&self.progress());
            }
            Job::Order(batch) => {
                append_all(&batch)?;
                let mut schedule = self.lock();
                for (window, done) in batch {
                    self.maker.give_back(done.plain);
                    schedule.ordered(window.index);
                }
                self.wake(schedule);
            }
            Job::End(window) => self.end(&window)?,
        }
        Ok(())
    }

    /// Ends a window of which all pieces are in order.
    fn end(&self, window: &Window<'_>) -> Result<()> {
        let objects = window.finish()?;
        let stored = objects.iter().map(|object| object.stored_bytes).sum();
        self.counters.stored.fetch_add(stored, Ordering::Relaxed);
        let (listed, waiting) = self.listing.put(window.index, objects)?;
        let mut schedule = self.lock();
        schedule.ended(listed, waiting);
        self.wake(schedule);
        (self.plan.on_progress)(&self.progress());
        Ok(())
    }

    /// Whoever waits for a job looks again.
    fn wake(&self, schedule: MutexGuard<'_, Schedule<'a>>) {
        let sleepers = schedule.sleepers;
        drop(schedule);
        if sleepers > 0 {
            self.changed.notify_all();
        }
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
