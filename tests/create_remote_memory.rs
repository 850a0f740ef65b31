//! Does a run that sends objects into a store keep to its memory?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;
#[path = "common/whole.rs"]
mod whole;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use whole::World;

/// The most memory that a process had, in MiB.
fn peak_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? >> 10)
}

// > A run takes at most 256 MiB of memory, whatever the size of the volume and of its objects; where it writes into an object store 400 MiB,
// > and 1 GiB with the largest objects that one may ask for there, of 256 MiB.
#[test]
fn what_is_sent_is_in_memory_within_bounds() {
    let world = World::new(&["c"]);
    let store = world.word(true, "c");
    let source = world.file("source", &volume::mixed(1, 640 << 20));
    for (words, mebibytes_max) in [
        (&["--compression", "none", "--threads", "64"][..], 400),
        (&["--compression", "zstd"], 400),
        (&["--compression", "none", "--object-size", "256M", "--threads", "64"], 1024),
    ] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
            .args(["create", "-q", &store, &source])
            .args(words)
            .env("CINDERFS_CACHE_DIR", world.folder.path().join("cache"))
            .envs(world.environment())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut peak = 0;
        let ended = loop {
            peak = peak.max(peak_memory(run.id()).unwrap_or(0));
            if let Some(ended) = run.try_wait().unwrap() {
                break ended;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(ended.success(), "{words:?}");
        println!("{words:?}: {peak} MiB");
        assert!(peak > 1 && peak < mebibytes_max, "{words:?}: {peak} MiB");
        world.server.all().get_mut("c").unwrap().clear();
    }
}
