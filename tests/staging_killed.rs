//! Is nothing of a backup visible until all of it is there, when its run is killed, or fails, at any step?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/staging_kit.rs"]
mod staging_kit;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cinderfs::ErrorKind;
use cinderfs::store::Store;
use cinderfs::store::posix::PosixStore;
use cinderfs::writer::staging::{Hook, Step, remove_leftovers};

use staging_kit::{Backup, errno, hidden_folders, ours, store, tree, visible};

/// Said to a child process: what to do, and where.
const CHILD: &str = "CINDERFS_TEST_STAGING";

/// The child's part: writes a backup, and kills itself at the step of that number, if it gets there.
#[test]
#[ignore = "run by other tests, as a process of its own"]
fn child() {
    let words = std::env::var(CHILD).expect("run by other tests");
    let words: Vec<_> = words.split('\n').collect();
    let [root, id, container, mode, kill_at] = words[..] else { panic!("{words:?}") };
    let kill_at: u64 = kill_at.parse().unwrap();
    let step = AtomicU64::new(0);
    let links = mode == "links";
    let hook: Hook = Arc::new(move |what, _| {
        if step.fetch_add(1, Ordering::Relaxed) == kill_at {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
            panic!("alive");
        }
        if links && what == Step::MoveFile { Err(errno(22)) } else { Ok(()) }
    });
    println!("\nready");
    Backup::new(id, container).write(Path::new(root), Some(hook)).unwrap();
}

fn spawn(root: &Path, backup: &Backup, mode: &str, kill_at: u64, umask: &str) -> Child {
    let words = [root.to_str().unwrap(), backup.id.as_str(), backup.container.as_str(), mode];
    let mut command = Command::new("sh");
    command.args(["-c", "umask $0; exec \"$@\"", umask]).arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "child", "--nocapture"]);
    command.env(CHILD, format!("{}\n{kill_at}", words.join("\n")));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether the child came to its end; panics when it failed otherwise than by being killed.
#[track_caller]
fn wait(child: Child) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let output = child.wait_with_output().unwrap();
    match output.status.signal() {
        Some(9) => false,
        _ => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            true
        }
    }
}

/// What must hold after a run died, and after the next has begun. Whether the backup is there.
#[track_caller]
fn check_after_death(root: &Path, before: &staging_kit::Tree, backup: &Backup, when: &str) -> bool {
    let store = PosixStore::open(root).unwrap();
    let listed = store.list("_metadata").unwrap();
    assert!(listed.unreadable.is_empty(), "{when}: {:?}", listed.unreadable);
    let is_listed = listed.objects.iter().any(|object| object.name == backup.metadata_name());
    assert_eq!(listed.objects.len(), 3 + usize::from(is_listed), "{when}");
    // What others wrote is as it was, whatever else is there.
    let now = visible(root);
    for (path, what) in before {
        assert_eq!(now.get(path), Some(what), "{when}: {path:?}");
    }
    remove_leftovers(root).unwrap();
    assert_eq!(hidden_folders(root), BTreeSet::new(), "{when}");
    if is_listed {
        assert_eq!(tree(root), backup.added_to(before), "{when}");
        backup.check_image(root);
    } else {
        assert_eq!(&tree(root), before, "{when}");
    }
    is_listed
}

#[test]
fn a_run_that_is_killed_at_any_step_leaves_nothing_or_everything() {
    let umask = format!("{:03o}", staging_kit::umask());
    for mode in ["renames", "links"] {
        for backup in ours() {
            let mut published = Vec::new();
            for kill_at in 0.. {
                let folder = store();
                let before = tree(folder.path());
                let finished = wait(spawn(folder.path(), &backup, mode, kill_at, &umask));
                let when = format!("{mode} {} killed at step {kill_at}", backup.container);
                published.push(check_after_death(folder.path(), &before, &backup, &when));
                if finished {
                    break;
                }
                // The next run is not held up.
                if !published[kill_at as usize] {
                    backup.write(folder.path(), None).unwrap();
                    assert_eq!(tree(folder.path()), backup.added_to(&before), "{when}");
                }
            }
            let first = published.iter().position(|&is| is).unwrap();
            assert!(published[first..].iter().all(|&is| is), "{published:?}");
            // Most steps come before it is visible, and some after.
            assert!(first > 25 && published.len() > first + 5, "{first} {}", published.len());
        }
    }
}

