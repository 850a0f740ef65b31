//! Threads for work that nobody waits for: reading ahead, decoding ahead, saving restart points.
//!
//! Problem: such work must use idle cores and must not slow what somebody does wait for. Idea: a few threads with a short
//! queue; what does not fit is not done. Whoever comes to need the result of a job that has not begun does it himself.
//!
//! Invariants: the queue is bounded; a job that panics takes neither its thread nor the queue with it; nobody ever waits for a
//! job to begin, so jobs may wait for readers.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::expendable;

/// Jobs that may wait, for each thread. Work that is older than this many others is no longer ahead of anybody.
const QUEUE_PER_THREAD: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads, started when the first job comes.
pub struct Workers {
    threads_max: AtomicUsize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    is_closed: bool,
}

impl Workers {
    /// A pool of at most `threads` threads; with 0 no job is ever done.
    pub fn new(threads: usize) -> Self {
        Self { threads_max: AtomicUsize::new(threads), shared: Arc::default() }
    }

    /// How many threads there are at most.
    pub fn threads(&self) -> usize {
        self.threads_max.load(Ordering::Relaxed)
    }

    /// One thread more from now on, in place of one of the caller's that has nothing left to do.
    pub fn allow_one_more(&self) {
        self.threads_max.fetch_add(1, Ordering::Relaxed);
    }

    /// Queues a job; `false` when it was dropped because too many wait.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let threads_max = self.threads();
        let mut state = self.shared.lock();
        if state.is_closed || state.queue.len() >= QUEUE_PER_THREAD * threads_max {
            return false;
        }
        state.queue.push_back(Box::new(job));
        if state.idle < state.queue.len() && state.threads < threads_max {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("worker".to_owned());
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    tracing::warn!("cannot start a thread for work in the background: {error}");
                    // Whatever a job holds may want to submit one when it is dropped.
                    let dropped = std::mem::take(&mut state.queue);
                    drop(state);
                    drop(dropped);
                    return false;
                }
                Err(_) => {}
            }
        }
        drop(state);
        self.shared.changed.notify_one();
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        expendable::declare();
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a bug stopped a job in the background");
                }
                state = self.lock();
            } else if state.is_closed {
                state.threads -= 1;
                return;
            } else {
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

impl Drop for Workers {
    /// Jobs that have not begun are dropped; those that run end by themselves. Nobody is waited for: the last user of the
    /// pool may be one of its own jobs.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        let dropped = std::mem::take(&mut state.queue);
        drop(state);
        drop(dropped);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn jobs_are_done_by_several_threads_and_a_panic_stops_none() {
        let workers = Workers::new(2);
        let (sender, done) = mpsc::channel();
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        for n in 0..20 {
            let sender = sender.clone();
            assert!(workers.submit(move || {
                sender.send(n).unwrap();
                assert!(n % 3 != 0, "bug");
            }));
        }
        let mut seen: Vec<i32> =
            (0..20).map(|_| done.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
        seen.sort_unstable();
        std::panic::set_hook(quiet);
        assert_eq!(seen, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(!Workers::new(0).submit(|| ()));
        let workers = Workers::new(1);
        let (release, held) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        assert!(workers.submit(move || {
            begun.send(()).unwrap();
            let _ = held.recv();
        }));
        has_begun.recv().unwrap();
        let taken = (0..100).filter(|_| workers.submit(|| ())).count();
        assert_eq!(taken, QUEUE_PER_THREAD);
        drop(release);
    }

    #[test]
    fn the_last_user_may_be_a_job() {
        let workers = Arc::new(Workers::new(1));
        let (sender, done) = mpsc::channel();
        let own = workers.clone();
        let (go, start) = mpsc::channel::<()>();
        assert!(workers.submit(move || {
            start.recv().unwrap();
            drop(own);
            sender.send(()).unwrap();
        }));
        drop(workers);
        go.send(()).unwrap();
        done.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}
