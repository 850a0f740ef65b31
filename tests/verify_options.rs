//! What do the options of `verify` that bound a run, and its progress, do? The real binary on a small store.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, where a panic is the report")]

#[path = "common/store.rs"]
mod store;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::verify::{VerifyOptions, verify};
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::posix::PosixStore;
use serde_json::Value;
use store::{BLOCK, Backup, flip, noise};

const ID: &str = "aaaaaaaa-0000-4000-8000-000000000001";
/// Objects of one block each.
const OBJECTS: usize = 40;

fn backup() -> Backup {
    let blocks: Vec<_> = (0..OBJECTS).map(|block| block * BLOCK..(block + 1) * BLOCK).collect();
    Backup::new(ID, "bbbbbbbb-0000-4000-8000-000000000001", noise(1, OBJECTS * BLOCK)).extents(&blocks)
}

fn run(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .arg("verify")
        .arg(folder.join("store"))
        .args(["-f", "json"])
        .args(words)
        .env_remove("CINDERFS_LOG")
        .env("CINDERFS_CACHE_DIR", folder.join("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn report(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `--subset x%` takes a random share of the bytes, another one in each run.
#[test]
fn a_share_is_a_share_and_not_always_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let first = backup().put(&store).file(&store, "-00001");
    let quarter = report(&run(folder.path(), &["--subset", "25%"]), 0);
    let bytes = quarter["summary"]["plain_bytes"].as_u64().unwrap() as usize;
    assert!((OBJECTS / 5 * BLOCK..=OBJECTS / 3 * BLOCK).contains(&bytes), "{bytes} bytes");
    assert_eq!(quarter["backups"][0]["verdict"], "unchecked");
    // All of it is all of it; and what is damaged is found in some runs of a half, and not in all.
    flip(&first, 5);
    assert_eq!(report(&run(folder.path(), &["--subset", "100%"]), 3)["summary"]["objects"], OBJECTS);
    fs::remove_dir_all(folder.path().join("cache")).unwrap();
    let mut is_found = [false; 2];
    for _ in 0..64 {
        let code = run(folder.path(), &["--subset", "50%"]).status.code().unwrap();
        is_found[usize::from(code == 3)] = true;
        // What was found damaged is verified again in each run.
        fs::remove_dir_all(folder.path().join("cache")).unwrap();
        if is_found == [true; 2] {
            break;
        }
    }
    assert_eq!(is_found, [true; 2]);
    for wrong in ["0%", "-5%", "101%", "nan%", "%"] {
        let output = run(folder.path(), &["--subset", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}: {output:?}");
    }
}

/// With `--progress json` each line on stderr is a document, the last of which is the summary.
#[test]
fn progress_is_told_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let first = backup().put(&store).file(&store, "-00001");
    flip(&first, 5);
    let output = run(folder.path(), &["--progress", "json"]);
    let told = report(&output, 3);
    let lines: Vec<Value> = String::from_utf8(output.stderr)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let (last, steps) = lines.split_last().unwrap();
    assert_eq!(last["summary"]["objects"], OBJECTS, "{last}");
    assert_eq!((&last["summary"]["damage"], &told["summary"]["damage"]), (&1.into(), &1.into()));
    for step in steps {
        let [done, total] = ["bytes_done", "bytes_total"].map(|key| step[key].as_u64().unwrap());
        assert!(done <= total && step["findings"].is_u64(), "{step}");
    }
    // Nothing but errors is said else.
    assert!(run(folder.path(), &["--progress", "none"]).stderr.is_empty());
}

// > With `--max-duration` no object is begun after that time.
#[test]
fn a_run_ends_when_its_time_is_up_and_the_next_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    backup().put(folder.path());
    // All of them on two threads take at least six seconds.
    let slow = Rule::new(Operation::Read, Fault::Delay(Duration::from_millis(300))).names("*-0*");
    let store = Arc::new(FaultStore::new(PosixStore::open(folder.path()).unwrap(), vec![slow]));
    let catalog = Catalog::open(store, CatalogOptions::default()).unwrap();
    let cancel = AtomicBool::new(false);
    let until = Some(Instant::now() + Duration::from_secs(1));
    let options = VerifyOptions { threads: 2, until, ..VerifyOptions::everything(&cancel) };
    let report = verify(&catalog, None, &options, &|_| {}).unwrap();
    assert!(!report.is_damaged() && report.failure.is_none(), "{:?}", report.findings);
    assert_eq!(report.backups[0].verdict.name(), "unchecked");
    assert!(report.is_late && report.objects < OBJECTS as u64, "{} objects", report.objects);

    // The program: enough time is no bound.
    let folder = tempfile::tempdir().unwrap();
    backup().put(&folder.path().join("store"));
    let told = self::report(&run(folder.path(), &["--max-duration", "1h30m"]), 0);
    assert_eq!((&told["summary"]["complete"], &told["summary"]["objects"]), (&true.into(), &OBJECTS.into()));
}
