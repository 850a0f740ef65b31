//! A store that answers in time, or says that it does not.
//!
//! Problem: a call on a file of a server that hangs does not return, and nothing can make it: not a signal, not a closed
//! descriptor. Whoever waits in it holds what others wait for in turn. Idea: such calls run on threads of their own, and
//! the caller waits for a limited time. A thread that is *stuck* is left behind and joins again when its call returns.
//!
//! ```text
//!   answers --- a call takes longer than the timeout ---> stalled: further calls fail at once, but for a probe now and then
//!      ^                                                      |
//!      +------ a stuck call returns, or a probe does ---------+
//! ```
//!
//! A thread more on the way halves what small reads can do, so it is taken only where it must be:
//! - an object that [is local](ObjectSource::is_local) is read by the caller: this machine's disks have timeouts of their own;
//! - an [expendable] thread reads by itself, and is left in the call by whoever gave it its work;
//! - opening and listing always take the way, because what lies in a folder may be anybody's mount.
//!
//! A store that [has deadlines](Store::has_deadlines) of its own is the one to say whether it answers: a call that it gave up tells nothing but
//! that. Its listing takes as long as pages come, and ends early only when the command is cancelled.
//!
//! What expendable threads have under way is [looked at](DeadlineStore::look) now and then. One that hangs while the store opens others fails
//! the reads of its object only; else the store has stalled.
//!
//! Invariants: a call of a thread that is not expendable returns within the timeout; at most [`THREADS_MAX`] threads exist, at most [`STUCK_MAX`] of them stuck (beyond,
//! nothing is tried until one returns); a thread that was left behind writes to buffers of its own only.

use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use self::under_way::UnderWay;
use super::{Listing, ObjectSource, ObjectStat, ObjectVersion, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::expendable;
use crate::types::ObjectName;

mod under_way;

/// Threads for calls, at most: what a busy mount has under way, and as many that are stuck.
const THREADS_MAX: usize = 64;

/// Calls that may be stuck. Those under way when a store stalls all get stuck; after that, one with each probe.
const STUCK_MAX: usize = 32;

/// How long after a call got stuck the next one is tried.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How long a probe may take: whoever asks for something meanwhile waits for it.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// Who only wants to know whether something has changed does not wait longer than this.
const SLOW: Duration = Duration::from_secs(1);

/// How often the calls under way are to be looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How long a cancelled command waits on for a call.
const CANCEL_EVERY: Duration = Duration::from_millis(100);

/// Longest read at once, in bytes; callers ask for less.
const READ_BYTES_MAX: usize = 1 << 20;

/// Buffers kept for the next reads.
const BUFFERS_MAX: usize = 16;

/// A store whose calls return in time.
pub struct DeadlineStore {
    inner: Arc<dyn Store>,
    calls: Arc<Calls>,
}

impl DeadlineStore {
    /// Gives each call to `inner` this much time, from [`arm`](Self::arm) on.
    pub fn new(inner: Arc<dyn Store>, timeout: Duration) -> Self {
        let calls = Arc::new(Calls { judge: judge_of(&inner), ..Calls::new(timeout) });
        Self { inner, calls }
    }

    /// The same, whose calls end early with [`ErrorKind::Interrupted`] once `is_cancelled` says so.
    #[must_use]
    pub fn cancelled_by(inner: Arc<dyn Store>, timeout: Duration, is_cancelled: fn() -> bool) -> Self {
        let judge = judge_of(&inner);
        let calls = Calls { is_cancelled: Some(is_cancelled), judge, ..Calls::new(timeout) };
        Self { inner, calls: Arc::new(calls) }
    }

    /// How long a call may take.
    pub fn timeout(&self) -> Duration {
        self.calls.timeout
    }

    /// Ends the threads, which must be idle, and goes back to before [`arm`](Self::arm). An error when one is stuck.
    pub fn disarm(&self) -> Result<()> {
        self.calls.is_armed.store(false, Ordering::Release);
        let mut state = self.calls.lock();
        state.idle.clear();
        let threads = std::mem::take(&mut state.joined);
        let stuck = state.stuck;
        state.threads = 0;
        drop(state);
        if stuck > 0 {
            return Err(Error::new(ErrorKind::StoreIo, "the store does not answer"));
        }
        threads.into_iter().for_each(|thread| drop(thread.join()));
        self.inner.rest()
    }

    /// Looks at what is under way; to be called each [`LOOK_EVERY`] where expendable threads read.
    pub fn look(&self) -> Look {
        let calls = &self.calls;
        let tick = calls.tick.fetch_add(1, Ordering::Relaxed) + 1;
        let reads = calls.reads.oldest(tick);
        let oldest = reads.max(calls.asks.oldest(tick)) * LOOK_EVERY;
        let has_answered = calls.asks.answered_within(tick, ticks(2 * SLOW));
        if reads * LOOK_EVERY > calls.timeout && !has_answered {
            calls.stall(oldest);
        }
        let is_stalled = calls.is_stalled.load(Ordering::Relaxed);
        Look { is_slow: is_stalled || oldest >= SLOW, is_hung: oldest > calls.timeout, is_stalled }
    }

    /// From now on calls are limited, and threads are started for them. Before, they take the time they take: a process that
    /// is not set up yet may want to have one thread only.
    pub fn arm(&self) {
        self.calls.is_armed.store(true, Ordering::Release);
    }
}

/// How a store answers.
#[derive(Clone, Copy, Default, Debug)]
pub struct Look {
    /// A call takes longer than a second.
    pub is_slow: bool,
    /// A call takes longer than the timeout.
    pub is_hung: bool,
    /// And all others fail for it.
    pub is_stalled: bool,
}

/// Does something that may hang, on a thread of its own. An error when it takes longer than `timeout`; the thread is left behind then.
pub fn in_time<T: Send + 'static, E: From<Error> + Send + 'static>(
    timeout: Option<Duration>,
    what: &str,
    act: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let Some(timeout) = timeout else { return act() };
    let (sender, answer) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("store".to_owned()).spawn(move || drop(sender.send(act())));
    let thread = thread.map_err(|error| {
        Error::caused_by(ErrorKind::StoreIo, "cannot start a thread for a call of the store", error)
    })?;
    match answer.recv_timeout(timeout) {
        Ok(outcome) => {
            // Whoever counts threads must not find this one.
            let _ = thread.join();
            outcome
        }
        Err(RecvTimeoutError::Timeout) => {
            let message =
                format!("the store did not answer within {} s when asked for {what}", timeout.as_secs());
            Err(Error::new(ErrorKind::StoreIo, message).into())
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(Error::new(ErrorKind::StoreIo, "a bug stopped a call of the store").into())
        }
    }
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / LOOK_EVERY.as_millis()).unwrap_or(u32::MAX)
}

