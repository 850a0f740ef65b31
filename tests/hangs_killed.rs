//! Does a program that is killed end soon while the store hangs that it waits for? The store lies behind bindfs, which is stopped.

#![allow(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/stalled.rs"]
mod stalled;
#[path = "common/store.rs"]
mod store;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use mount::*;
use rustix::process::{Pid, Signal, kill_process};
use stalled::*;

// > Who is killed while he waits for a store that does not answer ends within seconds, whatever he asked for.
#[test]
fn who_is_killed_ends_long_before_the_timeout() {
    for options in ["", "no_sandbox"] {
        let world = World::new();
        // Longer than the test's patience: nobody ends because the store was given up.
        let mut setup = Setup::default().options("store_timeout=600,threads=4");
        if !options.is_empty() {
            setup = setup.options(options);
        }
        let mount = setup.mount(&world.store);
        let (a, b) = (mount.image("a"), mount.path("backups/b"));
        assert!(fs::metadata(&a).is_ok());
        let stopped = Stopped::new(&world);
        let direct = ["iflag=direct", "bs=4096", "count=1", "of=/dev/null"];
        let mut waiting = [
            Command::new("cat").arg(b.join("volume.img")).spawn_quietly(),
            Command::new("stat").arg(b.join("volume.img")).spawn_quietly(),
            Command::new("ls").arg("-l").arg(&b).spawn_quietly(),
            Command::new("dd").arg(format!("if={}", a.display())).args(direct).spawn_quietly(),
        ];
        // Longer than a name takes that is known.
        thread::sleep(Duration::from_millis(1500));
        for child in &mut waiting {
            assert!(child.try_wait().unwrap().is_none(), "{child:?} waits for nothing");
        }
        let signals = [Signal::KILL, Signal::TERM, Signal::INT, Signal::KILL];
        for (child, signal) in waiting.iter().zip(signals) {
            kill_process(Pid::from_child(child), signal).unwrap();
        }
        for mut child in waiting {
            within(PATIENCE, "the end of who was killed", || child.try_wait().unwrap().is_some());
        }
        // Who lives is served as before.
        assert_eq!(names(&mount.path("backups")), ["a", "b"]);
        drop(stopped);
        assert!(fs::read(mount.image("b")).unwrap() == world.backups[1].image, "{}", mount.log());
    }
}

trait SpawnQuietly {
    fn spawn_quietly(&mut self) -> Child;
}

impl SpawnQuietly for Command {
    fn spawn_quietly(&mut self) -> Child {
        self.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}
