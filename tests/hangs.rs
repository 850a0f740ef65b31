//! What does a mount do while its store does not answer? The store lies behind bindfs, which is stopped.

#[path = "common/mount.rs"]
mod mount;
#[path = "common/stalled.rs"]
mod stalled;
#[path = "common/store.rs"]
mod store;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use mount::*;
use rustix::process::{Pid, Signal, kill_process};
use stalled::*;
use store::*;

/// One byte of a block, past the kernel's cache.
fn byte(path: &Path, block: usize) -> io::Result<u8> {
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, (block * BLOCK) as u64)?;
    Ok(byte[0])
}

// > A store that does not answer within `store_timeout=` seconds, 30 unless told, fails what was asked of it with EIO, and what is asked
// > next at once or within 2 seconds; it is asked again every 5 seconds, and as soon as it answers all is well without a remount.
//
#[test]
fn a_stalled_store_fails_reads_and_recovers() {
    let world = World::new();
    let mount = world.mount("disk_cache=64M");
    let [a, b] = ["a", "b"].map(|id| mount.image(id));
    assert_eq!(fs::read(&a).unwrap(), world.backups[0].image);
    let at = |n: usize, block: usize| world.backups[n].image[block * BLOCK];
    assert_eq!(byte(&b, 0).unwrap(), at(1, 0));
    let stopped = Stopped::new(&world);
    for block in [20, 40, 60] {
        assert_eq!(errno(byte(&b, block)), libc::EIO, "{}", mount.log());
    }
    for block in 0..LEN / BLOCK {
        assert_eq!(byte(&a, block).unwrap(), at(0, block), "{}", mount.log());
    }
    assert_eq!(mount.document("b")["id"], "b");
    let said = mount.log().matches("did not answer within 1 s").count();
    assert!(said >= 1, "{}", mount.log());
    drop(stopped);
    for block in [20, 40, 60] {
        within(PATIENCE, "the block", || byte(&b, block).is_ok());
        assert_eq!(byte(&b, block).unwrap(), at(1, block));
    }
    assert!(mount.log().contains("answers again"), "{}", mount.log());
    // And it is looked at again.
    Backup::new("c", "v", noise(3, BLOCK)).put(&world.real);
    within(PATIENCE, "the new backup", || mount.image("c").exists());
}

// > A mount whose store does not answer can be unmounted, also by a signal to its daemon; whoever waits for it gets an error within the timeout.
#[test]
fn a_stuck_mount_can_be_taken_away() {
    let world = World::new();
    for by_signal in [true, false] {
        let mut mount = world.mount("threads=2");
        let b = mount.image("b");
        assert!(byte(&b, 0).is_ok());
        let stopped = Stopped::new(&world);
        thread::scope(|scope| {
            // More than there are threads.
            let readers: Vec<_> = (1..6)
                .map(|n| {
                    scope.spawn({
                        let b = &b;
                        move || byte(b, 10 * n)
                    })
                })
                .collect();
            thread::sleep(std::time::Duration::from_millis(200));
            if by_signal {
                mount.signal(Signal::TERM);
            } else {
                let output = run(cinderfs().args(["umount", "--lazy"]).arg(mount.root()));
                assert!(output.status.success(), "{}", stderr(&output));
            }
            within(PATIENCE, "the unmounting", || mount_line(mount.root()).is_none());
            for reader in readers {
                assert!(reader.join().unwrap().is_err());
            }
        });
        drop(stopped);
        assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
    }
}

/// The kernel waits for an answer to what it has asked, also when whoever wants it was killed.
#[test]
fn a_killed_reader_ends_within_the_timeout() {
    let world = World::new();
    let mount = world.mount("");
    assert!(byte(&mount.image("b"), 0).is_ok());
    let _stopped = Stopped::new(&world);
    let mut reader = Command::new("dd");
    reader.arg(format!("if={}", mount.image("b").display())).args(["of=/dev/null", "bs=1M"]);
    let mut reader = reader.stderr(Stdio::null()).spawn().unwrap();
    thread::sleep(std::time::Duration::from_millis(100));
    reader.kill().unwrap();
    within(PATIENCE, "the reader's end", || reader.try_wait().unwrap().is_some());
}

