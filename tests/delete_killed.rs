//! Does a `delete` that is killed, or fails, at any step leave each backup whole or gone?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/delete_kit.rs"]
mod delete_kit;
#[path = "common/life_kit.rs"]
mod life_kit;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cinderfs::ErrorKind;
use cinderfs::writer::delete::{self, DeleteOptions};
use cinderfs::writer::staging::{Hook, Step};

use delete_kit::*;
use life_kit::*;
use store_kit::Naming;

/// Said to a child process: the store, the id, and at which step it kills itself.
const CHILD: &str = "CINDERFS_TEST_DELETE";

/// The child's part: deletes, and kills itself at the step of that number, if it gets there.
#[test]
#[ignore = "run by other tests, as a process of its own"]
fn child() {
    let words = std::env::var(CHILD).expect("run by other tests");
    let words: Vec<_> = words.split('\n').collect();
    let [root, name, kill_at] = words[..] else { panic!("{words:?}") };
    let kill_at: u64 = kill_at.parse().unwrap();
    let step = AtomicU64::new(0);
    let hook: Hook = Arc::new(move |_, _| {
        if step.fetch_add(1, Ordering::Relaxed) == kill_at {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
        Ok(())
    });
    delete(Path::new(root), name, &DeleteOptions { hook: Some(hook), ..cascade() }).unwrap();
}

/// Whether the child came to its end before that step.
fn delete_killed(root: &Path, name: &str, kill_at: u64) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(CHILD, format!("{}\n{name}\n{kill_at}", root.to_str().unwrap()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert!(output.status.success() || output.status.signal() == Some(9), "{output:?}");
    output.status.success()
}

/// Which of the backups, from the newest on, are gone: a prefix of the order in which they go.
#[track_caller]
fn check_after(root: &Path, order: &[&Made], others: &[&Made], when: &str) -> usize {
    let listed = catalog(root).snapshot();
    let gone = order.iter().take_while(|made| listed.get(&made.spec.id).is_none()).count();
    // Those that are listed are whole, and each byte of them right.
    check_store(root, &[&order[gone..], others].concat(), when);
    gone
}

// > `delete` removes `_metadata` first, so that no backup is ever shown by half; killed, it leaves each backup whole or gone, and the next run removes the rest.
#[test]
fn a_run_killed_at_any_step_leaves_each_backup_whole_or_gone() {
    for naming in [Naming::New, Naming::Named, Naming::Bucket] {
        let [a, b, c, d] = &family(naming);
        let order = [c, b];
        let mut stops = BTreeSet::new();
        for kill_at in 0.. {
            let folder = store_of(&[a, b, c, d]);
            let (root, before) = (folder.path(), files(folder.path()));
            let finished = delete_killed(root, "bbbb0000-2", kill_at);
            let when = format!("{naming:?} killed at step {kill_at}");
            let gone = check_after(root, &order, &[a, d], &when);
            stops.insert(gone);
            // Either way of going on removes what is left, and not more.
            if kill_at % 2 == 0 {
                delete::remove_leftovers(root).unwrap();
                assert_eq!(check_after(root, &order, &[a, d], &when), gone, "{when}");
                assert_eq!(files(root), less(&before, &order[..gone]), "{when}");
                assert_eq!(hidden(root), Vec::<String>::new(), "{when}");
            } else {
                let store = root.to_str().unwrap();
                // The program takes the id also of one whose deletion it only has to finish.
                let left = hidden(root).len();
                let code = cinderfs(&["delete", store, "bbbb0000-2", "--cascade"]).status.code();
                let is_known = gone < 2 || left > 0 && !finished;
                assert!(code == Some(0) || !is_known || gone == 2 && code == Some(1), "{when}: {code:?}");
                assert_eq!(files(root), less(&before, &order), "{when}");
                assert_eq!(hidden(root), Vec::<String>::new(), "{when}");
            }
            if finished {
                break;
            }
        }
        assert_eq!(stops, BTreeSet::from([0, 1, 2]), "{naming:?}");
    }
}

#[test]
fn a_run_that_fails_at_any_step_leaves_each_backup_whole_or_gone() {
    for naming in [Naming::New, Naming::Named] {
        for lasts in [false, true] {
            let [a, b, c, d] = &family(naming);
            for fail_at in 0.. {
                let folder = store_of(&[a, b, c, d]);
                let (root, before) = (folder.path(), files(folder.path()));
                let step = Arc::new(AtomicU64::new(0));
                let counter = step.clone();
                let hook: Hook = Arc::new(move |_, _| {
                    let now = counter.fetch_add(1, Ordering::Relaxed);
                    let fails = if lasts { now >= fail_at } else { now == fail_at };
                    if fails { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
                });
                let options = DeleteOptions { hook: Some(hook), ..cascade() };
                let result = delete(root, "bbbb0000-2", &options);
                let when = format!("{naming:?} failed at step {fail_at}, lasting: {lasts}: {result:?}");
                let gone = check_after(root, &[c, b], &[a, d], &when);
                if let Err(error) = &result {
                    assert_eq!(error.kind(), ErrorKind::StoreIo, "{when}");
                }
                delete::remove_leftovers(root).unwrap();
                assert_eq!(files(root), less(&before, &[c, b][..gone]), "{when}");
                assert_eq!(hidden(root), Vec::<String>::new(), "{when}");
                if step.load(Ordering::Relaxed) <= fail_at {
                    assert!(result.is_ok() && gone == 2, "{when}");
                    break;
                }
            }
        }
    }
}

// > `delete` removes `_metadata` first, so that no backup is ever shown by half; killed, it leaves each backup whole or gone, and the next run removes the rest.
#[test]
fn the_metadata_goes_first_and_durably() {
    let made = Made::full("aaaa0000-1", "volume-1", Naming::Named);
    let folder = store_of(&[&made]);
    let steps = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = steps.clone();
    let hook: Hook = Arc::new(move |step, name| {
        seen.lock().unwrap().push((step, name.to_owned()));
        Ok(())
    });
    delete(folder.path(), "aaaa0000-1", &DeleteOptions { hook: Some(hook), ..cascade() }).unwrap();
    let steps = steps.lock().unwrap();
    let at = |wanted: Step, name: &str| {
        let found = steps.iter().position(|(step, of)| *step == wanted && of.ends_with(name));
        found.unwrap_or_else(|| panic!("{wanted:?} {name}: {steps:?}"))
    };
    let gone = at(Step::RemoveFile, "_metadata");
    assert!(at(Step::SyncFile, "deletion") < gone, "what is about to go is written down before");
    assert_eq!(steps[gone + 1], (Step::SyncFolder, "team/one".to_owned()));
    assert!(at(Step::RemoveFile, "_sha256file") > gone + 1 && at(Step::RemoveFile, "-00001") > gone + 1);
}

#[test]
fn a_killed_run_that_is_finished_takes_no_file_that_came_since() {
    let made = Made::full("aaaa0000-1", "volume-1", Naming::Old);
    let file = |root: &Path, suffix: &str| root.join(made.spec.container()).join(format!("backup{suffix}"));
    for kill_at in 0.. {
        let folder = store_of(&[&made]);
        let root = folder.path();
        assert!(!delete_killed(root, "aaaa0000-1", kill_at), "never killed in between");
        if file(root, "_metadata").exists() || !file(root, "-00001").exists() {
            continue;
        }
        // Old releases write over what has the name.
        fs::write(file(root, "-00001"), "new bytes").unwrap();
        delete::remove_leftovers(root).unwrap();
        assert_eq!(fs::read(file(root, "-00001")).unwrap(), b"new bytes");
        assert_eq!(files(root).len(), 1);
        break;
    }
    for kill_at in 0.. {
        let folder = store_of(&[&made]);
        let root = folder.path();
        assert!(!delete_killed(root, "aaaa0000-1", kill_at), "never killed in between");
        if file(root, "_metadata").exists() || !file(root, "-00001").exists() {
            continue;
        }
        // Brought back, as from a snapshot of the store.
        made.put(root);
        delete::remove_leftovers(root).unwrap();
        check_store(root, &[&made], "brought back");
        assert_eq!(hidden(root), Vec::<String>::new());
        break;
    }
}

#[test]
fn leftovers_are_removed_alone() {
    let [a, b, c, d] = &family(Naming::New);
    let folder = store_of(&[a, b, c, d]);
    let root = folder.path();
    let store = root.to_str().unwrap();
    let metadata = root.join(c.spec.container()).join(format!("{}_metadata", c.spec.prefix()));
    for kill_at in 0.. {
        assert!(!delete_killed(root, "cccc0000-3", kill_at), "never killed in between");
        if !metadata.exists() {
            break;
        }
    }
    assert_eq!(hidden(root), [".cinderfs-cccc0000-3"]);
    ends(&["delete", store, "--leftovers"], 0, "finished the deletion of cccc0000-3");
    ends(&["delete", store, "--leftovers"], 0, "there was nothing left of killed runs");
    ends(&["delete", store, "--leftovers", "aaaa"], 2, "cannot be used with");
    check_store(root, &[a, b, d], "leftovers");
    assert_eq!(files(root).len(), [a, b, d].iter().map(|made| made.file_names().len()).sum::<usize>());
}