/// The store, where it can tell itself whether it answers.
fn judge_of(store: &Arc<dyn Store>) -> Option<Arc<dyn Store>> {
    store.has_deadlines().then(|| store.clone())
}

impl fmt::Debug for DeadlineStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineStore").field("location", &self.location()).finish_non_exhaustive()
    }
}

impl Store for DeadlineStore {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn list(&self, suffix: &str) -> Result<Listing> {
        let (inner, suffix) = (self.inner.clone(), suffix.to_owned());
        let list = move || inner.list(&suffix);
        // Pages come one after the other for as long as it takes, and the store notices when none does.
        let patience = if self.calls.judge.is_some() { Duration::MAX } else { self.calls.timeout };
        self.calls.run_within(patience, &"the list of its objects", list)
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        let (inner, wanted) = (self.inner.clone(), name.clone());
        let source = self.calls.run(&format_args!("object {name:?}"), move || inner.open(&wanted))?;
        if source.is_local() {
            return Ok(source);
        }
        let (stat, name, calls) = (source.stat().clone(), name.clone(), self.calls.clone());
        Ok(Arc::new(DeadlineObject { source: Some(source), stat, name, calls, began: AtomicU32::new(0) }))
    }

    fn version_of(&self, name: &ObjectName) -> Result<ObjectVersion> {
        if !self.is_answering() {
            return Err(Error::new(
                ErrorKind::StoreIo,
                format!("the store does not answer, so {name:?} is not looked at"),
            ));
        }
        let (inner, wanted) = (self.inner.clone(), name.clone());
        let ask = move || inner.version_of(&wanted);
        self.calls.run_within(SLOW, &format_args!("object {name:?}"), ask)
    }

    fn is_answering(&self) -> bool {
        let tick = self.calls.tick.load(Ordering::Relaxed);
        !self.calls.is_stalled.load(Ordering::Relaxed) && self.calls.asks.oldest(tick) * LOOK_EVERY < SLOW
    }
}

