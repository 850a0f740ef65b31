//! What happens to an audit, and a repair, on a bad day: sectors that cannot be read, a question to answer, a kill half-way.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "the kits are also other tests'")]

#[path = "common/cases.rs"]
mod cases;
#[path = "audit/kit.rs"]
mod kit;
#[path = "common/store.rs"]
mod store;
#[path = "common/tracer.rs"]
mod tracer;

use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use cinderfs::frontend::audit::{self, Wrong};
use cinderfs::writer::source::{FileSource, Source};
use cinderfs::{Error, ErrorKind, Result};
use kit::Chain;
use store::BLOCK;
use tracer::{Calls, Fate};

const B: u64 = BLOCK as u64;

/// A target with sectors that cannot be read.
struct Scratched {
    file: FileSource,
    bad: Range<u64>,
    forgotten: Mutex<u64>,
}

impl Source for Scratched {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        if offset < self.bad.end && self.bad.start < offset + buf.len() as u64 {
            return Err(Error::new(ErrorKind::Source, "a sector that cannot be read"));
        }
        self.file.read_exact_at(buf, offset)
    }

    fn forget(&self, range: Range<u64>) {
        *self.forgotten.lock().unwrap() += range.end - range.start;
    }

    fn check_len(&self) -> Result<()> {
        self.file.check_len()
    }
}

// > A sector of the target that `audit` cannot read costs its own block, which is told as `unreadable`, and never as equal.
#[test]
fn a_bad_sector_costs_its_own_block() {
    let chain = Chain::new();
    let mut bytes = chain.volume().to_vec();
    bytes[7 * BLOCK] ^= 1;
    let target = Scratched {
        file: FileSource::open_target(&chain.target("scratched", &bytes)).unwrap(),
        bad: 5 * B + 512..5 * B + 1024,
        forgotten: Mutex::new(0),
    };
    let catalog = chain.catalog();
    let image = catalog.image(catalog.snapshot().get("i4").unwrap()).unwrap();
    let report = audit::audit(&image, &target, &|_| None, 2, &AtomicBool::new(false), &|_| {}).unwrap();
    let found: Vec<_> = report.findings.iter().map(|f| (f.image.clone(), f.wrong)).collect();
    assert_eq!(found, [(5 * B..6 * B, Wrong::Unreadable), (7 * B..8 * B, Wrong::Other)]);
    assert_eq!(*target.forgotten.lock().unwrap(), bytes.len() as u64, "the page cache is left to others");
}

/// Runs a repair on a terminal, and types an answer.
fn asked(chain: &Chain, target: &Path, answer: &str) -> (i32, String) {
    let line = format!(
        "{} audit {} i4 {} --repair --progress none",
        env!("CARGO_BIN_EXE_cinderfs"),
        chain.store().display(),
        target.display()
    );
    let script = Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("CINDERFS_CACHE_DIR", chain.target_path("cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // What is typed before the question waits for it, as at any terminal.
    script.stdin.as_ref().unwrap().write_all(answer.as_bytes()).unwrap();
    let output = script.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

// > `--repair` asks on a terminal, and writes after `y` or `yes` only; without a terminal it wants `--yes`.
#[test]
fn a_repair_asks_first() {
    let chain = Chain::new();
    let wrong = chain.restored_by_cinder_28();
    let target = chain.target("asked", &wrong);
    for answer in ["n\n", "\n", "Yeah\n", "\u{4}"] {
        let (code, text) = asked(&chain, &target, answer);
        assert!(text.contains("Write 2.50 MiB to ") && text.contains("? [y/N]"), "{answer:?}: {text}");
        assert_eq!(code, 3, "{answer:?}: {text}");
        assert!(fs::read(&target).unwrap() == wrong, "{answer:?} is no yes");
    }
    let (code, text) = asked(&chain, &target, "y\n");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("repaired: 2.50 MiB written"), "{text}");
    assert!(fs::read(&target).unwrap() == chain.volume());
}

// > A repair that is killed leaves each block as it was or right, and the next one does the rest.
#[test]
fn a_killed_repair_is_finished_by_the_next() {
    let chain = Chain::new();
    let wrong = chain.restored_by_cinder_28();
    let target = chain.target_path("killed");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.arg("audit").arg(chain.store()).arg("i4").arg(&target).args([
        "--repair",
        "--yes",
        "--threads",
        "1",
    ]);
    command.env_remove("CINDERFS_LOG").env("CINDERFS_CACHE_DIR", chain.target_path("cache"));
    command.stdin(Stdio::null());
    let whole = || {
        fs::write(&target, &wrong).unwrap();
        let all = tracer::run(&command, Calls::Writing, u64::MAX, Fate::Killed);
        assert_eq!(all.code, Some(0), "{}", all.stderr);
        all
    };
    // The first one also makes the cache directory.
    whole();
    let all = whole();
    let writes: Vec<_> =
        (0..).zip(&all.calls).filter(|(_, call)| **call == "pwrite").map(|(n, _)| n).collect();
    assert!(writes.len() > 10, "{:?}", all.calls);
    let mut half = 0;
    for at in writes.iter().step_by(writes.len() / 6) {
        fs::write(&target, &wrong).unwrap();
        let killed = tracer::run(&command, Calls::Writing, *at, Fate::Killed);
        assert_eq!(killed.code, None, "at {at} of {:?}", all.calls);
        let left = fs::read(&target).unwrap();
        for (n, block) in left.chunks(BLOCK).enumerate() {
            let range = n * BLOCK..n * BLOCK + block.len();
            assert!(block == &wrong[range.clone()] || block == &chain.volume()[range], "block {n}");
        }
        half += usize::from(left != wrong && left != chain.volume());
        assert_eq!(chain.audit(&target, &["--repair", "--yes"]).code, 0);
        assert!(fs::read(&target).unwrap() == chain.volume());
    }
    assert!(half > 2, "{half} kills fell between two writes");
}