#[test]
fn a_run_that_is_killed_at_any_moment_leaves_nothing_or_everything() {
    let umask = format!("{:03o}", staging_kit::umask());
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let (mut whole, mut nothing) = (0, 0);
    // Grows and shrinks, so that some are killed late enough, however busy the machine is.
    let mut moment_max = 4000.0;
    for round in 0..200 {
        let backup = &ours()[round % 4];
        let folder = store();
        let before = tree(folder.path());
        let mut child = spawn(folder.path(), backup, "renames", u64::MAX, &umask);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"));
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let moment = Duration::from_micros(random % moment_max as u64);
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        let when = format!("round {round}, after {moment:?}");
        match check_after_death(folder.path(), &before, backup, &when) {
            true => {
                whole += 1;
                moment_max = f64::max(1000.0, moment_max * 0.8);
            }
            false => {
                nothing += 1;
                moment_max *= 1.1;
            }
        }
    }
    println!("{whole} whole, {nothing} nothing, lately within {moment_max} us");
    assert!(whole >= 10 && nothing >= 10, "{whole} whole, {nothing} nothing");
}

/// The numbers of ENOSPC and EIO.
const ERRORS: [i32; 2] = [28, 5];

#[test]
fn a_run_of_which_any_one_step_fails_leaves_nothing_or_everything() {
    for backup in ours() {
        for number in ERRORS {
            let (mut failed, mut done) = (0, 0);
            for fail_at in 0.. {
                let folder = store();
                let before = tree(folder.path());
                let step = Arc::new(AtomicU64::new(0));
                let counted = Arc::clone(&step);
                let hook: Hook = Arc::new(move |_, _| {
                    let is_now = counted.fetch_add(1, Ordering::Relaxed) == fail_at;
                    if is_now { Err(errno(number)) } else { Ok(()) }
                });
                let when = format!("{} step {fail_at} errno {number}", backup.container);
                match backup.write(folder.path(), Some(hook)) {
                    Ok(()) => {
                        assert_eq!(visible(folder.path()), backup.added_to(&before), "{when}");
                        done += 1;
                    }
                    Err(error) => {
                        let kind = if number == 28 { ErrorKind::Target } else { ErrorKind::StoreIo };
                        assert_eq!(error.kind(), kind, "{when}: {error}");
                        assert!(number != 28 || error.to_string().contains("full"), "{error}");
                        assert_eq!(visible(folder.path()), before, "{when}");
                        failed += 1;
                    }
                }
                // Only a failure to remove leaves a hidden folder.
                remove_leftovers(folder.path()).unwrap();
                assert_eq!(hidden_folders(folder.path()), BTreeSet::new(), "{when}");
                if step.load(Ordering::Relaxed) <= fail_at {
                    break;
                }
            }
            assert!(failed > 25 && done > 5, "{failed} {done}");
        }
    }
}

#[test]
fn a_store_that_dies_at_any_step_is_cleaned_by_the_next_run() {
    for backup in ours() {
        let mut left = 0;
        for fail_from in 0.. {
            let folder = store();
            let before = tree(folder.path());
            let step = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&step);
            let hook: Hook = Arc::new(move |_, _| {
                let is_dead = counted.fetch_add(1, Ordering::Relaxed) >= fail_from;
                if is_dead { Err(errno(5)) } else { Ok(()) }
            });
            let written = backup.write(folder.path(), Some(hook));
            let when = format!("{} dead from step {fail_from} on", backup.container);
            left += u32::from(!hidden_folders(folder.path()).is_empty());
            let is_there = check_after_death(folder.path(), &before, &backup, &when);
            // It told of success only if all is there; where it cannot take back what is there, it says so.
            match written {
                Ok(()) => assert!(is_there, "{when}"),
                Err(error) if is_there => {
                    assert!(
                        error.to_string().contains("cannot be taken back")
                            || error.to_string().contains("could not be taken back"),
                        "{when}: {error}"
                    );
                }
                Err(_) => {}
            }
            if step.load(Ordering::Relaxed) <= fail_from {
                break;
            }
        }
        assert!(left > 10, "{left}");
    }
}

#[test]
fn modes_are_cinders_whatever_the_umask() {
    for (umask, parent) in [("000", 0o777), ("077", 0o700), ("022", 0o755)] {
        let folder = store();
        let backup = &ours()[3];
        assert!(wait(spawn(folder.path(), backup, "renames", u64::MAX, umask)));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let container = folder.path().join(backup.container.as_path());
        assert_eq!(mode(&container), 0o770);
        assert_eq!(mode(container.parent().unwrap()), parent);
        assert_eq!(mode(&folder.path().join("new")), parent);
        let files: Vec<_> = fs::read_dir(&container).unwrap().collect();
        assert_eq!(files.len(), 5);
        for file in files {
            assert_eq!(mode(&file.unwrap().path()), 0o660);
        }
    }
}