// > While a store does not answer, names that were known are listed and resolve, `metadata.json` can be read, and so can an image whose
// > blocks are in memory or in the disk cache, however many readers wait for the store.
#[test]
fn what_is_in_memory_is_served_while_all_threads_hang() {
    let world = World::new();
    // The timeout is longer than the test's patience: nothing is served because others were refused.
    let mount = Setup::default().options("store_timeout=600,threads=2").mount(&world.store);
    let [a, b] = ["a", "b"].map(|id| mount.image(id));
    assert_eq!(fs::read(&a).unwrap(), world.backups[0].image);
    assert!(byte(&b, 0).is_ok());
    let stopped = Stopped::new(&world);
    thread::scope(|scope| {
        // Each in an object of its own, none of which was read.
        let readers: Vec<_> = (1..13)
            .map(|n| {
                scope.spawn({
                    let b = &b;
                    move || byte(b, 4 * n)
                })
            })
            .collect();
        thread::sleep(std::time::Duration::from_millis(200));
        for round in 0..3 {
            for block in 0..LEN / BLOCK {
                assert_eq!(
                    byte(&a, block).unwrap(),
                    world.backups[0].image[block * BLOCK],
                    "{}",
                    mount.log()
                );
            }
            assert_eq!(mount.document("a")["id"], "a");
            assert_eq!(names(&mount.path("backups")), ["a", "b"], "{round}");
            assert!(fs::metadata(&b).unwrap().len() == LEN as u64);
        }
        assert!(readers.iter().all(|reader| !reader.is_finished()), "{}", mount.log());
        drop(stopped);
        for (n, reader) in (1..13).zip(readers) {
            assert_eq!(reader.join().unwrap().unwrap(), world.backups[1].image[4 * n * BLOCK]);
        }
    });
}

// > A mount of a store that does not answer fails within the timeout, and so do the commands that read a store, within 30 seconds; a
// > signal ends them at once.
#[test]
fn nothing_hangs_with_a_store_that_never_answered() {
    let world = World::new();
    let root = world.real.with_file_name("mnt");
    fs::create_dir(&root).unwrap();
    let _cleared = Cleared(root.clone());
    let stopped = Stopped::new(&world);
    for words in [&["mount", "-f"][..], &["mount"]] {
        let output = run(cinderfs().args(words).args(["-o", "store_timeout=1"]).arg(&world.store).arg(&root));
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("did not answer within 1 s"), "{}", stderr(&output));
        assert!(mount_line(&root).is_none());
    }
    let started = ["list", "verify"].map(|word| {
        cinderfs().arg(word).arg(&world.store).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    });
    thread::sleep(std::time::Duration::from_millis(300));
    // Both, before either is waited for: in the kernel one may wait for the other's request, and that cannot be ended.
    let started = started.map(|mut command| {
        assert!(command.try_wait().unwrap().is_none());
        kill_process(Pid::from_child(&command), Signal::INT).unwrap();
        command
    });
    for mut command in started {
        within(PATIENCE, "the command's end", || command.try_wait().unwrap().is_some());
    }
    drop(stopped);
}

/// One of the commands that wait as long as they may.
#[test]
fn commands_end_in_time() {
    let world = World::new();
    let _stopped = Stopped::new(&world);
    let started = ["list", "verify"].map(|word| {
        let mut command = cinderfs();
        command.arg(word).arg(&world.store).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    });
    for mut command in started {
        within(3 * PATIENCE, "the command's end", || command.try_wait().unwrap().is_some());
        let output = command.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("did not answer within 30 s"), "{}", stderr(&output));
    }
}
