//! SIGINT and SIGTERM: the first asks for an orderly end, a later one ends the process at once.
//!
//! Problem: one request to end may come as two signals. GNU `timeout` sends its signal to the program and then to the program's group, and
//! service managers and wrappers that pass signals on do the like; whoever took the second for impatience would leave half a file behind.
//! Idea: what comes within [`SAME`] of the first is the same request. A thread waits for the first, and for that time, and only then
//! lets a signal do what it does by itself.
//!
//! Invariant: a handler only stores and loads flags.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator;

use super::exit::Failure;
use crate::error::{Error, ErrorKind};

/// What belongs to the first signal: `timeout` sends its two within microseconds, and on a machine that is busy a wrapper takes some
/// hundredths of a second. Who presses Ctrl-C again because nothing seems to happen takes longer, or presses it a third time.
const SAME: Duration = Duration::from_millis(500);

/// Set by a signal that asks for an end; calls of the store that hang look at it too.
static CANCEL: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The last signal, 0 for none.
static SIGNAL: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// Whether the next signal ends the process at once.
static IS_LAST: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Whether a signal has asked for an end.
pub(super) fn is_interrupted() -> bool {
    CANCEL.load(Ordering::Relaxed)
}

/// The signal that has asked for an end; that of the keyboard where it is not known.
pub(super) fn last_signal() -> u8 {
    let number = u8::try_from(SIGNAL.load(Ordering::Relaxed)).unwrap_or(0);
    if number == 0 { SIGINT as u8 } else { number }
}

/// The signals as a flag.
pub(super) struct Signals {
    pub(super) cancel: Arc<AtomicBool>,
}

impl Signals {
    pub(super) fn watch() -> Result<Self, Failure> {
        let failed = |error| Error::caused_by(ErrorKind::Target, "cannot watch for signals", error);
        let signals = Self { cancel: CANCEL.clone() };
        for signal in [SIGINT, SIGTERM] {
            signals.register(signal).map_err(failed)?;
        }
        let mut coming = iterator::Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
        let wait = move || {
            if coming.forever().next().is_some() {
                thread::sleep(SAME);
                IS_LAST.store(true, Ordering::SeqCst);
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
        Ok(signals)
    }

    fn register(&self, signal: i32) -> io::Result<()> {
        signal_hook::flag::register_conditional_default(signal, IS_LAST.clone())?;
        signal_hook::flag::register_usize(signal, SIGNAL.clone(), usize::try_from(signal).unwrap_or(0))?;
        signal_hook::flag::register(signal, self.cancel.clone())?;
        Ok(())
    }

    /// Notes the signal on a failure that it caused.
    pub(super) fn blame(&self, failure: Failure) -> Failure {
        match (failure.kind(), u8::try_from(SIGNAL.load(Ordering::Relaxed))) {
            (ErrorKind::Interrupted, Ok(signal @ 1..)) => failure.by_signal(signal),
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Set in a process that raises signals and is ended by the last one.
    const IS_VICTIM: &str = "CINDERFS_TEST_SIGNALS";

    #[test]
    fn a_signal_that_comes_twice_is_one_and_a_later_one_ends_the_process() {
        if std::env::var_os(IS_VICTIM).is_none() {
            let name =
                "cli::signals::tests::a_signal_that_comes_twice_is_one_and_a_later_one_ends_the_process";
            let mut victim = Command::new(std::env::current_exe().unwrap());
            let ended = victim.args(["--exact", name, "--nocapture"]).env(IS_VICTIM, "1").output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert_eq!((ended.status.signal(), said.contains("goes on")), (Some(SIGTERM), true), "{said}");
            return;
        }
        let signals = Signals::watch().unwrap();
        let interrupted = || Failure::new(ErrorKind::Interrupted, "the restore was interrupted");
        assert_eq!(signals.blame(interrupted()).code(), 130);
        for signal in [SIGTERM, SIGINT, SIGTERM] {
            signal_hook::low_level::raise(signal).unwrap();
            assert!(signals.cancel.load(Ordering::Relaxed) && is_interrupted());
        }
        assert_eq!(signals.blame(interrupted()).code(), 143);
        // What failed by itself keeps its own code, signal or not.
        assert_eq!(signals.blame(Failure::new(ErrorKind::Target, "disk full")).code(), 1);
        eprintln!("it goes on");
        while !IS_LAST.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
        signal_hook::low_level::raise(SIGTERM).unwrap();
        unreachable!("the signal ends the process");
    }
}
