//! Whether anything comes from a server.
//!
//! Problem: one object may fail for ever, or come slowly, while all others are fine; and who says that the store does not answer makes everybody
//! fail. Idea: every request tells of each answer and each byte here, and a store is *silent* only when a request was given up and nothing at all
//! had come to any other since it began. One that answers, and *fails* whatever is asked, is known by the same requests.
//!
//! Invariants: an answer is an answer, also one that tells of a failure; bytes that were sent are none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What was heard of a store.
#[derive(Default)]
pub(super) struct Pulse(Mutex<State>);

#[derive(Default)]
struct State {
    /// Requests that wait for something.
    waiting: usize,
    /// When something came last, or since when somebody waits.
    last: Option<Instant>,
    is_silent: bool,
    /// There was an answer, ever.
    is_known: bool,
    /// Something was given up, and nothing has succeeded since.
    is_failing: bool,
}

/// A request that waits for something, until this is dropped.
pub(super) struct Listening<'a>(&'a Pulse);

impl Pulse {
    /// Something is asked for.
    pub(super) fn listen(&self) -> Listening<'_> {
        let mut state = self.lock();
        if state.waiting == 0 {
            state.last = Some(Instant::now());
        }
        state.waiting += 1;
        Listening(self)
    }

    /// Something came.
    pub(super) fn note(&self) {
        let mut state = self.lock();
        state.last = Some(Instant::now());
        state.is_silent = false;
        state.is_known = true;
    }

    /// A request was given up, to which nothing came since `begun`.
    pub(super) fn note_given_up(&self, begun: Instant) {
        let mut state = self.lock();
        state.is_silent |= state.last.is_none_or(|last| last <= begun);
        state.is_failing = true;
    }

    /// The store does what it is asked for.
    pub(super) fn note_success(&self) {
        self.lock().is_failing = false;
    }

    /// Whether something was given up and nothing has succeeded since.
    pub(super) fn is_failing(&self) -> bool {
        self.lock().is_failing
    }

    /// When something came, if that was later than `begun`.
    pub(super) fn heard_since(&self, begun: Instant) -> Option<Instant> {
        self.lock().last.filter(|last| *last > begun)
    }

    pub(super) fn is_silent(&self) -> bool {
        self.lock().is_silent
    }

    pub(super) fn is_known(&self) -> bool {
        self.lock().is_known
    }

    /// How long nothing has come to those who wait.
    pub(super) fn silence(&self) -> Duration {
        let state = self.lock();
        state.last.filter(|_| state.waiting > 0).map_or(Duration::ZERO, |last| last.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What this protects is changed by single steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

/// When a byte of one request came.
#[derive(Clone, Default)]
pub(super) struct Progress {
    last: Arc<Mutex<Option<Instant>>>,
    /// Where it is told; `None` for bytes that are sent.
    pulse: Option<Arc<Pulse>>,
}

impl Progress {
    /// Of bytes that come.
    pub(super) fn coming(pulse: Arc<Pulse>) -> Self {
        Self { last: Arc::default(), pulse: Some(pulse) }
    }

    /// One did.
    pub(super) fn note(&self) {
        *self.lock() = Some(Instant::now());
        if let Some(pulse) = &self.pulse {
            pulse.note();
        }
    }

    /// When the last one did since this was asked.
    pub(super) fn take(&self) -> Option<Instant> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_silent_when_nothing_came_to_anybody() {
        let pulse = Arc::new(Pulse::default());
        let _first = pulse.listen();
        let begun = Instant::now();
        Progress::coming(pulse.clone()).note();
        pulse.note_given_up(begun);
        assert!(!pulse.is_silent() && pulse.is_known() && pulse.heard_since(begun).is_some());
        assert!(pulse.is_failing(), "an answer need not be a success");
        pulse.note_success();
        assert!(!pulse.is_failing());
        let begun = Instant::now();
        Progress::default().note();
        pulse.note_given_up(begun);
        assert!(pulse.is_silent() && pulse.heard_since(begun).is_none(), "what was sent is no answer");
        pulse.note();
        assert!(!pulse.is_silent());
    }

    #[test]
    fn nobody_who_waits_for_nothing_hears_silence() {
        let pulse = Pulse::default();
        let soon = Duration::from_millis(20);
        drop(pulse.listen());
        std::thread::sleep(soon);
        assert_eq!(pulse.silence(), Duration::ZERO);
        let _waiting = pulse.listen();
        std::thread::sleep(soon);
        let _another = pulse.listen();
        assert!(pulse.silence() >= soon);
        pulse.note();
        assert!(pulse.silence() < soon);
    }
}
