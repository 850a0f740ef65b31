//! What do commands that write do when their store stops to answer in the middle?

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
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use mount::*;
use stalled::*;
use tracer::{Calls, Fate};

/// The verbs that write, on a store in which backup a has a damaged object, of which backup b's volume has a copy.
fn runs(world: &World) -> Vec<(&'static str, Command)> {
    let source = world.real.with_file_name("source");
    fs::write(&source, &world.backups[0].image).unwrap();
    let source = source.to_str().unwrap().to_owned();
    let small = "--object-size=256K";
    [
        ("create", vec![source, small.to_owned()]),
        ("consolidate", vec!["b".to_owned(), small.to_owned()]),
        ("delete", vec!["a".to_owned()]),
        ("repair", vec!["c".to_owned()]),
    ]
    .into_iter()
    .map(|(verb, words)| {
        let mut command = cinderfs();
        command.args([verb, "--store-timeout=1"]).arg(&world.store).args(words);
        if verb != "delete" {
            command.arg("--threads=1");
        }
        (verb, command)
    })
    .collect()
}

/// With a backup c that holds what a does, and has one object that is damaged.
fn new_world() -> World {
    let world = World::new();
    let c = store::Backup { id: "c".to_owned(), volume: "vc".to_owned(), ..world.backups[0].clone() };
    c.put(&world.real);
    let object = c.file(&world.real, "-00003");
    let mut bytes = fs::read(&object).unwrap();
    bytes[5] ^= 1;
    fs::write(object, bytes).unwrap();
    world
}

/// The backups that are there, each found good.
fn good_backups(world: &World) -> Vec<String> {
    let output = run(cinderfs().args(["verify", "-f", "json"]).arg(&world.real));
    let report: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    let backups = report["backups"].as_array().unwrap();
    let good = backups.iter().filter(|backup| backup["verdict"] == "good");
    good.map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// How many calls of such a run write.
fn count(verb: usize) -> u64 {
    let world = new_world();
    let traced = tracer::run(&runs(&world)[verb].1, Calls::Writing, u64::MAX, Fate::Killed);
    assert_eq!(traced.code, Some(0), "{}", traced.stderr);
    traced.calls.len() as u64
}

/// Stops the store at three calls of such a run.
fn stall(verb: usize) {
    let count = count(verb);
    for (at, by) in [(0, Some(Signal::SIGINT)), (count / 2, Some(Signal::SIGTERM)), (count * 3 / 4, None)] {
        let world = new_world();
        let (name, command) = runs(&world).swap_remove(verb);
        let stop = |program: Pid| {
            let Some(signal) = by else { return world.stop_for(Duration::from_millis(2500)) };
            world.stop();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(2500));
                let _ = kill(program, signal);
            });
        };
        let traced = tracer::run(&command, Calls::Writing, at, Fate::ComesAfter(&stop));
        world.go_on();
        let (said, when) = (&traced.stderr, format!("{name} at call {at} of {count}: {}", traced.stderr));
        assert!(said.contains(&format!("still waiting for the store {:?}", world.store)), "{when}");
        match by {
            None => {
                assert_eq!(traced.code, Some(0), "{when}");
                assert!(said.contains("answers again"), "{when}");
            }
            Some(signal) => {
                assert_eq!(traced.code, Some(128 + signal as i32), "{when}");
                assert!(said.contains("interrupted while the store"), "{when}");
            }
        }
        let output = run(cinderfs().args(["delete", "--leftovers"]).arg(&world.real));
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(world.leftovers(), [""; 0], "{when}");
        let good = good_backups(&world);
        assert!(good.iter().any(|id| id == "b"), "{when}");
        if by.is_none() {
            let expected = match name {
                "create" | "consolidate" | "repair" => 3,
                _ => 1,
            };
            assert_eq!(good.len(), expected, "{when}: {good:?}");
        }
    }
}

// > `create`, `consolidate`, `delete` and `repair` wait for a folder that does not answer as long as it takes, tell after `--store-timeout` seconds what they wait for, and go on when it answers; an object store has that time for an answer.
//
// > A signal ends them all the same, within seconds; what they leave is hidden, and the next run removes it.
#[test]
fn create_waits_and_a_signal_ends_it() {
    stall(0);
}

#[test]
fn consolidate_waits_and_a_signal_ends_it() {
    stall(1);
}

#[test]
fn delete_waits_and_a_signal_ends_it() {
    stall(2);
}

#[test]
fn repair_waits_and_a_signal_ends_it() {
    stall(3);
}
