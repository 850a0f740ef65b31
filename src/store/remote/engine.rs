//! What requests run on: threads, connections, another try, and an end to trying.
//!
//! Problem: the rest of the program is threads that wait, HTTP is tasks; and a network fails in ways that pass. Idea: a runtime of two threads
//! beneath each store, and one loop that every request goes through.
//!
//! Threads start with the first request and not before, and can be [ended](Engine::rest) in between: a process that is about to give up
//! rights has to have one thread. What runs on them ends with them, and connections are made anew.
//!
//! Invariants: at most [`Limits::connections`] requests are under way; nobody waits longer than [`Limits::deadline`] without a byte, his own or, as
//! long as there is no connection for him, one of those who have them; only a store of which nothing is heard [does not answer](super::pulse).

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};

use super::failure::Failed;
use super::lost::Lost;
pub(super) use super::pulse::Progress;
use super::pulse::Pulse;
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// Threads that requests run on; they copy bytes and decrypt, everything else waits.
const THREADS: usize = 2;

/// Threads for looking up names, at most.
const LOOKUP_THREADS_MAX: usize = 4;

/// Pause before the second try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long threads may take to end: one may be looking up a name.
const REST_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a server is tried again that has never answered: its name or the endpoint is most likely wrong, and somebody waits.
pub(super) const FIRST_PATIENCE: Duration = Duration::from_secs(10);
/// How often what took longer than the deadline to be sent is sent again in vain.
const LONG_TRIES_MAX: u32 = 4;

/// How often something else than what was asked for comes in a row before it is believed to be all that will ever come.
const WRONG_TRIES_MAX: u32 = 2;

/// The part of the deadline that a request has while the store has given up another and done nothing since: somebody may wait for one after the
/// other.
const FAILING_SHARE: u32 = 10;

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
    pulse: Arc<Pulse>,
    lost: Arc<Lost>,
}

/// Why trying came to an end.
enum Ended {
    /// Trying again is of no use.
    Failed(Error),
    /// The deadline has come.
    GivenUp(Error),
}

impl From<Ended> for Error {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Failed(error) | Ended::GivenUp(error) => error,
        }
    }
}

