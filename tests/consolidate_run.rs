//! What does the program say while it consolidates, and what does it leave when it is ended?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/consolidate_kit.rs"]
mod consolidate_kit;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;

use std::fs;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use cinderfs::store::Store;
use cinderfs::store::posix::PosixStore;
use cinderfs::writer::consolidate::{Consolidation, consolidate};
use cinderfs::{Error, ErrorKind};
use rustix::process::Signal;
use serde_json::Value;

use consolidate_kit::*;
use volume::{MIB, Random};

#[test]
fn the_program_says_what_it_did() {
    let chain = Chain::new(3 * MIB, 3, ZLIB);
    let words =
        ["consolidate", chain.tip(), "--compression", "zstd", "--name", "monthly", "--progress", "json"];
    let output = chain.run(&words);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let id = text(&output.stdout).trim_end();
    let lines = text(&output.stderr).lines();
    let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    let summary = &last["summary"];
    assert_eq!(summary["backup_id"], id);
    assert_eq!(summary["parent_id"], Value::Null);
    assert_eq!(summary["volume_bytes"], 3 * MIB);
    assert_eq!(summary["consolidated_from"].as_array().unwrap().len(), 3);
    assert_eq!(summary["healed_blocks"], 0);
    assert!(image_bytes(&chain.store(), id) == chain.images[2]);

    let output = chain.run(&["consolidate", "monthly", "--container", "team/two", "--threads", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("full backup of 1 backup"), "{}", text(&output.stderr));
    let id = text(&output.stdout).trim_end();
    assert!(image_bytes(&chain.store(), id) == chain.images[2]);
    assert_eq!(entry(&open(&chain.store()), id).container, "team/two");

    for (words, code) in [
        (&["consolidate", "nobody"][..], 1),
        (&["consolidate", "monthly", "--object-size", "1000"], 2),
        (&["consolidate", "monthly", "--block-size", "100"], 2),
        (&["consolidate", "monthly", "--container", "../up"], 2),
        (&["consolidate"], 2),
    ] {
        let before = tree(&chain.store());
        let output = chain.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{words:?}");
        check_same(&tree(&chain.store()), &before);
    }
}

/// Waits until the run has begun to write.
fn wait_for_staging(store: &Path, child: &mut Child) {
    let started = Instant::now();
    let is_hidden = |name: &str| name.starts_with(".cinderfs-");
    let has_begun =
        || fs::read_dir(store).unwrap().any(|e| is_hidden(e.unwrap().file_name().to_str().unwrap()));
    while !has_begun() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        assert!(started.elapsed() < Duration::from_secs(60), "it does not begin");
        thread::sleep(Duration::from_millis(1));
    }
}

// > A run that fails, is interrupted, finds the disk full or its quota used up says why, and leaves nothing in sight.
#[test]
fn a_run_that_is_ended_leaves_nothing() {
    let chain = Chain::new(24 * MIB, 3, ZLIB);
    let before = tree(&chain.store());
    let words = ["consolidate", chain.tip(), "--compression", "bz2", "--object-size", "1M", "--threads", "2"];
    let mut random = Random::new(5);
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::TERM, Some(143)), (Signal::KILL, None)] {
        for _ in 0..if code.is_none() { 8 } else { 2 } {
            let mut child = chain.command(&words).spawn().unwrap();
            wait_for_staging(&chain.store(), &mut child);
            thread::sleep(Duration::from_millis(random.below(150) as u64));
            rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), code, "{}", text(&output.stderr));
            assert!(output.stdout.is_empty());
            let listed = PosixStore::open(&chain.store()).unwrap().list("_metadata").unwrap();
            assert_eq!(listed.objects.len(), 3, "a backup is there that is not whole");
            let mut now = tree(&chain.store());
            if code.is_none() {
                // The next run takes it away; until then it is where nobody looks.
                let hidden = chain.store().join(".cinderfs-").to_str().unwrap().to_owned();
                now.retain(|path, _| !path.to_str().unwrap().starts_with(&hidden));
            }
            check_same(&now, &before);
        }
    }
    let output = chain.run(&["consolidate", chain.tip()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let id = text(&output.stdout).trim_end();
    assert!(image_bytes(&chain.store(), id) == chain.images[2]);
    let names = fs::read_dir(chain.store()).unwrap().map(|entry| entry.unwrap().file_name());
    let hidden: Vec<_> = names.filter(|name| name.to_str().unwrap().starts_with(".cinderfs-")).collect();
    assert!(hidden.is_empty(), "the next run left {hidden:?}");
}

/// Ends by itself where a thread would wait for ever.
#[test]
fn cancelled_before_it_begins_it_leaves_nothing() {
    let chain = Chain::new(MIB, 2, ZLIB);
    let before = tree(&chain.store());
    let catalog = open(&chain.store());
    let entry = entry(&catalog, chain.tip());
    let cancel = AtomicBool::new(true);
    let wanted = Consolidation::default();
    let result = consolidate(&chain.store(), &catalog, &entry, &wanted, &cancel, &|_| {});
    assert_eq!(result.map_err(|error: Error| error.kind()), Err(ErrorKind::Interrupted));
    check_same(&tree(&chain.store()), &before);
}
