//! Does a program that is killed while it makes a backup leave a store in which every backup is whole, and which the next run cleans?
//!
//! Every system call is tried; `CINDERFS_TEST_CRASH=N` makes the kills at random moments N times as many.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/crash_kit.rs"]
mod crash_kit;
#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/staging_kit.rs"]
mod staging_kit;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/tracer.rs"]
mod tracer;
#[path = "common/volume.rs"]
mod volume;

use std::collections::BTreeMap;
use std::process::Child;
use std::time::Duration;

use crash_kit::{CASES, World};
use tracer::{Calls, Fate, run};
use volume::Random;

/// How many times the usual number of kills at random moments is wanted.
fn times() -> usize {
    std::env::var("CINDERFS_TEST_CRASH").map_or(1, |times| times.parse().unwrap())
}

// > A run that is killed at any moment leaves a whole backup or none, and every other backup as it was; the next run removes what it left.
//
// > Only while files get their names one by one, in a container that was there before, can a killed run leave some in sight, never a `_metadata`, until the next run takes them back.
#[test]
fn killed_at_any_system_call_that_writes_it_leaves_nothing_or_everything() {
    for case in &CASES {
        let world = World::new();
        let mut met = BTreeMap::<&str, u32>::new();
        let (mut published, mut half_named) = (Vec::new(), 0);
        for at in 0.. {
            let when = format!("{} killed at call {at}", case.name);
            let traced = run(&world.run_of(case), Calls::Writing, at, Fate::Killed);
            let made = world.check(case, true, &when);
            published.push(made.is_some());
            half_named += u32::from(made.is_none() && staging_kit::visible(&world.store()) != world.before);
            if traced.code.is_some() {
                assert_eq!(traced.code, Some(0), "{when}: {}", traced.stderr);
                assert_eq!(traced.stdout.trim_end(), made.unwrap());
                world.reset();
                break;
            }
            *met.entry(traced.calls[at as usize]).or_default() += 1;
            world.check_next_run(&made.into_iter().collect::<Vec<_>>(), &when);
            world.reset();
        }
        let first = published.iter().position(|&is| is).unwrap();
        println!(
            "{}: {} deaths, {first} before it is there, {half_named} half named: {met:?}",
            case.name,
            published.len() - 1
        );
        assert!(published[first..].iter().all(|&is| is), "{published:?}");
        // Most calls come before it is visible, and some after.
        assert!(first > 40 && published.len() > first + 4, "{first} {}", published.len());
        assert!(
            ["pwrite", "fsync", "open", "mkdir", "rename"].iter().all(|call| met.contains_key(call)),
            "{met:?}"
        );
    }
}

/// Waits until that moment of the run, and kills it; whether it was still there.
fn kill_after(mut child: Child, moment: Duration) -> bool {
    std::thread::sleep(moment);
    child.kill().unwrap();
    child.wait().unwrap().code().is_none()
}

// > A run that is killed at any moment leaves a whole backup or none, and every other backup as it was; the next run removes what it left.
#[test]
fn killed_at_any_moment_it_leaves_nothing_or_everything() {
    let worlds: Vec<_> = CASES.iter().map(|_| World::new()).collect();
    let mut random = Random::new(4);
    let (mut killed, mut whole, mut half_named) = (0, 0, 0);
    // Grows and shrinks, so that some are killed late enough, however busy the machine is.
    let mut moment_max = [30_000.0; CASES.len()];
    let mut round = 0;
    while killed < 200 * times() {
        round += 1;
        assert!(round < 2000 * times(), "only {killed} of {round} runs were killed");
        let which = round % CASES.len();
        let (case, world) = (&CASES[which], &worlds[which]);
        let moment = Duration::from_micros(random.below(moment_max[which] as usize) as u64);
        let when = format!("round {round}: {} killed after {moment:?}", case.name);
        killed += usize::from(kill_after(world.run_of(case).spawn().unwrap(), moment));
        let made = world.check(case, true, &when);
        half_named += u32::from(made.is_none() && staging_kit::visible(&world.store()) != world.before);
        moment_max[which] *= if made.is_some() { 0.8 } else { 1.1 };
        whole += u32::from(made.is_some());
        world.check_next_run(&made.into_iter().collect::<Vec<_>>(), &when);
        world.reset();
    }
    println!(
        "{killed} of {round} killed, {whole} whole, {half_named} half named; lately within {moment_max:?} us"
    );
    assert!(whole >= 10, "{whole} whole");
}

// > Any number of runs may write into one store, and one container, at once.
#[test]
fn two_runs_at_once_of_which_some_are_killed_do_not_meet() {
    let world = World::new();
    let mut random = Random::new(5);
    let (mut killed, mut whole) = (0, 0);
    let mut moment_max = 40_000.0;
    for round in 0..40 * times() {
        // Both into one container, and at times only one of them is killed.
        let cases = [&CASES[1], &CASES[if round % 3 == 0 { 1 } else { 2 }]];
        let when = format!("round {round}: two at once");
        let moments = [(); 2].map(|()| Duration::from_micros(random.below(moment_max as usize) as u64));
        let is_spared = round % 2 == 0;
        let runs = cases.map(|case| world.run_of(case).spawn().unwrap());
        let [first, second] = runs;
        let ended = std::thread::spawn(move || kill_after(first, moments[0]));
        if is_spared {
            crash_kit::printed_id(&second.wait_with_output().unwrap());
        } else {
            killed += u32::from(kill_after(second, moments[1]));
        }
        killed += u32::from(ended.join().unwrap());
        let made = world.check_listed(&[&world.source], &when);
        assert!(made.len() <= 2 && (made.len() >= usize::from(is_spared)), "{when}: {made:?}");
        whole += made.len();
        moment_max = f64::max(5_000.0, moment_max * [1.2, 1.0, 0.8][made.len()]);
        world.check_next_run(&made, &when);
        world.reset();
    }
    println!("{killed} killed, {whole} whole; lately within {moment_max} us");
    assert!(killed >= 15 && whole >= 20, "{killed} killed, {whole} whole");
}
