//! How many random cases, and which: the same ones in each run, unless the environment says otherwise.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::print_stderr, reason = "the last words of a test that hangs")]

use std::sync::mpsc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

/// One case takes milliseconds; on a machine that is busy with other things, seconds.
const CASE_TIME_MAX: Duration = Duration::from_secs(90);

/// Ends the process when a case hangs: readers that wait for each other would else wait until somebody looks.
pub(crate) struct Watchdog(Option<mpsc::Sender<()>>);

impl Watchdog {
    /// Watches until dropped.
    pub(crate) fn new() -> Self {
        let (alive, gone) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if gone.recv_timeout(CASE_TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("a case hangs: it did not end within {CASE_TIME_MAX:?}");
                std::process::abort();
            }
        });
        Self(Some(alive))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.take();
    }
}

/// A runner of `cases` cases. `PROPTEST_CASES` sets another number of them, `PROPTEST_RNG_SEED` other ones.
pub(crate) fn runner(cases: u32, seed: u64) -> TestRunner {
    let mut config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if std::env::var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(seed);
    }
    // A failure prints its shrunken case; the seed makes it come again.
    config.failure_persistence = None;
    config.max_shrink_iters = 2000;
    TestRunner::new(config)
}
