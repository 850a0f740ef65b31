//! What requests run on: threads, connections, another try, and an end to trying.
//!
//! Problem: the rest of the program is threads that wait, HTTP is tasks; and a network fails in ways that pass. Idea: a runtime of two threads
//! beneath each store, and one loop that every request goes through.
//!
//! Threads start with the first request and not before, and can be [ended](Engine::rest) in between: a process that is about to give up
//! rights has to have one thread. What runs on them ends with them, and connections are made anew.
//!
//! Invariants: at most [`Limits::connections`] requests are under way; nobody waits longer than [`Limits::deadline`] without a byte.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use super::failure::Failed;
use crate::error::{Error, ErrorKind, Result};

/// Threads that requests run on; they copy bytes and decrypt, everything else waits.
const THREADS: usize = 2;

/// Threads for looking up names, at most.
const LOOKUP_THREADS_MAX: usize = 4;

/// Pause before the second try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long threads may take to end: one may be looking up a name.
const REST_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a server is tried again that has never answered: its name or the endpoint is most likely wrong, and somebody waits.
const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// How often what took longer than the deadline to be sent is sent again in vain.
const LONG_TRIES_MAX: u32 = 4;

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How hard a store is tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// How long a request and what repeats it may take until its first byte, and between two bytes of it.
    pub deadline: Duration,
    /// Requests under way at once.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(60), connections: 16 }
    }
}

/// The runtime of one store.
pub(super) struct Engine {
    runtime: Mutex<Option<Arc<Runtime>>>,
    tries: Tries,
}

/// The loop that requests go through; cheap to clone.
#[derive(Clone)]
pub(super) struct Tries {
    permits: Arc<Semaphore>,
    limits: Limits,
    /// The last request that came to an end was given up.
    is_silent: Arc<AtomicBool>,
    /// There was an answer, ever.
    is_known: Arc<AtomicBool>,
}

impl Engine {
    pub(super) fn new(limits: Limits) -> Self {
        let permits = Arc::new(Semaphore::new(limits.connections.clamp(1, Semaphore::MAX_PERMITS)));
        Self {
            runtime: Mutex::default(),
            tries: Tries { permits, limits, is_silent: Arc::default(), is_known: Arc::default() },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Runtime>>> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> Result<Arc<Runtime>> {
        let mut runtime = self.lock();
        if let Some(runtime) = &*runtime {
            return Ok(runtime.clone());
        }
        let started = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(LOOKUP_THREADS_MAX)
            .thread_name("store-http")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::caused_by(ErrorKind::StoreIo, "cannot start the threads for HTTP", error)
            })?;
        Ok(runtime.insert(Arc::new(started)).clone())
    }

    /// Waits for `task`. Not to be called by a task.
    pub(super) fn wait<T>(&self, task: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime()?.block_on(task)
    }

    /// Lets `task` run; nobody waits for it. It may be dropped before it has ended, or has begun.
    pub(super) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Without threads the task is dropped, and tells whoever waits for it.
        if let Ok(runtime) = self.runtime() {
            runtime.spawn(task);
        }
    }

    /// Ends the threads, on which nothing may run that somebody waits for. The next task starts others.
    pub(super) fn rest(&self) -> Result<()> {
        let Some(runtime) = self.lock().take() else { return Ok(()) };
        let busy = |_| Error::new(ErrorKind::StoreIo, "the store is still being asked for something");
        Arc::try_unwrap(runtime).map_err(busy)?.shutdown_timeout(REST_WAIT_MAX);
        Ok(())
    }

    pub(super) fn tries(&self) -> &Tries {
        &self.tries
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Looking up a name may hang for long, and nobody waits for it any more.
        if let Some(runtime) = self.lock().take().and_then(|runtime| Arc::try_unwrap(runtime).ok()) {
            runtime.shutdown_background();
        }
    }
}

impl Tries {
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether the last request that came to an end had an answer.
    pub(super) fn is_answering(&self) -> bool {
        !self.is_silent.load(Ordering::Relaxed)
    }

    /// The same for what sends more than it gets. A byte that was sent makes an attempt last longer, but says nothing of the next: a server may
    /// take all bytes each time, and then fail.
    pub(super) async fn run_sending<T, F>(&self, act: impl FnMut(Progress) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        self.run_with(act, true).await
    }

    /// Does `act` until it succeeds, fails for good, or the deadline has come. `act` gets an [`Instant`] to move when a byte came, from which
    /// the deadline counts anew.
    pub(super) async fn run<T, F>(&self, act: impl FnMut(Progress) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        self.run_with(act, false).await
    }

    async fn run_with<T, F>(&self, mut act: impl FnMut(Progress) -> F, is_sending: bool) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let mut long_tries = 0;
        let progress = Progress::default();
        let mut pause = FIRST_PAUSE;
        let mut begun = Instant::now();
        let mut last: Option<Error> = None;
        loop {
            let attempt = async {
                let _permit = self.permits.acquire().await;
                act(progress.clone()).await
            };
            tokio::pin!(attempt);
            let mut is_long = false;
            let outcome = loop {
                match timeout_at(begun + self.limits.deadline, attempt.as_mut()).await {
                    Ok(outcome) => break Some(outcome),
                    Err(_) if progress.take() => (begun, is_long) = (Instant::now(), true),
                    Err(_) => break None,
                }
            };
            if outcome
                .as_ref()
                .is_some_and(|outcome| outcome.as_ref().err().is_none_or(|failed| !failed.is_passing))
            {
                self.note_answer();
            }
            match outcome {
                Some(Ok(value)) => return Ok(value),
                Some(Err(failed)) if !failed.is_passing => return Err(failed.error),
                Some(Err(failed)) => last = Some(failed.error),
                None => return Err(self.given_up(begun.elapsed(), last)),
            }
            if progress.take() && !is_sending {
                self.note_answer();
                (begun, pause) = (Instant::now(), FIRST_PAUSE);
            }
            long_tries += u32::from(is_sending && is_long);
            if long_tries == LONG_TRIES_MAX {
                return Err(self.given_up(begun.elapsed(), last));
            }
            let pause_now = jittered(pause);
            let is_known = self.is_known.load(Ordering::Relaxed);
            let patience =
                if is_known { self.limits.deadline } else { self.limits.deadline.min(FIRST_PATIENCE) };
            if begun.elapsed() + pause_now >= patience {
                return Err(self.given_up(begun.elapsed(), last));
            }
            if let Some(error) = &last {
                tracing::debug!("tried again after {} ms: {error}", pause_now.as_millis());
            }
            sleep(pause_now).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn note_answer(&self) {
        self.is_silent.store(false, Ordering::Relaxed);
        self.is_known.store(true, Ordering::Relaxed);
    }

    fn given_up(&self, waited: Duration, last: Option<Error>) -> Error {
        self.is_silent.store(true, Ordering::Relaxed);
        let seconds = waited.as_secs_f32();
        let message = format!("the store did not answer within {seconds:.0} s");
        match last {
            Some(last) => Error::caused_by(ErrorKind::StoreIo, message, last),
            None => Error::new(ErrorKind::StoreIo, message),
        }
    }
}

/// Whether a byte came.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<AtomicBool>);

impl Progress {
    /// One did.
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether one did since this was asked.
    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Between three quarters and all of `pause`, so that those who failed together do not come again together.
fn jittered(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    pause.mul_f64(0.75 + 0.25 * f64::from(nanos % 1024) / 1024.0)
}