/// An object whose calls return in time.
struct DeadlineObject {
    /// Taken when it is dropped: closing a file may hang as well.
    source: Option<Arc<dyn ObjectSource>>,
    stat: ObjectStat,
    name: ObjectName,
    calls: Arc<Calls>,
    /// When one of its reads under way began, as a tick above 0.
    began: AtomicU32,
}

impl DeadlineObject {
    /// Does a call here, where this thread may and the object does not hang; else gives it back.
    fn here<T, F: FnOnce(&dyn ObjectSource) -> Result<T>>(&self, call: F) -> Result<Result<T>, F> {
        let calls = &*self.calls;
        let Some(source) = self.source.as_deref() else { return Err(call) };
        if !expendable::is_this_thread() || calls.is_stalled.load(Ordering::Relaxed) {
            return Err(call);
        }
        let tick = calls.tick.load(Ordering::Relaxed);
        let began = self.began.load(Ordering::Relaxed);
        let waited = if began == 0 { Duration::ZERO } else { tick.wrapping_sub(began - 1) * LOOK_EVERY };
        if waited > calls.timeout {
            let message = format!("object {:?} has not answered for {} s", self.name, waited.as_secs());
            return Ok(Err(Error::new(ErrorKind::StoreIo, message)));
        }
        let Some(under_way) = calls.reads.begin(tick) else { return Err(call) };
        let is_first = began == 0
            && self
                .began
                .compare_exchange(0, tick.saturating_add(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        let outcome = call(source);
        if is_first {
            self.began.store(0, Ordering::Relaxed);
        }
        drop(under_way);
        if !calls.has_answered() {
            calls.stall(calls.timeout);
        } else if calls.is_stalled.load(Ordering::Relaxed) {
            calls.answers();
        }
        Ok(outcome)
    }

    fn source(&self) -> Result<&Arc<dyn ObjectSource>> {
        self.source.as_ref().ok_or_else(|| Error::new(ErrorKind::StoreIo, "the object is closed"))
    }
}

impl ObjectSource for DeadlineObject {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        if let Ok(outcome) = self.here(|source| source.read_at(buf, offset)) {
            return outcome;
        }
        let source = self.source()?.clone();
        let len = buf.len().min(READ_BYTES_MAX);
        let mut own = self.calls.buffer();
        let (own, n) =
            self.calls.run(&format_args!("object {:?} at byte {offset}", self.name), move || {
                own.resize(len, 0);
                let n = source.read_at(&mut own, offset)?;
                Ok((own, n))
            })?;
        buf[..n].copy_from_slice(&own[..n]);
        self.calls.keep_buffer(own);
        Ok(n)
    }

    fn will_need(&self, offset: u64, len: u64) {
        // Only advice: nobody is sent for it. What has deadlines takes it at once.
        if let (Some(source), true) = (&self.source, self.calls.judge.is_some()) {
            return source.will_need(offset, len);
        }
        let _ = self.here(|source| {
            source.will_need(offset, len);
            Ok(())
        });
    }

    fn is_changed(&self) -> Result<bool> {
        if let Ok(outcome) = self.here(|source| source.is_changed()) {
            return outcome;
        }
        let source = self.source()?.clone();
        self.calls.run(&format_args!("object {:?}", self.name), move || source.is_changed())
    }
}

impl Drop for DeadlineObject {
    fn drop(&mut self) {
        if let Some(source) = self.source.take() {
            self.calls.start_and_forget(move || drop(source));
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The threads, and what is known of the store.
struct Calls {
    timeout: Duration,
    is_armed: AtomicBool,
    /// Whether the command that asks is to end.
    is_cancelled: Option<fn() -> bool>,
    /// The store itself, where it is the one to say whether it answers.
    judge: Option<Arc<dyn Store>>,
    /// Counts the looks.
    tick: AtomicU32,
    /// Whether [`State::stall`] is there.
    is_stalled: AtomicBool,
    /// What expendable threads do.
    reads: UnderWay,
    /// What our own threads do.
    asks: UnderWay,
    state: Mutex<State>,
    /// A thread became idle.
    idle: Condvar,
    buffers: Mutex<Vec<Vec<u8>>>,
}

#[derive(Default)]
struct State {
    idle: Vec<Sender<Job>>,
    threads: usize,
    stuck: usize,
    stall: Option<Stall>,
    /// All that were started.
    joined: Vec<JoinHandle<()>>,
}

/// Since when the store does not answer.
#[derive(Clone, Copy)]
struct Stall {
    since: Instant,
    /// Not yet after a call of an expendable thread hung: that may have been the fault of its object.
    tried: Option<Instant>,
}

/// What became of one call. Changed under the lock of [`State`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Running,
    Done,
    GivenUp,
}

impl Calls {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            is_armed: AtomicBool::new(false),
            is_cancelled: None,
            judge: None,
            tick: AtomicU32::new(0),
            is_stalled: AtomicBool::new(false),
            reads: UnderWay::default(),
            asks: UnderWay::default(),
            state: Mutex::default(),
            idle: Condvar::new(),
            buffers: Mutex::default(),
        }
    }