impl Engine {
    pub(super) fn new(limits: Limits) -> Self {
        let permits = Arc::new(Semaphore::new(limits.connections.clamp(1, Semaphore::MAX_PERMITS)));
        Self {
            runtime: Mutex::default(),
            tries: Tries { permits, limits, pulse: Arc::default(), lost: Arc::default() },
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

    /// Whether anything came to anybody since the last request began that was given up.
    pub(super) fn is_answering(&self) -> bool {
        !self.pulse.is_silent()
    }

    /// Whether something was given up and nothing has succeeded since.
    pub(super) fn is_failing(&self) -> bool {
        self.pulse.is_failing()
    }

    /// How long nothing has come to those who wait for something.
    pub(super) fn silence(&self) -> Duration {
        self.pulse.silence()
    }

    /// The same for what sends more than it gets. A byte that was sent makes an attempt last longer, but says nothing of the next: a server may
    /// take all bytes each time, and then fail.
    pub(super) async fn run_sending<T, F>(&self, act: impl FnMut(Progress) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        Ok(self.run_with(act, true).await?)
    }

    /// Does `act` until it succeeds, fails for good, or the deadline has come. `act` gets an [`Instant`] to move when a byte came, from which
    /// the deadline counts anew.
    pub(super) async fn run<T, F>(&self, act: impl FnMut(Progress) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        Ok(self.run_with(act, false).await?)
    }

    /// The same for bytes of an object. What was given up a moment ago is not tried again, as long as something else comes from the store: one of
    /// which nothing is heard is [somebody else's](Self::is_answering) to judge.
    pub(super) async fn run_for<T, F>(
        &self,
        name: &ObjectName,
        range: Range<u64>,
        act: impl FnMut(Progress) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        if let Some(error) = self.lost.error_in(name, &range, Instant::now()) {
            return Err(error);
        }
        let ended = match self.run_with(act, false).await {
            Ok(value) => return Ok(value),
            Err(ended) => ended,
        };
        if let Ended::GivenUp(error) = &ended
            && self.is_answering()
        {
            self.lost.add(name, range, error, Instant::now());
        }
        Err(ended.into())
    }

    async fn run_with<T, F>(&self, mut act: impl FnMut(Progress) -> F, is_sending: bool) -> Result<T, Ended>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let (mut long_tries, mut wrong_tries) = (0, 0);
        let progress = if is_sending { Progress::default() } else { Progress::coming(self.pulse.clone()) };
        let mut pause = FIRST_PAUSE;
        // First, since it counts from then how long nothing came.
        let _listening = self.pulse.listen();
        let mut begun = Instant::now();
        let mut last: Option<Failed> = None;
        loop {
            let Some(permit) = self.permit(&mut begun).await else { return Err(self.given_up(begun, last)) };
            let attempt = act(progress.clone());
            tokio::pin!(attempt);
            let mut is_long = false;
            let outcome = loop {
                match timeout_at(begun + self.limits.deadline, attempt.as_mut()).await {
                    Ok(outcome) => break Some(outcome),
                    Err(_) => match progress.take() {
                        Some(came) => (begun, is_long) = (came, true),
                        None => break None,
                    },
                }
            };
            drop(permit);
            if let Some(outcome) = &outcome
                && outcome.as_ref().err().is_none_or(|failed| failed.is_answer || !failed.is_passing)
            {
                self.pulse.note();
            }
            if outcome
                .as_ref()
                .is_some_and(|outcome| outcome.as_ref().err().is_none_or(|failed| !failed.is_passing))
            {
                self.pulse.note_success();
            }
            match outcome {
                Some(Ok(value)) => return Ok(value),
                Some(Err(failed)) if !failed.is_passing => return Err(Ended::Failed(failed.error)),
                Some(Err(failed)) if failed.is_foreign && !self.pulse.is_known() => {
                    return Err(Ended::Failed(failed.error));
                }
                Some(Err(failed)) => {
                    wrong_tries = if failed.is_wrong { wrong_tries + 1 } else { 0 };
                    if wrong_tries == WRONG_TRIES_MAX {
                        return Err(Ended::Failed(failed.error));
                    }
                    last = Some(failed);
                }
                None => return Err(self.given_up(begun, last)),
            }
            if let Some(came) = progress.take().filter(|_| !is_sending) {
                (begun, pause) = (came, FIRST_PAUSE);
            }
            long_tries += u32::from(is_sending && is_long);
            if long_tries == LONG_TRIES_MAX {
                return Err(self.given_up(begun, last));
            }
            let patience = match (self.pulse.is_known(), self.pulse.is_failing()) {
                (false, _) => self.limits.deadline.min(FIRST_PATIENCE),
                (true, true) => self.limits.deadline / FAILING_SHARE,
                (true, false) => self.limits.deadline,
            };
            // The last try comes when the time is up.
            let left = patience.saturating_sub(begun.elapsed());
            if left <= FIRST_PAUSE {
                return Err(self.given_up(begun, last));
            }
            let pause_now = jittered(pause).min(left - FIRST_PAUSE / 2);
            if let Some(Failed { error, .. }) = &last {
                tracing::debug!("tried again after {} ms: {error}", pause_now.as_millis());
            }
            sleep(pause_now).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// A place among the connections. The deadline, which counts from `begun`, does not come nearer while something comes to those who have one;
    /// `None` when it has come.
    async fn permit(&self, begun: &mut Instant) -> Option<SemaphorePermit<'_>> {
        let waits = Instant::now();
        let mut until = *begun + self.limits.deadline;
        let permit = self.permits.acquire();
        tokio::pin!(permit);
        loop {
            match timeout_at(until, permit.as_mut()).await {
                Ok(permit) => {
                    if self.pulse.heard_since(waits).is_some() {
                        *begun += waits.elapsed();
                    }
                    // It is never closed.
                    return permit.ok();
                }
                Err(_) => {
                    let heard = self.pulse.heard_since(waits)? + self.limits.deadline;
                    if heard <= until {
                        return None;
                    }
                    until = heard;
                }
            }
        }
    }

    fn given_up(&self, begun: Instant, last: Option<Failed>) -> Ended {
        self.pulse.note_given_up(begun);
        let seconds = begun.elapsed().as_secs_f32();
        Ended::GivenUp(match last {
            Some(Failed { error, .. }) => {
                Error::new(ErrorKind::StoreIo, format!("{error}, tried for {seconds:.0} s"))
            }
            None => {
                let message = format!("the store did not answer within {seconds:.0} s");
                Error::new(ErrorKind::StoreIo, message)
            }
        })
    }
}

/// Between three quarters and all of `pause`, so that those who failed together do not come again together.
fn jittered(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    pause.mul_f64(0.75 + 0.25 * f64::from(nanos % 1024) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_one_request_waits_for_in_vain_is_not_answering() {
        let deadline = Duration::from_millis(50);
        let engine = Engine::new(Limits { deadline, connections: 1 });
        let never = |_| std::future::pending::<Result<(), Failed>>();
        let error = engine.wait(engine.tries().run(never)).unwrap_err();
        assert!(!engine.tries().is_answering(), "{error}");
        engine.wait(engine.tries().run(|_| async { Ok(()) })).unwrap();
        assert!(engine.tries().is_answering());
    }
}
