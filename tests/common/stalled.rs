//! A store that stops to answer: it lies behind bindfs, which is stopped.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::mount::*;
use crate::store::*;

pub(crate) const LEN: usize = 64 * BLOCK;

/// A store of backups `a` and `b` behind a file system that can be stopped.
pub(crate) struct World {
    bindfs: Child,
    /// What is given to the program.
    pub(crate) store: PathBuf,
    /// The same, without what can be stopped.
    pub(crate) real: PathBuf,
    pub(crate) backups: [Backup; 2],
    _folder: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = open_folder();
        let [real, store] = ["real", "store"].map(|name| folder.path().join(name));
        fs::create_dir(&store).unwrap();
        let backups = [("a", 1), ("b", 2)].map(|(id, seed)| {
            // An object for each 4 blocks: what is read of one says nothing of the next.
            let extents: Vec<_> = (0..LEN).step_by(4 * BLOCK).map(|at| at..at + 4 * BLOCK).collect();
            let backup = Backup::new(id, &format!("v{id}"), noise(seed, LEN)).extents(&extents);
            backup.put(&real);
            backup
        });
        let mut bindfs = Command::new("bindfs");
        bindfs.arg("-f").arg(&real).arg(&store).stdin(Stdio::null()).stdout(Stdio::null());
        // Missing, it fails the test: scripts/test.sh installs it.
        let bindfs = bindfs.spawn().unwrap();
        let world = Self { bindfs, store, real, backups, _folder: folder };
        within(PATIENCE, "bindfs", || mount_line(&world.store).is_some());
        // So the kernel learns that closing a file needs nobody's answer.
        drop(File::open(world.backups[0].file(&world.store, "_metadata")).unwrap());
        world
    }

    /// Stops it. A request that it has taken already could be ended by nobody, so what is under way gets time to end.
    pub(crate) fn stop(&self) {
        thread::sleep(Duration::from_millis(200));
        kill_process(Pid::from_child(&self.bindfs), Signal::STOP).unwrap();
        let tasks = format!("/proc/{}/task", self.bindfs.id());
        let is_stopped = |task: io::Result<fs::DirEntry>| {
            let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        };
        within(PATIENCE, "the stop", || fs::read_dir(&tasks).unwrap().all(is_stopped));
    }

    /// Stops it until the time is over, from the middle of a run that goes on meanwhile.
    pub(crate) fn stop_for(&self, time: Duration) {
        self.stop();
        let bindfs = Pid::from_child(&self.bindfs);
        thread::spawn(move || {
            thread::sleep(time);
            let _ = kill_process(bindfs, Signal::CONT);
        });
    }

    /// What is hidden in it: what a run has left.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        names(&self.real).into_iter().filter(|name| name.starts_with('.')).collect()
    }

    pub(crate) fn go_on(&self) {
        kill_process(Pid::from_child(&self.bindfs), Signal::CONT).unwrap();
    }

    pub(crate) fn mount(&self, options: &str) -> Mount {
        Setup::default().options("store_timeout=1").options(options).mount(&self.store)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.bindfs), Signal::CONT);
        let _ = unmount(&self.store, UnmountFlags::DETACH);
        // Files that a test that failed holds open would keep it for ever.
        let _ = self.bindfs.kill();
        let _ = self.bindfs.wait();
    }
}

/// Lets the store go on when a test takes too long, so that no test hangs with it: whoever waits in the kernel cannot be told to stop.
struct Watchdog(Option<mpsc::Sender<()>>);

impl Watchdog {
    fn new(world: &World) -> Self {
        let (sender, ended) = mpsc::channel();
        let bindfs = Pid::from_child(&world.bindfs);
        thread::spawn(move || {
            if let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(3 * PATIENCE) {
                let _ = kill_process(bindfs, Signal::CONT);
            }
        });
        Self(Some(sender))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0 = None;
    }
}

/// Stops a store, and lets it go on also when the test fails.
pub(crate) struct Stopped<'w>(&'w World, #[expect(dead_code, reason = "ends when this is dropped")] Watchdog);

impl<'w> Stopped<'w> {
    pub(crate) fn new(world: &'w World) -> Self {
        let watchdog = Watchdog::new(world);
        world.stop();
        Self(world, watchdog)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.go_on();
    }
}
