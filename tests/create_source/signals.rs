//! The program itself, ended from outside while its snapshot is there.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::kit::{Disk, MIB, call};

/// A source that does not compress, on a file system of its own.
fn disk(file_system: &str, mib: u64) -> Disk {
    let disk = Disk::new(file_system, mib);
    let mut state = 88_172_645_463_325_252u64;
    let words = (0..16 * MIB / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    fs::write(disk.path().join("volume.img"), words.collect::<Vec<u8>>()).unwrap();
    disk
}

fn create(store: &Path, disk: &Disk, kind: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.arg("create").arg(store).arg(disk.path().join("volume.img"));
    // On one thread, so that it is not over before it is ended.
    command.args(["--snapshot", kind, "--compression", "bz2", "--threads", "1", "--progress", "none"]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Whether the process holds its snapshot: a folder with a name, or an open file without one.
fn holds_snapshot(process: &Child, disk: &Disk, kind: &str) -> bool {
    if kind == "btrfs" {
        let id = format!("-{:x}-", process.id());
        return disk.names().iter().any(|name| name.starts_with(".cinderfs-snapshot-") && name.contains(&id));
    }
    let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", process.id())) else { return false };
    let mut targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets.any(|path| path.starts_with(disk.path()) && path.to_string_lossy().ends_with(" (deleted)"))
}

fn ended_by(signal: Signal, store: &Path, disk: &Disk, kind: &str) -> ExitStatus {
    let mut child = create(store, disk, kind).spawn().unwrap();
    let send = |signal| kill_process(Pid::from_child(&child), signal).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds_snapshot(&child, disk, kind) {
        if Instant::now() > deadline {
            send(Signal::KILL);
            panic!("{kind}: no snapshot was seen");
        }
    }
    send(Signal::STOP);
    assert!(holds_snapshot(&child, disk, kind));
    send(signal);
    send(Signal::CONT);
    child.wait().unwrap()
}

fn visible(store: &Path) -> Vec<String> {
    let entries = fs::read_dir(store).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

#[test]
fn a_run_that_is_ended_drops_its_snapshot_at_once() {
    for (kind, file_system, mib) in
        [("reflink", "xfs", 320), ("reflink", "btrfs", 192), ("btrfs", "btrfs", 192)]
    {
        let disk = disk(file_system, mib);
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let store = tempfile::tempdir().unwrap();
            let status = ended_by(signal, store.path(), &disk, kind);
            assert_eq!(status.code(), Some(code), "{kind} on {file_system}: {status:?}");
            assert_eq!(disk.names(), ["volume.img"], "{kind} on {file_system}");
            assert_eq!(fs::read_dir(store.path()).unwrap().count(), 0, "{kind} on {file_system}");
        }
    }
}

#[test]
fn the_snapshot_of_a_run_that_is_killed_is_dropped_by_the_next() {
    for (kind, file_system, mib) in [("reflink", "xfs", 320), ("btrfs", "btrfs", 192)] {
        let disk = disk(file_system, mib);
        let store = tempfile::tempdir().unwrap();
        let status = ended_by(Signal::KILL, store.path(), &disk, kind);
        assert_eq!(status.signal(), Some(9), "{kind}: {status:?}");
        assert_eq!(visible(store.path()), [""; 0], "{kind}");
        let left = disk.names().len() - 1;
        assert_eq!(left, if kind == "btrfs" { 1 } else { 0 }, "a reflink has no name that could be left");

        let output = create(store.path(), &disk, kind).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        assert_eq!(told.matches("dropped the snapshot of a run that was killed").count(), left, "{told}");
        assert_eq!(disk.names(), ["volume.img"]);
        let names = visible(store.path());
        assert_eq!(names.len(), 1, "{names:?}");
        let all = fs::read_dir(store.path()).unwrap().count();
        assert_eq!(all, 1, "what the killed run had staged is gone");
        let image = disk.path().join("restored.img");
        let program = env!("CARGO_BIN_EXE_cinderfs");
        call(program, &[&"restore", &store.path(), &names[0], &image]);
        assert!(fs::read(&image).unwrap() == fs::read(disk.path().join("volume.img")).unwrap());
    }
}
