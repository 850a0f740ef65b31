//! Calls on threads of their own, which are left behind when they take too long, and what is known of the store by them.
//!
//! Invariants: those of [`deadline`](super) on the number of threads, and of those that are stuck.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::under_way::UnderWay;
use super::{LOOK_EVERY, Look, SLOW};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use crate::waiting::Waiting;

/// Threads for calls, at most: what a busy mount has under way, and as many that are stuck.
pub(super) const THREADS_MAX: usize = 64;

/// Calls that may be stuck. Those under way when a store stalls all get stuck; after that, one with each probe.
pub(super) const STUCK_MAX: usize = 32;

/// How long after a call got stuck the next one is tried.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How long a probe may take: whoever asks for something meanwhile waits for it.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a thread waits for its next call before it ends.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How often it is told that a store does not answer: one that comes and goes would fill the log.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long a cancelled command waits on for a call.
const CANCEL_EVERY: Duration = Duration::from_millis(100);

/// Buffers kept for the next reads.
const BUFFERS_MAX: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// A thread for calls, to those who send it some.
#[derive(Clone)]
pub(super) struct Caller {
    number: u64,
    jobs: Sender<Job>,
}

/// What a call has got.
struct Admitted {
    thread: Caller,
    /// How long to wait for it.
    patience: Duration,
    /// Whether it is to find out if the store answers again.
    is_first: bool,
}

/// The threads, and what is known of the store.
pub(super) struct Calls {
    /// What the store is called.
    location: Box<str>,
    timeout: Duration,
    /// [`IDLE_MAX`], except in tests.
    pub(super) idle_max: Duration,
    is_armed: AtomicBool,
    /// Whether the command that asks is to end.
    is_cancelled: Option<fn() -> bool>,
    store: Arc<dyn Store>,
    /// Whether the store is the one to say whether it answers.
    has_judge: bool,
    /// Counts the looks.
    tick: AtomicU32,
    /// Whether [`State::stall`] is there.
    is_stalled: AtomicBool,
    /// What expendable threads do.
    pub(super) reads: UnderWay,
    /// What our own threads do.
    asks: UnderWay,
    state: Mutex<State>,
    /// A thread became idle.
    idle: Condvar,
    buffers: Mutex<Vec<Vec<u8>>>,
}

#[derive(Default)]
pub(super) struct State {
    /// The last one rests the shortest and is asked first, so that those that are not needed rest on, until they end.
    pub(super) idle: Vec<Caller>,
    pub(super) threads: usize,
    /// How many there ever were.
    started: u64,
    pub(super) stuck: usize,
    pub(super) stall: Option<Stall>,
    /// When it was last told that the store does not answer.
    told: Option<Instant>,
    /// All that were started and may not have ended.
    pub(super) joined: Vec<JoinHandle<()>>,
}

/// Since when the store does not answer.
#[derive(Clone, Copy)]
pub(super) struct Stall {
    pub(super) since: Instant,
    /// Not yet after a call of an expendable thread hung: that may have been the fault of its object.
    pub(super) tried: Option<Instant>,
    /// Whether anybody was told of it.
    is_told: bool,
    /// Whether the store, where it is the one to say, has said so: it may notice a moment later, and has not answered meanwhile.
    is_confirmed: bool,
}

/// What became of one call. Changed under the lock of [`State`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Running,
    Done,
    GivenUp,
}

impl Calls {
    pub(super) fn new(store: &Arc<dyn Store>, timeout: Duration) -> Self {
        Self {
            location: store.location().into(),
            timeout,
            idle_max: IDLE_MAX,
            is_armed: AtomicBool::new(false),
            is_cancelled: None,
            store: store.clone(),
            has_judge: store.silence().is_some(),
            tick: AtomicU32::new(0),
            is_stalled: AtomicBool::new(false),
            reads: UnderWay::default(),
            asks: UnderWay::default(),
            state: Mutex::default(),
            idle: Condvar::new(),
            buffers: Mutex::default(),
        }
    }