    /// Whether a call that has returned was answered.
    fn has_answered(&self) -> bool {
        self.judge.as_ref().is_none_or(|store| store.is_answering())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `call` returns, or [`ErrorKind::StoreIo`] when it does not in time. `what` is for the message.
    fn run<T: Send + 'static>(
        self: &Arc<Self>,
        what: &dyn Display,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run_within(self.timeout, what, call)
    }

    /// As [`run`](Self::run), with less patience.
    fn run_within<T: Send + 'static>(
        self: &Arc<Self>,
        patience: Duration,
        what: &dyn Display,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if !self.is_armed.load(Ordering::Acquire) {
            return call();
        }
        let begun = Instant::now();
        let (thread, granted) = self.admit(what, begun)?;
        // Only a probe has less time than the store is given for an answer.
        let is_limited = patience < Duration::MAX || granted < self.timeout;
        let patience = if is_limited { patience.min(granted) } else { patience };
        let (sender, answer) = mpsc::sync_channel(1);
        let progress = Arc::new(Mutex::new(Progress::Running));
        let job = {
            let (calls, progress, thread) = (self.clone(), progress.clone(), thread.clone());
            Box::new(move || {
                let begin = || calls.asks.begin(calls.tick.load(Ordering::Relaxed));
                let under_way = is_limited.then(begin).flatten();
                let outcome = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::StoreIo, "a bug stopped this call of the store"))
                });
                drop(under_way);
                calls.returned(&progress, thread);
                // Nobody listens when it was given up.
                let _ = sender.send(outcome);
            })
        };
        if thread.send(job).is_err() {
            return Err(Error::new(ErrorKind::StoreIo, "a thread for calls of the store has ended"));
        }
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            let wait = if self.is_cancelled.is_some() { left.min(CANCEL_EVERY) } else { left };
            match answer.recv_timeout(wait) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(ErrorKind::StoreIo, "a call of the store was lost"));
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    return self.give_up(what, begun, &progress, &answer, patience >= granted);
                }
                Err(RecvTimeoutError::Timeout) if self.is_cancelled.is_some_and(|is| is()) => {
                    let _ = self.give_up(what, begun, &progress, &answer, false);
                    return Err(Error::new(
                        ErrorKind::Interrupted,
                        "interrupted while the store did not answer",
                    ));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Notes that the store does not answer, since `waited` ago.
    fn stall(&self, waited: Duration) {
        self.begin_stall(&mut self.lock(), waited);
    }

    fn begin_stall(&self, state: &mut State, waited: Duration) {
        if state.stall.is_none() {
            let seconds = waited.as_secs();
            // A command tells why it fails.
            if self.is_cancelled.is_none() {
                tracing::warn!("the store did not answer within {seconds} s; it is asked again now and then");
            }
            let now = Instant::now();
            state.stall = Some(Stall { since: now.checked_sub(waited).unwrap_or(now), tried: None });
            self.is_stalled.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that it does.
    fn answers(&self) {
        self.end_stall(&mut self.lock());
    }

    fn end_stall(&self, state: &mut State) {
        if let Some(stall) = state.stall.take() {
            self.is_stalled.store(false, Ordering::Relaxed);
            let seconds = stall.since.elapsed().as_secs();
            tracing::warn!("the store answers again, after {seconds} s");
        }
    }

    /// A thread for a call and how long to wait for it, or why there is none.
    fn admit(&self, what: &dyn Display, begun: Instant) -> Result<(Sender<Job>, Duration)> {
        let mut patience = self.timeout;
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let may_probe = state.stuck < STUCK_MAX;
            if let Some(stall) = &mut state.stall {
                let is_soon = stall.tried.is_some_and(|tried| now.duration_since(tried) < PROBE_EVERY);
                if !may_probe || is_soon {
                    let seconds = stall.since.elapsed().as_secs();
                    let message =
                        format!("the store has not answered for {seconds} s, so {what} is not asked for");
                    return Err(Error::new(ErrorKind::StoreIo, message));
                }
                stall.tried = Some(now);
                patience = self.timeout.min(PROBE_PATIENCE);
            }
            if let Some(thread) = state.idle.pop() {
                return Ok((thread, patience));
            }
            if state.threads < THREADS_MAX {
                let (thread, joined) = start_thread()?;
                state.threads += 1;
                state.joined.push(joined);
                return Ok((thread, patience));
            }
            let Some(left) = self.timeout.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
                let message =
                    format!("{THREADS_MAX} calls of the store are under way, no time is left for {what}");
                return Err(Error::new(ErrorKind::StoreIo, message));
            };
            state = self.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes that the call on `thread` has returned, in time or not.
    fn returned(&self, progress: &Mutex<Progress>, thread: Sender<Job>) {
        let mut state = self.lock();
        let before =
            std::mem::replace(&mut *progress.lock().unwrap_or_else(PoisonError::into_inner), Progress::Done);
        if before == Progress::GivenUp {
            state.stuck -= 1;
        }
        if self.has_answered() {
            self.end_stall(&mut state);
        } else {
            self.begin_stall(&mut state, self.timeout);
        }
        self.rests(&mut state, thread);
        drop(state);
        self.idle.notify_one();
    }

    /// Keeps a thread for the next call, unless [`disarm`](DeadlineStore::disarm) waits for its end.
    fn rests(&self, state: &mut State, thread: Sender<Job>) {
        if self.is_armed.load(Ordering::Acquire) {
            state.idle.push(thread);
        }
    }

    /// Leaves a call behind, unless it has just returned. It `says_all` when it had all the time that the store has for an answer.
    fn give_up<T>(
        &self,
        what: &dyn Display,
        begun: Instant,
        progress: &Mutex<Progress>,
        answer: &Receiver<Result<T>>,
        says_all: bool,
    ) -> Result<T> {
        let mut state = self.lock();
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        if *progress == Progress::Done {
            drop((progress, state));
            // On its way.
            let lost = |_| Error::new(ErrorKind::StoreIo, "a call of the store was lost");
            return answer.recv().map_err(lost)?;
        }
        *progress = Progress::GivenUp;
        state.stuck += 1;
        let seconds = begun.elapsed().as_secs_f32();
        let message = format!("the store did not answer within {seconds:.0} s when asked for {what}");
        if says_all && state.stall.is_none() {
            tracing::warn!("{message}; it is asked again now and then");
            state.stall = Some(Stall { since: begun, tried: Some(Instant::now()) });
            self.is_stalled.store(true, Ordering::Relaxed);
        }
        Err(Error::new(ErrorKind::StoreIo, message))
    }

    /// Does something that nobody waits for; here, where no thread can be had for it.
    fn start_and_forget(self: &Arc<Self>, act: impl FnOnce() + Send + 'static) {
        if !self.is_armed.load(Ordering::Acquire) {
            return act();
        }
        let mut state = self.lock();
        let thread = state.idle.pop().or_else(|| {
            let (thread, joined) = (state.threads < THREADS_MAX).then(start_thread)?.ok()?;
            state.threads += 1;
            state.joined.push(joined);
            Some(thread)
        });
        drop(state);
        let Some(thread) = thread else { return act() };
        let (calls, again) = (self.clone(), thread.clone());
        let job = Box::new(move || {
            let _ = catch_unwind(AssertUnwindSafe(act));
            calls.rests(&mut calls.lock(), again);
            calls.idle.notify_one();
        });
        // Where it cannot be sent it is dropped, which does no harm.
        let _ = thread.send(job);
    }

    fn buffer(&self) -> Vec<u8> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn keep_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < BUFFERS_MAX {
            buffers.push(buffer);
        }
    }
}

/// A thread that does what it is sent until nobody can send any more.
fn start_thread() -> Result<(Sender<Job>, JoinHandle<()>)> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let work = move || {
        for job in jobs {
            job();
        }
    };
    let joined = thread::Builder::new().name("store".to_owned()).spawn(work).map_err(|error| {
        Error::caused_by(ErrorKind::StoreIo, "cannot start a thread for a call of the store", error)
    })?;
    Ok((sender, joined))
}

#[cfg(test)]
mod tests;
