//! The fuzz targets without a fuzzer: their seeds as they are, and with random changes.
//!
//! `scripts/fuzz.sh` runs the same targets under libFuzzer, which finds more, but needs a nightly toolchain.
//! `CINDERFS_FUZZ_CASES` says how many changed inputs each target gets.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(unreachable_pub, reason = "the kit is a library for fuzz/")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/fuzz/mod.rs"]
mod fuzz;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cases::Watchdog;

/// Changed inputs for each target. The slowest ones take a millisecond each.
const CASES: u64 = 300;

/// Numbers by xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

/// What libFuzzer would do to an input, roughly: bytes changed, taken out, doubled, numbers at their ends, two seeds joined.
fn changed(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(4) {
        let (at, len) = (random.below(input.len() + 1), random.below(40));
        let end = input.len().min(at + len);
        match random.below(8) {
            0 => drop(input.drain(at..end)),
            1 => input.extend_from_within(at..end),
            2 => input[at..end].fill(0xFF),
            3 => input[at..end].fill(b'9'),
            4 => input.truncate(at),
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                input.splice(at..end, other[from..].iter().copied().take(4000));
            }
            _ if at < input.len() => input[at] ^= 1 << random.below(8),
            _ => input.push(random.below(256) as u8),
        }
    }
    input
}

fn check(names: &[&str]) {
    let cases = std::env::var("CINDERFS_FUZZ_CASES").map_or(CASES, |text| text.parse().unwrap());
    for target in fuzz::TARGETS.iter().filter(|target| names.contains(&target.name)) {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        let changed = (0..cases).map(|_| changed(&seeds, &mut random)).collect::<Vec<_>>();
        for (n, input) in seeds.iter().chain(&changed).enumerate() {
            let _watchdog = Watchdog::new();
            if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
                let path = std::env::temp_dir().join(format!("cinderfs-fuzz-{}-{n}", target.name));
                std::fs::write(&path, input).unwrap();
                panic!("target {} failed; its input is in {path:?}", target.name);
            }
        }
    }
}

#[test]
fn documents() {
    check(&["metadata", "digests", "points", "changed", "record", "cinder_conf"]);
}

#[test]
fn streams() {
    check(&["range_none", "range_zlib", "range_bz2", "range_zstd", "restart_state"]);
}

#[test]
fn files() {
    check(&["seek_index", "block_ring", "leftovers"]);
}

#[test]
fn chains_and_names() {
    check(&["extents", "links", "catalog", "names"]);
}

#[cfg(feature = "remote")]
#[test]
fn object_stores() {
    check(&["listing", "clouds", "aws_config"]);
}

/// A target that is in no test above, or has no file for the fuzzer, would be forgotten.
#[cfg(feature = "remote")]
#[test]
fn each_target_has_its_file() {
    let mut files: Vec<_> = std::fs::read_dir("fuzz/fuzz_targets")
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let mut targets: Vec<_> = fuzz::TARGETS.iter().map(|target| target.name).collect();
    targets.sort_unstable();
    assert_eq!(files, targets);
}
