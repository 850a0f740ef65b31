//! Threads that send objects while others are made, and keep the marker fresh.
//!
//! Invariants: what waits and what is sent takes [`SENT_BYTES_MAX`] bytes or is one object; the first failure ends all; when
//! [`Crew::end`] returns, no thread is left and nothing is on its way.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{interrupted, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectVersion;
use crate::store::objects::{Content, ObjectStore, Stop};
use crate::types::ObjectName;

/// Objects that are sent at once. A server answers one after some milliseconds at least, and one connection seldom fills a network.
const THREADS: usize = 6;

/// What may wait or be on its way, in bytes: two objects of the usual size that did not shrink.
pub(super) const SENT_BYTES_MAX: u64 = 100 << 20;

/// Small objects that may wait.
const WAITING_MAX: usize = 1024;

/// How often who waits looks whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often the marker is put in again; see [`marker`](super::marker).
pub(super) const BEAT_EVERY: Duration = Duration::from_secs(300);

/// An object to be sent.
pub(super) struct Job {
    pub(super) name: ObjectName,
    pub(super) content: Content,
}

type Beat = Box<dyn Fn(Stop<'_>) -> Result<()> + Send + Sync>;

struct Shared {
    store: Arc<dyn ObjectStore>,
    beat: Beat,
    state: Mutex<State>,
    changed: Condvar,
    /// Asked by who sends.
    is_ended: AtomicBool,
}

struct State {
    waiting: VecDeque<Job>,
    /// Waiting or on their way.
    jobs: usize,
    bytes: u64,
    /// Names that were told, with the version of what is there.
    there: HashMap<ObjectName, Option<ObjectVersion>>,
    failure: Option<Error>,
    next_beat: Instant,
}

pub(super) struct Crew {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Crew {
    /// A crew that puts objects into `store` and calls `beat` now and then, whose failure ends all.
    pub(super) fn start(store: Arc<dyn ObjectStore>, beat: Beat) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            jobs: 0,
            bytes: 0,
            there: HashMap::new(),
            failure: None,
            next_beat: Instant::now() + BEAT_EVERY,
        };
        let shared = Arc::new(Shared {
            store,
            beat,
            state: Mutex::new(state),
            changed: Condvar::new(),
            is_ended: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        for number in 1..=THREADS {
            let shared = shared.clone();
            let started =
                std::thread::Builder::new().name(format!("upload {number}")).spawn(move || shared.work());
            match started {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::warn!("only {} threads could be started: {error}", number - 1),
            }
        }
        Self { shared, threads: Mutex::new(threads) }
    }

    /// Lets an object be sent; waits while there is no room.
    pub(super) fn put(&self, job: Job, stop: Stop<'_>) -> Result<()> {
        if lock(&self.threads).is_empty() {
            return Err(Error::new(ErrorKind::Target, "there is no thread that could send objects"));
        }
        let len_bytes = job.content.len_bytes();
        let mut state = self.wait_while(stop, |state| {
            state.jobs > 0 && state.bytes + len_bytes > SENT_BYTES_MAX || state.waiting.len() >= WAITING_MAX
        })?;
        state.there.insert(job.name.clone(), None);
        state.bytes += len_bytes;
        state.jobs += 1;
        state.waiting.push_back(job);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Waits until all are there; which these are.
    pub(super) fn settle(&self, stop: Stop<'_>) -> Result<HashMap<ObjectName, ObjectVersion>> {
        let state = self.wait_while(stop, |state| state.jobs > 0)?;
        let there = state.there.iter();
        Ok(there.filter_map(|(name, version)| Some((name.clone(), version.clone()?))).collect())
    }

    fn wait_while(
        &self,
        stop: Stop<'_>,
        is_early: impl Fn(&State) -> bool,
    ) -> Result<std::sync::MutexGuard<'_, State>> {
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            if stop() {
                return Err(interrupted());
            }
            if !is_early(&state) {
                return Ok(state);
            }
            let waited = self.shared.changed.wait_timeout(state, LOOK_EVERY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything that may be in the store.
    pub(super) fn told(&self) -> Vec<ObjectName> {
        lock(&self.shared.state).there.keys().cloned().collect()
    }

    /// Stops what is on its way, and waits for the threads.
    pub(super) fn end(&self) {
        self.shared.is_ended.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        for thread in lock(&self.threads).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that sends objects panicked");
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Relaxed)
    }

    fn work(&self) {
        let _alarm = Alarm(self);
        let mut state = lock(&self.state);
        while !self.is_ended() && state.failure.is_none() {
            if Instant::now() >= state.next_beat {
                state.next_beat = Instant::now() + BEAT_EVERY;
                drop(state);
                let outcome = (self.beat)(&|| self.is_ended());
                state = lock(&self.state);
                if let Err(error) = outcome {
                    state.failure.get_or_insert(error);
                    self.changed.notify_all();
                }
                continue;
            }
            let Some(job) = state.waiting.pop_front() else {
                let waited = self.changed.wait_timeout(state, LOOK_EVERY);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            };
            drop(state);
            let outcome = self.store.put(&job.name, &job.content, &|| self.is_ended());
            state = lock(&self.state);
            state.jobs -= 1;
            state.bytes -= job.content.len_bytes();
            match outcome {
                Ok(version) => drop(state.there.insert(job.name, Some(version))),
                Err(error) => drop(state.failure.get_or_insert(error)),
            }
            self.changed.notify_all();
        }
    }
}

/// Ends the others' waiting when a thread panics.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::new(ErrorKind::Target, "a thread that sends objects panicked");
            lock(&self.0.state).failure.get_or_insert(error);
        }
    }
}
