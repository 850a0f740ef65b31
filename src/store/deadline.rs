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
//! A thread more on the way costs some microseconds, so reading an object that [is local](ObjectSource::is_local) is done by the
//! caller: this machine's disks have timeouts of their own. Opening and listing always take the way, because what lies in
//! a folder may be anybody's mount.
//!
//! Invariants: a call returns within the timeout; at most [`THREADS_MAX`] threads exist, at most [`STUCK_MAX`] of them stuck (beyond,
//! nothing is tried until one returns); a thread that was left behind writes to buffers of its own only.

use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Listing, ObjectSource, ObjectStat, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// Threads for calls, at most: what a busy mount has under way, and as many that are stuck.
const THREADS_MAX: usize = 64;

/// Calls that may be stuck. Those under way when a store stalls all get stuck; after that, one with each probe.
const STUCK_MAX: usize = 32;

/// How long after a call got stuck the next one is tried.
const PROBE_EVERY: Duration = Duration::from_secs(5);

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
        Self { inner, calls: Arc::new(Calls::new(timeout)) }
    }

    /// From now on calls are limited, and threads are started for them. Before, they take the time they take: a process that
    /// is not set up yet may want to have one thread only.
    pub fn arm(&self) {
        self.calls.is_armed.store(true, Ordering::Release);
    }
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
        self.calls.run(&"the list of its objects", move || inner.list(&suffix))
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        let (inner, wanted) = (self.inner.clone(), name.clone());
        let source = self.calls.run(&format_args!("object {name:?}"), move || inner.open(&wanted))?;
        if source.is_local() {
            return Ok(source);
        }
        let (stat, name, calls) = (source.stat().clone(), name.clone(), self.calls.clone());
        Ok(Arc::new(DeadlineObject { source: Some(source), stat, name, calls }))
    }
}

/// An object whose calls return in time.
struct DeadlineObject {
    /// Taken when it is dropped: closing a file may hang as well.
    source: Option<Arc<dyn ObjectSource>>,
    stat: ObjectStat,
    name: ObjectName,
    calls: Arc<Calls>,
}

impl DeadlineObject {
    fn source(&self) -> Result<&Arc<dyn ObjectSource>> {
        self.source.as_ref().ok_or_else(|| Error::new(ErrorKind::StoreIo, "the object is closed"))
    }
}

impl ObjectSource for DeadlineObject {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
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

    fn is_changed(&self) -> Result<bool> {
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
}

/// Since when the store does not answer.
#[derive(Clone, Copy)]
struct Stall {
    since: Instant,
    tried: Instant,
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
            state: Mutex::default(),
            idle: Condvar::new(),
            buffers: Mutex::default(),
        }
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
        if !self.is_armed.load(Ordering::Acquire) {
            return call();
        }
        let begun = Instant::now();
        let (thread, patience) = self.admit(what, begun)?;
        let (sender, answer) = mpsc::sync_channel(1);
        let progress = Arc::new(Mutex::new(Progress::Running));
        let job = {
            let (calls, progress, thread) = (self.clone(), progress.clone(), thread.clone());
            Box::new(move || {
                let outcome = catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::StoreIo, "a bug stopped this call of the store"))
                });
                calls.returned(&progress, thread);
                // Nobody listens when it was given up.
                let _ = sender.send(outcome);
            })
        };
        if thread.send(job).is_err() {
            return Err(Error::new(ErrorKind::StoreIo, "a thread for calls of the store has ended"));
        }
        match answer.recv_timeout(patience.saturating_sub(begun.elapsed())) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::new(ErrorKind::StoreIo, "a call of the store was lost"))
            }
            Err(RecvTimeoutError::Timeout) => self.give_up(what, begun, &progress, &answer),
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
                if !may_probe || now.duration_since(stall.tried) < PROBE_EVERY {
                    let seconds = stall.since.elapsed().as_secs();
                    let message =
                        format!("the store has not answered for {seconds} s, so {what} is not asked for");
                    return Err(Error::new(ErrorKind::StoreIo, message));
                }
                stall.tried = now;
                patience = self.timeout.min(PROBE_EVERY);
            }
            if let Some(thread) = state.idle.pop() {
                return Ok((thread, patience));
            }
            if state.threads < THREADS_MAX {
                let thread = start_thread()?;
                state.threads += 1;
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
        if let Some(stall) = state.stall.take() {
            let seconds = stall.since.elapsed().as_secs();
            tracing::warn!("the store answers again, after {seconds} s");
        }
        state.idle.push(thread);
        drop(state);
        self.idle.notify_one();
    }

    /// Leaves a call behind, unless it has just returned.
    fn give_up<T>(
        &self,
        what: &dyn Display,
        begun: Instant,
        progress: &Mutex<Progress>,
        answer: &Receiver<Result<T>>,
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
        if state.stall.is_none() {
            tracing::warn!("{message}; it is asked again now and then");
            state.stall = Some(Stall { since: begun, tried: Instant::now() });
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
            let thread = (state.threads < THREADS_MAX).then(start_thread)?.ok()?;
            state.threads += 1;
            Some(thread)
        });
        drop(state);
        let Some(thread) = thread else { return act() };
        let (calls, again) = (self.clone(), thread.clone());
        let job = Box::new(move || {
            let _ = catch_unwind(AssertUnwindSafe(act));
            calls.lock().idle.push(again);
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
fn start_thread() -> Result<Sender<Job>> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let work = move || {
        for job in jobs {
            job();
        }
    };
    thread::Builder::new().name("store".to_owned()).spawn(work).map_err(|error| {
        Error::caused_by(ErrorKind::StoreIo, "cannot start a thread for a call of the store", error)
    })?;
    Ok(sender)
}

#[cfg(test)]
mod tests;
