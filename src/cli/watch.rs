//! What a command that writes says and does while its store does not answer.
//!
//! Problem: a call that changes a store cannot be given up like one that reads: it may take place after all, and a file server that
//! starts anew should not cost a backup of hours. So it waits; but whoever sits before it must know for what, and must get away.
//! Idea: a thread that never touches the store looks at [the calls under way](crate::waiting), tells of one that takes long, and when a
//! signal has asked for an end, and a call hangs, ends the process in the middle of it.
//!
//! Invariant: all that writes leaves at any moment what the next run takes away, so ending there harms nobody.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::exit::{Failure, note};
use super::progress;
use super::signals::{is_interrupted, last_signal};
use crate::error::ErrorKind;
use crate::waiting::{self, Call};

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long after a signal the command may try to end by itself, which takes away what it has begun.
const ORDERLY: Duration = Duration::from_millis(500);

/// A call that takes so long is taken to hang, where a signal has asked for an end.
const HANGS: Duration = Duration::from_secs(2);

/// Watches until it is dropped.
pub(super) struct Watch {
    /// Dropped to end it.
    ended: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Tells of calls that take longer than `patience`; of none where there is no limit.
    pub(super) fn start(store: &Path, patience: Option<Duration>) -> Self {
        let (sender, ended) = mpsc::channel::<()>();
        let mut watcher =
            Watcher { store: store.to_owned(), patience, told: None, cancelled: None, is_end_told: false };
        let watch = move || {
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK_EVERY) {
                match watcher.look(Instant::now(), waiting::oldest(), is_interrupted()) {
                    None => {}
                    Some(Event::Tell(text)) => note(&text),
                    Some(Event::End(failure)) => {
                        progress::clear();
                        let failure = failure.by_signal(last_signal());
                        failure.print();
                        std::process::exit(failure.code().into());
                    }
                }
            }
            // The command has come to its end because the store answers.
            if let Some(Event::Tell(text)) = watcher.look(Instant::now(), None, false) {
                note(&text);
            }
        };
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(watch);
        Self { ended: Some(sender), thread: thread.ok() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is to be done.
#[derive(Debug)]
enum Event {
    Tell(String),
    End(Failure),
}

/// When what is said; knows no clock.
struct Watcher {
    store: PathBuf,
    patience: Option<Duration>,
    /// The call that was told of.
    told: Option<Call>,
    /// When the signal was seen.
    cancelled: Option<Instant>,
    /// Whether it was told that the run is ending.
    is_end_told: bool,
}

impl Watcher {
    fn look(&mut self, now: Instant, oldest: Option<Call>, is_cancelled: bool) -> Option<Event> {
        let store = &self.store;
        if let Some(told) =
            self.told.take_if(|told| oldest.as_ref().is_none_or(|call| call.number != told.number))
        {
            let seconds = now.duration_since(told.since).as_secs();
            return Some(Event::Tell(format!(
                "cinderfs: the store {store:?} answers again, after {seconds} s\n"
            )));
        }
        if is_cancelled {
            let since = *self.cancelled.get_or_insert(now);
            if !self.is_end_told && now.duration_since(since) >= ORDERLY {
                self.is_end_told = true;
                return Some(Event::Tell("cinderfs: interrupted, cleaning up\n".to_owned()));
            }
        }
        let call = oldest?;
        let waited = now.duration_since(call.since);
        if let Some(since) = self.cancelled
            && waited >= HANGS
            && now.duration_since(since) >= ORDERLY
        {
            let seconds = waited.as_secs();
            let message = format!(
                "interrupted while the store {store:?} did not answer for {seconds} s when asked for {}",
                call.what
            );
            return Some(Event::End(
                Failure::new(ErrorKind::Interrupted, message)
                    .hint("what this run may have left in the store is hidden, and the next run removes it"),
            ));
        }
        if self.told.is_none() && self.patience.is_some_and(|patience| waited >= patience) {
            let seconds = waited.as_secs();
            let text = format!(
                "cinderfs: still waiting for the store {store:?}, which has not answered for {seconds} s when asked for {}; it goes on when the store does, and Ctrl-C ends it\n",
                call.what
            );
            self.told = Some(call);
            return Some(Event::Tell(text));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_hangs_is_told_of_once_and_so_is_its_end() {
        let start = Instant::now();
        let call = |number| Some(Call { number, since: start, what: "the writing of \"x\"".to_owned() });
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watcher = Watcher {
            store: "/b".into(),
            patience: Some(Duration::from_secs(30)),
            told: None,
            cancelled: None,
            is_end_told: false,
        };
        let mut look = |seconds, oldest| match watcher.look(at(seconds), oldest, false) {
            Some(Event::Tell(text)) => text,
            other => format!("{other:?}"),
        };
        assert_eq!(look(29, call(1)), "None");
        let said = look(30, call(1));
        assert!(
            said.contains("still waiting for the store \"/b\"")
                && said.contains("30 s when asked for the writing of"),
            "{said}"
        );
        assert_eq!(look(31, call(1)), "None");
        assert!(look(45, call(2)).contains("answers again, after 45 s"));
        assert!(look(45, call(2)).contains("still waiting"));
        assert!(look(46, None).contains("answers again"));
        assert_eq!(look(47, None), "None");
    }

    #[test]
    fn a_signal_ends_what_hangs_and_nothing_else() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let call = |began| Some(Call { number: 1, since: at(began), what: "x".to_owned() });
        let watcher = || Watcher {
            store: "/b".into(),
            patience: None,
            told: None,
            cancelled: None,
            is_end_told: false,
        };
        let mut hung = watcher();
        assert!(hung.look(at(100_000), call(0), false).is_none(), "who has no limit is not told");
        assert!(hung.look(at(100_100), call(0), true).is_none(), "it may end by itself");
        assert!(
            matches!(hung.look(at(100_600), call(0), true), Some(Event::Tell(text)) if text.contains("cleaning up"))
        );
        assert!(matches!(hung.look(at(100_700), call(0), true), Some(Event::End(_))));
        let mut busy = Watcher { is_end_told: true, ..watcher() };
        for millis in (0..60_000).step_by(100) {
            assert!(busy.look(at(millis), call(millis.saturating_sub(1900)), true).is_none(), "{millis}");
            assert!(busy.look(at(millis), None, true).is_none());
        }
    }
}