    /// The same, whose calls end early once `is_cancelled` says so.
    pub(super) fn cancelled_by(
        store: &Arc<dyn Store>,
        timeout: Duration,
        is_cancelled: fn() -> bool,
    ) -> Self {
        Self { is_cancelled: Some(is_cancelled), ..Self::new(store, timeout) }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// See [`DeadlineStore::arm`](super::DeadlineStore::arm).
    pub(super) fn arm(&self) {
        self.is_armed.store(true, Ordering::Release);
    }

    /// See [`DeadlineStore::disarm`](super::DeadlineStore::disarm).
    pub(super) fn disarm(&self) -> Result<()> {
        self.is_armed.store(false, Ordering::Release);
        let mut state = self.lock();
        state.idle.clear();
        let threads = std::mem::take(&mut state.joined);
        let stuck = state.stuck;
        state.threads = 0;
        drop(state);
        if stuck > 0 {
            return Err(Error::new(
                ErrorKind::StoreIo,
                format!("the store {:?} does not answer", self.location),
            ));
        }
        threads.into_iter().for_each(|thread| drop(thread.join()));
        Ok(())
    }

    /// See [`DeadlineStore::look`](super::DeadlineStore::look).
    pub(super) fn look(&self) -> Look {
        let tick = self.tick.fetch_add(1, Ordering::Relaxed) + 1;
        let reads = self.reads.oldest(tick);
        let oldest = reads.max(self.asks.oldest(tick)) * LOOK_EVERY;
        if self.has_judge() {
            // However long a call takes.
            self.judged();
        } else {
            let has_answered = self.asks.answered_within(tick, ticks(2 * SLOW));
            if reads * LOOK_EVERY > self.timeout && !has_answered {
                self.stall(oldest);
            }
        }
        let is_stalled = self.is_stalled();
        let is_hung = is_stalled || !self.has_judge() && oldest > self.timeout;
        Look { is_slow: is_stalled || oldest >= SLOW, is_hung, is_stalled }
    }

    /// The number of the last look.
    pub(super) fn tick(&self) -> u32 {
        self.tick.load(Ordering::Relaxed)
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.is_stalled.load(Ordering::Relaxed)
    }

    pub(super) fn is_answering(&self) -> bool {
        !self.is_stalled()
            && self.has_answered()
            && (self.has_judge() || self.asks.oldest(self.tick()) * LOOK_EVERY < SLOW)
    }

    /// Whether a call is likely to return soon.
    pub(super) fn is_quick(&self) -> bool {
        self.is_answering() && self.silence().is_none_or(|silence| silence < SLOW)
    }

    /// See [`Store::silence`].
    fn silence(&self) -> Option<Duration> {
        if self.has_judge { self.store.silence() } else { None }
    }

    /// Whether the store ends calls by itself.
    pub(super) fn has_judge(&self) -> bool {
        self.has_judge
    }

    /// How long the store may still be silent, where it is the one to say.
    fn time_left(&self) -> Option<Duration> {
        self.timeout.checked_sub(self.silence()?).filter(|left| !left.is_zero())
    }

    /// Whether a call that has returned was answered.
    fn has_answered(&self) -> bool {
        !self.has_judge || self.store.is_answering()
    }

    /// A call that an expendable thread began at the tick `began` has returned, `with_answer` or given up.
    pub(super) fn returned_here(&self, began: u32, with_answer: bool) {
        if self.is_stalled() || !self.has_answered() {
            // One that was quick may have been answered by this machine's memory, while others waited.
            let waited = self.tick().wrapping_sub(began) * LOOK_EVERY;
            self.judge_by_return(&mut self.lock(), with_answer && (self.has_judge() || waited >= SLOW));
        }
    }

    /// Believes what the store says of itself.
    fn judged(&self) {
        if self.is_stalled() || !self.has_answered() {
            self.judge(&mut self.lock());
        }
    }

    /// The same; does nothing where it says nothing.
    fn judge(&self, state: &mut State) {
        match (self.has_judge(), self.has_answered()) {
            (true, false) => self.begin_stall(state, self.timeout),
            (true, true) if state.stall.is_some_and(|stall| stall.is_confirmed) => self.end_stall(state),
            _ => {}
        }
    }

    /// The same after a call has returned. One that was given up, here or by whoever it was passed on to, is no answer.
    fn judge_by_return(&self, state: &mut State, with_answer: bool) {
        if with_answer && self.has_answered() {
            self.end_stall(state);
        } else {
            self.judge(state);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `call` returns, or [`ErrorKind::StoreIo`] when it does not in time. `what` is for the message.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        what: &dyn Display,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run_within(Some(self.timeout), what, call)
    }

    /// As [`run`](Self::run), with other patience; with none told, as long as it takes, which then is not what the store is judged by.
    pub(super) fn run_within<T: Send + 'static>(
        self: &Arc<Self>,
        patience: Option<Duration>,
        what: &dyn Display,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if !self.is_armed.load(Ordering::Acquire) {
            let _waiting = Waiting::begin(what);
            return call();
        }
        // Many short calls are to end as early as a long one.
        if self.is_cancelled.is_some_and(|is| is()) {
            let message = format!("interrupted before the store {:?} was asked for {what}", self.location);
            return Err(Error::new(ErrorKind::Interrupted, message));
        }
        let begun = Instant::now();
        let Admitted { thread, patience: granted, is_first } = self.admit(what, begun)?;
        // A probe has less time than the store is given for an answer.
        let is_probe = granted < self.timeout;
        let is_judged = patience.is_some() || is_probe;
        let mut patience = if is_judged { patience.unwrap_or(granted).min(granted) } else { Duration::MAX };
        let says_all = patience >= granted;
        let (sender, answer) = mpsc::sync_channel(1);
        let progress = Arc::new(Mutex::new(Progress::Running));
        let job = {
            let (calls, progress, thread) = (self.clone(), progress.clone(), thread.clone());
            Box::new(move || {
                let under_way = is_judged.then(|| calls.asks.begin(calls.tick())).flatten();
                let asked = || if is_first { calls.store.hello().and_then(|()| call()) } else { call() };
                let outcome = catch_unwind(AssertUnwindSafe(asked)).unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::StoreIo, "a bug stopped this call of the store"))
                });
                drop(under_way);
                let is_proof = is_answer(&outcome) && (is_first || calls.is_proven(&progress));
                calls.returned(&progress, thread, is_proof);
                // Nobody listens when it was given up.
                let _ = sender.send(outcome);
            })
        };
        if thread.jobs.send(job).is_err() {
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
                // The store gives up by itself what nothing comes to; while something comes to others, this one may wait for its turn.
                Err(RecvTimeoutError::Timeout)
                    if left.is_zero() && says_all && !is_probe && self.time_left().is_some() =>
                {
                    patience = begun.elapsed() + self.time_left().unwrap_or_default();
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    return self.give_up(what, begun, &progress, &answer, says_all);
                }
                Err(RecvTimeoutError::Timeout) if self.is_cancelled.is_some_and(|is| is()) => {
                    let _ = self.give_up(what, begun, &progress, &answer, false);
                    return Err(Error::new(
                        ErrorKind::Interrupted,
                        format!("interrupted while the store {:?} did not answer", self.location),
                    ));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Whether the store answers, asked by a call that has returned after nobody waited for it any more. Of one that somebody waits for the
    /// store's own word is taken, where it has one, and nothing else: it may have been answered by this machine's memory.
    fn is_proven(&self, progress: &Mutex<Progress>) -> bool {
        let is_given_up = || *progress.lock().unwrap_or_else(PoisonError::into_inner) == Progress::GivenUp;
        self.has_judge()
            || is_given_up() && catch_unwind(AssertUnwindSafe(|| self.store.hello().is_ok())).unwrap_or(false)
    }

    /// Notes that the store does not answer, since `waited` ago.
    fn stall(&self, waited: Duration) {
        self.begin_stall(&mut self.lock(), waited);
    }

    fn begin_stall(&self, state: &mut State, waited: Duration) {
        if let Some(stall) = &mut state.stall {
            stall.is_confirmed = true;
        } else {
            let now = Instant::now();
            let since = now.checked_sub(waited).unwrap_or(now);
            state.stall = Some(Stall { since, tried: None, is_told: false, is_confirmed: true });
            self.is_stalled.store(true, Ordering::Relaxed);
            // A command tells why it fails.
            if self.is_cancelled.is_none() {
                self.tell_stall(state, None);
            }
        }
    }

    /// Tells that the store does not answer, unless the last time that it was told is not long ago; `why` where somebody knows better.
    fn tell_stall(&self, state: &mut State, why: Option<&str>) {
        let is_soon = state.told.is_some_and(|told| told.elapsed() < TELL_EVERY);
        let Some(stall) = state.stall.as_mut().filter(|stall| !stall.is_told && !is_soon) else { return };
        stall.is_told = true;
        state.told = Some(Instant::now());
        let seconds = stall.since.elapsed().as_secs();
        match why {
            Some(why) => tracing::warn!("{why}; it is asked again now and then"),
            None => tracing::warn!(
                "the store {:?} did not answer within {seconds} s; it is asked again now and then",
                self.location
            ),
        }
    }

    /// Notes that it does.
    fn end_stall(&self, state: &mut State) {
        if let Some(stall) = state.stall.take() {
            self.is_stalled.store(false, Ordering::Relaxed);
            if stall.is_told {
                let seconds = stall.since.elapsed().as_secs();
                tracing::warn!("the store {:?} answers again, after {seconds} s", self.location);
            }
        }
    }

    /// A thread for a call and how long to wait for it, or why there is none.
    fn admit(self: &Arc<Self>, what: &dyn Display, begun: Instant) -> Result<Admitted> {
        let (mut patience, mut is_first) = (self.timeout, false);
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.stall.is_some() {
                // It may have been heard by somebody else.
                self.judge(&mut state);
                if self.is_cancelled.is_none() {
                    self.tell_stall(&mut state, None);
                }
            }
            let may_probe = state.stuck < STUCK_MAX;
            if let Some(stall) = &mut state.stall {
                let is_soon = stall.tried.is_some_and(|tried| now.duration_since(tried) < PROBE_EVERY);
                if !may_probe || is_soon {
                    let seconds = stall.since.elapsed().as_secs();
                    let message = format!(
                        "the store {:?} has not answered for {seconds} s, so {what} is not asked for",
                        self.location
                    );
                    return Err(Error::new(ErrorKind::StoreIo, message));
                }
                stall.tried = Some(now);
                (patience, is_first) = (self.timeout.min(PROBE_PATIENCE), true);
            }
            if let Some(thread) = state.idle.pop() {
                return Ok(Admitted { thread, patience, is_first });
            }
            if state.threads < THREADS_MAX {
                let thread = self.start_thread(&mut state)?;
                return Ok(Admitted { thread, patience, is_first });
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
    fn returned(&self, progress: &Mutex<Progress>, thread: Caller, with_answer: bool) {
        let mut state = self.lock();
        let before =
            std::mem::replace(&mut *progress.lock().unwrap_or_else(PoisonError::into_inner), Progress::Done);
        if before == Progress::GivenUp {
            state.stuck -= 1;
        }
        self.judge_by_return(&mut state, with_answer);
        self.rests(&mut state, thread);
        drop(state);
        self.idle.notify_one();
    }

    /// Keeps a thread for the next call, unless [`disarm`](Self::disarm) waits for its end.
    fn rests(&self, state: &mut State, thread: Caller) {
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
        let message = format!(
            "the store {:?} did not answer within {seconds:.0} s when asked for {what}",
            self.location
        );
        if says_all && state.stall.is_none() {
            let is_confirmed = !self.has_judge() || !self.has_answered();
            let tried = Some(Instant::now());
            state.stall = Some(Stall { since: begun, tried, is_told: false, is_confirmed });
            self.is_stalled.store(true, Ordering::Relaxed);
            self.tell_stall(&mut state, Some(&message));
        }
        Err(Error::new(ErrorKind::StoreIo, message))
    }

    /// Does something that nobody waits for; here, where no thread can be had for it.
    pub(super) fn start_and_forget(self: &Arc<Self>, act: impl FnOnce() + Send + 'static) {
        if !self.is_armed.load(Ordering::Acquire) {
            return act();
        }
        let mut state = self.lock();
        let thread = state.idle.pop().or_else(|| {
            let may_start = state.threads < THREADS_MAX;
            may_start.then(|| self.start_thread(&mut state))?.ok()
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
        let _ = thread.jobs.send(job);
    }

    /// A thread that does what it is sent until nobody can send any more, or has not for long.
    fn start_thread(self: &Arc<Self>, state: &mut State) -> Result<Caller> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let number = state.started;
        let (calls, idle_max): (Weak<Self>, _) = (Arc::downgrade(self), self.idle_max);
        let work = move || loop {
            match jobs.recv_timeout(idle_max) {
                Ok(job) => job(),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    if calls.upgrade().is_none_or(|calls| calls.retires(number)) {
                        return;
                    }
                }
            }
        };
        let joined = thread::Builder::new().name("store".to_owned()).spawn(work).map_err(|error| {
            Error::caused_by(ErrorKind::StoreIo, "cannot start a thread for a call of the store", error)
        })?;
        state.started += 1;
        state.threads += 1;
        state.joined.retain(|thread| !thread.is_finished());
        state.joined.push(joined);
        Ok(Caller { number, jobs: sender })
    }

    /// Whether a thread that rests may end; one that was just asked may not.
    fn retires(&self, number: u64) -> bool {
        let mut state = self.lock();
        let Some(at) = state.idle.iter().position(|thread| thread.number == number) else { return false };
        state.idle.remove(at);
        state.threads -= 1;
        true
    }

    pub(super) fn buffer(&self) -> Vec<u8> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn keep_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < BUFFERS_MAX {
            buffers.push(buffer);
        }
    }
}

/// Whether a store that failed this call, if it did, has answered: it may have been given up by the system, or by a client of a share.
pub(super) fn is_answer<T>(outcome: &Result<T>) -> bool {
    outcome.as_ref().err().is_none_or(|error| error.kind() != ErrorKind::StoreIo)
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis() / LOOK_EVERY.as_millis()).unwrap_or(u32::MAX)
}
