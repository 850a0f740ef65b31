//! Does a run that sends objects into a store keep to its memory?

#![cfg(feature = "remote")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "a part of each kit is used")]

#[path = "common/http_server.rs"]
mod http_server;
#[path = "common/measured.rs"]
mod measured;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;
#[path = "common/whole.rs"]
mod whole;

use std::process::{Command, Stdio};

use measured::run_measured;
use whole::World;

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
        let mut run = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        run.args(["create", "-q", &store, &source]).args(words).envs(world.environment());
        run.env("CINDERFS_CACHE_DIR", world.folder.path().join("cache")).stdout(Stdio::null());
        let (output, peak) = run_measured(run);
        let peak = peak >> 20;
        assert!(output.status.success(), "{words:?}");
        println!("{words:?}: {peak} MiB");
        assert!(peak > 1 && peak < mebibytes_max, "{words:?}: {peak} MiB");
        world.server.all().get_mut("c").unwrap().clear();
    }
}
