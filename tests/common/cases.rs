//! How many random cases, and which: the same ones in each run, unless the environment says otherwise.

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

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
