//! What do commands that read do when their store stops to answer in the middle?

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, where a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/stalled.rs"]
mod stalled;
#[path = "common/store.rs"]
mod store;
#[path = "common/tracer.rs"]
mod tracer;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mount::*;
use stalled::*;
use tracer::{Calls, Fate, Traced};

/// A command on the store, which gives it so many seconds.
fn command(world: &World, verb: &str, words: &[&Path], seconds: u64) -> Command {
    let mut command = cinderfs();
    command.arg(verb).arg(format!("--store-timeout={seconds}")).arg(&world.store).args(words);
    command
}

/// Runs it; before it reads the file that ends so, of backup b, this happens.
fn run_until(world: &World, command: &Command, ending: &str, then: &dyn Fn()) -> Traced {
    let file = world.backups[1].file(&world.store, ending);
    tracer::run(command, Calls::Reading(&file), 0, Fate::ComesAfter(&|_| then()))
}

// > A command that reads, and whose store stops to answer in the middle, ends within its `--store-timeout`, 30 seconds unless told, with an error that names the store.
#[test]
fn a_store_that_stalls_in_the_middle_ends_a_command() {
    let target = tempfile::tempdir().unwrap();
    let image = target.path().join("image");
    let b = Path::new("b");
    for (verb, words, ending) in [
        ("restore", &[b, &image][..], "-00005"),
        ("verify", &[], "-00005"),
        ("list", &[], "_metadata"),
        ("show", &[b], "_sha256file"),
    ] {
        let world = World::new();
        let traced = run_until(&world, &command(&world, verb, words, 1), ending, &|| world.stop());
        world.go_on();
        assert_eq!(traced.calls.first(), Some(&"read"), "{verb}: {}", traced.stderr);
        let said = format!("the store {:?} did not answer within 1 s", world.store);
        assert!(traced.stderr.contains(&said), "{verb}: {}", traced.stderr);
        assert_eq!(traced.code, Some(1), "{verb}: {}{}", traced.stdout, traced.stderr);
        assert!(!image.exists(), "{verb}");
    }
}

// > Where the store answers again before, the command goes on as if nothing had been.
#[test]
fn a_restore_goes_on_when_the_store_does() {
    let world = World::new();
    let target = tempfile::tempdir().unwrap();
    let image = target.path().join("image");
    let restore = command(&world, "restore", &[Path::new("b"), &image], 60);
    let traced = run_until(&world, &restore, "-00005", &|| world.stop_for(Duration::from_millis(1500)));
    assert_eq!(traced.code, Some(0), "{}", traced.stderr);
    assert!(fs::read(&image).unwrap() == world.backups[1].image);
}
