//! What requests run on: threads, connections, another try, and an end to trying.
//!
//! Problem: the rest of the program is threads that wait, HTTP is tasks; and a network fails in ways that pass. Idea: a runtime of two threads
//! beneath each store, and one loop that every request goes through.
//!
//! Invariants: at most [`Limits::connections`] requests are under way; nobody waits longer than [`Limits::deadline`] without a byte.

use std::future::Future;
use std::sync::Arc;
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
    /// Taken when it is dropped.
    runtime: Option<Runtime>,
    tries: Tries,
}

/// The loop that requests go through; cheap to clone.
#[derive(Clone)]
pub(super) struct Tries {
    permits: Arc<Semaphore>,
    limits: Limits,
}

impl Engine {
    pub(super) fn new(limits: Limits) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(LOOKUP_THREADS_MAX)
            .thread_name("store-http")
            .enable_all()
            .build()
            .map_err(|error| {
                Error::caused_by(ErrorKind::StoreIo, "cannot start the threads for HTTP", error)
            })?;
        let permits = Arc::new(Semaphore::new(limits.connections.clamp(1, Semaphore::MAX_PERMITS)));
        Ok(Self { runtime: Some(runtime), tries: Tries { permits, limits } })
    }

    fn runtime(&self) -> Result<&Runtime> {
        self.runtime.as_ref().ok_or_else(|| Error::new(ErrorKind::StoreIo, "the store is closed"))
    }

    /// Waits for `task`. Not to be called by a task.
    pub(super) fn wait<T>(&self, task: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime()?.block_on(task)
    }

    /// Lets `task` run; nobody waits for it.
    pub(super) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    pub(super) fn tries(&self) -> &Tries {
        &self.tries
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Looking up a name may hang for long, and nobody waits for it any more.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Tries {
    pub(super) fn limits(&self) -> Limits {
        self.limits
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
            match outcome {
                Some(Ok(value)) => return Ok(value),
                Some(Err(failed)) if !failed.is_passing => return Err(failed.error),
                Some(Err(failed)) => last = Some(failed.error),
                None => return Err(self.given_up(last)),
            }
            if progress.take() && !is_sending {
                (begun, pause) = (Instant::now(), FIRST_PAUSE);
            }
            long_tries += u32::from(is_sending && is_long);
            if long_tries == LONG_TRIES_MAX {
                return Err(self.given_up(last));
            }
            let pause_now = jittered(pause);
            if begun.elapsed() + pause_now >= self.limits.deadline {
                return Err(self.given_up(last));
            }
            if let Some(error) = &last {
                tracing::debug!("tried again after {} ms: {error}", pause_now.as_millis());
            }
            sleep(pause_now).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn given_up(&self, last: Option<Error>) -> Error {
        let seconds = self.limits.deadline.as_secs_f32();
        let message = format!("the store did not answer within {seconds:.0} s");
        match last {
            Some(last) => Error::caused_by(ErrorKind::StoreIo, message, last),
            None => Error::new(ErrorKind::StoreIo, message),
        }
    }
}

/// Whether a byte came.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<std::sync::atomic::AtomicBool>);

impl Progress {
    /// One did.
    pub(super) fn note(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// Whether one did since this was asked.
    fn take(&self) -> bool {
        self.0.swap(false, std::sync::atomic::Ordering::Relaxed)
    }
}

/// Between three quarters and all of `pause`, so that those who failed together do not come again together.
fn jittered(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    pause.mul_f64(0.75 + 0.25 * f64::from(nanos % 1024) / 1024.0)
}
