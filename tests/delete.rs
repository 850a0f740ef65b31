//! Does `delete` take away a backup and nothing else, whatever the store holds and whenever it is killed?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/life_kit.rs"]
mod life_kit;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cinderfs::types::{BackupId, ObjectName};
use cinderfs::writer::delete::{self, DeleteOptions, Kept, Plan};
use cinderfs::writer::staging::{Hook, Staging, Step};
use cinderfs::{ErrorKind, Result};
use life_kit::*;
use store_kit::{Naming, Packing};

/// Said to a child process: the store, the id, and at which step it kills itself.
const CHILD: &str = "CINDERFS_TEST_DELETE";

fn id(id: &str) -> BackupId {
    BackupId::parse(id).unwrap()
}

fn plan(root: &Path, name: &str, options: &DeleteOptions) -> Result<Plan> {
    delete::plan(&catalog(root), root, &[id(name)], options)
}

/// Deletes one; the ids in the order in which they went.
fn delete(root: &Path, name: &str, options: &DeleteOptions) -> Result<Vec<String>> {
    let plan = plan(root, name, options)?;
    let mut gone = Vec::new();
    delete::delete(root, &plan, options, &|| false, &mut |backup| gone.push(backup.entry.id.to_string()))?;
    Ok(gone)
}

fn cascade() -> DeleteOptions {
    DeleteOptions { cascade: true, ..DeleteOptions::default() }
}

fn store_of(backups: &[&Made]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    backups.iter().for_each(|made| _ = made.put(folder.path()));
    folder
}

fn less(all: &BTreeSet<String>, gone: &[&Made]) -> BTreeSet<String> {
    let gone: BTreeSet<_> = gone.iter().flat_map(|made| made.file_names()).collect();
    all.difference(&gone).cloned().collect()
}

#[test]
fn a_parent_is_refused_and_its_children_named() {
    let [a, b, c, d] = &family(Naming::New);
    let folder = store_of(&[a, b, c, d]);
    let root = folder.path();
    let before = files(root);
    let error = delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().ends_with("build on: bbbb0000-2, dddd0000-4"), "{error}");
    let store = root.to_str().unwrap();
    let output = ends(&["delete", store, "aaaa"], 2, "build on: bbbb0000-2, dddd0000-4\nhint: --cascade");
    assert_eq!(stdout(&output), "");
    ends(&["delete", store, "aaaa", "bbbb", "cccc"], 2, "build on: dddd0000-4\n");
    ends(&["delete", store, "nobody"], 1, "no backup in the store");
    ends(&["delete", store], 2, "BACKUP");
    ends(&["delete", &format!("{store}/none"), "x"], 10, "cannot open the store");
    assert_eq!(files(root), before);
    check_store(root, &[a, b, c, d], "refused");
    // All that are named go, in any order of the words.
    ends(&["delete", store, "bbbb", "aaaa", "dddd", "cccc"], 0, "deleted aaaa0000-1: 3 object(s)");
    assert_eq!((files(root), hidden(root)), (BTreeSet::new(), vec![]));
}

#[test]
fn a_cascade_takes_what_builds_on_it_and_leaves_the_rest() {
    for naming in [Naming::New, Naming::Old, Naming::Named, Naming::Bucket] {
        let [a, b, c, d] = &family(naming);
        let folder = store_of(&[a, b, c, d]);
        let (root, before) = (folder.path(), files(folder.path()));
        assert_eq!(delete(root, "bbbb0000-2", &cascade()).unwrap(), ["cccc0000-3", "bbbb0000-2"]);
        assert_eq!(files(root), less(&before, &[b, c]), "{naming:?}");
        check_store(root, &[a, d], "cascade");
        assert_eq!(delete(root, "aaaa0000-1", &cascade()).unwrap(), ["dddd0000-4", "aaaa0000-1"]);
        assert_eq!((files(root), hidden(root)), (BTreeSet::new(), vec![]), "{naming:?}");
        // The folder that is one backup's goes with it; those that others may use stay.
        let own = root.join("aa/aa/aaaa0000-1");
        assert!(!own.exists(), "{naming:?}");
        match naming {
            Naming::New | Naming::Old => assert!(root.join("aa/aa").exists()),
            Naming::Named => assert!(root.join("team/one").exists()),
            Naming::Bucket => assert!(root.join("volumebackups").exists()),
        }
    }
}

#[test]
fn a_dry_run_tells_what_would_go_and_changes_nothing() {
    let [a, b, c, d] = &family(Naming::Named);
    let folder = store_of(&[a, b, c, d]);
    let (root, before) = (folder.path(), files(folder.path()));
    let store = root.to_str().unwrap();
    let output = ends(
        &[
            "delete",
            store,
            "bbbb",
            "--cascade",
            "--dry-run",
            "-f",
            "value",
            "-c",
            "id",
            "-c",
            "objects",
            "-c",
            "bytes",
        ],
        0,
        "",
    );
    let expected = format!("cccc0000-3 2 {}\nbbbb0000-2 2 {}\n", c.stored_bytes(), b.stored_bytes());
    assert_eq!(stdout(&output), expected);
    assert_eq!(stderr(&output), "");
    ends(&["delete", store, "bbbb", "--dry-run"], 2, "build on: cccc0000-3");
    assert_eq!((files(root), hidden(root)), (before, vec![]));
    let plan = plan(root, "bbbb0000-2", &cascade()).unwrap();
    let names: BTreeSet<_> = plan.backups.iter().flat_map(|backup| backup.files()).collect();
    assert_eq!(names, b.file_names().union(&c.file_names()).cloned().collect());
    for backup in &plan.backups {
        assert!(backup.files().next().unwrap().ends_with("_metadata"), "it goes first");
    }
}

/// The prefix `p` begins those of two other backups, one readable and one torn, and is begun by a third one's.
#[test]
fn files_of_a_longer_or_shorter_prefix_are_others() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("c")).unwrap();
    let put = |prefix: &str, id: &str, listed: &[&str]| {
        let objects: Vec<_> = listed
            .iter()
            .map(|name| format!("{{\"{name}\": {{\"compression\": \"none\", \"length\": 1, \"offset\": 0, \"md5\": \"\"}}}}"))
            .collect();
        let text = format!(
            "{{\"backup_id\": \"{id}\", \"objects\": [{}], \"parent_id\": null, \"version\": \"1.0.0\", \"volume_id\": \"v\"}}",
            objects.join(", ")
        );
        for name in listed.iter().filter(|name| !name.contains("none")) {
            fs::write(root.join("c").join(name), "x").unwrap();
        }
        fs::write(root.join(format!("c/{prefix}_metadata")), text).unwrap();
    };
    // It claims the others' files, too; one that is not there, and its own documents.
    put(
        "p",
        "victim",
        &[
            "p-00001",
            "p-2-00001",
            "p-2_metadata",
            "p-2_sha256file",
            "p-3-00001",
            "p_metadata",
            "p_sha256file",
            "p-none",
            "p-shared",
        ],
    );
    put("p-2", "longer", &["p-2-00001"]);
    fs::write(root.join("c/p-2_sha256file"), "x").unwrap();
    fs::write(root.join("c/p-3_metadata"), "{").unwrap();
    fs::write(root.join("c/p-3-00001"), "x").unwrap();
    fs::write(root.join("c/p-notes.txt"), "x").unwrap();
    fs::write(root.join("c/p-00002"), "x").unwrap();
    fs::create_dir(root.join("c/p-folder")).unwrap();
    // A name that both list is neither's alone.
    put("q", "shorter", &["q-00001", "q-both-00001"]);
    put("q-both", "both", &["q-both-00001"]);
    let before = files(root);

    let plan = plan(root, "victim", &DeleteOptions::default()).unwrap();
    let kept: Vec<_> = plan.backups[0].kept().collect();
    let name = |name: &str| format!("c/{name}");
    assert_eq!(
        kept,
        [
            (name("p-00002"), Kept::Unlisted),
            (name("p-folder"), Kept::NoObject),
            (name("p-notes.txt"), Kept::Unlisted)
        ]
    );
    assert_eq!(delete(root, "victim", &DeleteOptions::default()).unwrap(), ["victim"]);
    let gone: BTreeSet<_> = ["p_metadata", "p_sha256file", "p-00001", "p-shared"].map(name).into();
    assert_eq!(files(root), before.difference(&gone).cloned().collect());
    assert!(root.join("c/p-folder").is_dir());

    let before = files(root);
    assert_eq!(delete(root, "both", &DeleteOptions::default()).unwrap(), ["both"]);
    let gone: BTreeSet<_> = [name("q-both_metadata")].into();
    assert_eq!(files(root), before.difference(&gone).cloned().collect(), "the shorter one lists it too");
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "x").unwrap();
    let root = folder.path();
    let other = Made::full("eeee0000-9", "volume-9", Naming::Named);
    other.put(root);
    let mut made = Made::full("aaaa0000-1", "volume-1", Naming::New);
    made.put(root);
    let container = root.join(made.spec.container());
    let prefix = made.spec.prefix();
    // Objects that are links, one of them to an object of another backup; a link to a folder of another's.
    let first = container.join(format!("{prefix}-00001"));
    fs::remove_file(&first).unwrap();
    let others = other.spec.object_path(0);
    symlink(root.join(&others), &first).unwrap();
    let second = container.join(format!("{prefix}-00002"));
    fs::remove_file(&second).unwrap();
    symlink(outside.path().join("victim"), &second).unwrap();
    symlink(root.join(other.spec.container()), container.join(format!("{prefix}-link"))).unwrap();
    let metadata = container.join(format!("{prefix}_metadata"));
    let text = fs::read_to_string(&metadata).unwrap();
    let file = Path::new(&others).file_name().unwrap().to_str().unwrap();
    fs::write(&metadata, text.replacen("-00003\"", &format!("-link/{file}\""), 1)).unwrap();
    let plan = plan(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
    assert_eq!(plan.backups[0].kept().count(), 1, "the link to a folder is not listed");
    delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"x");
    let mut left = other.file_names();
    left.insert(format!("{}/{prefix}-link", made.spec.container()));
    assert_eq!(files(root), left, "-00003 goes: its name is the backup's");
    check_store(root, &[&other], "hostile names");

    // Names that lead away make the document unreadable: then what by its name is the backup's goes.
    fs::remove_dir_all(root.join("aa")).unwrap();
    for hostile in ["../../../../etc/passwd", "/etc/passwd", "../../team/one/x", "x\\u0000"] {
        made.put(root);
        fs::write(&metadata, text.replacen(&format!("{prefix}-00003"), hostile, 1)).unwrap();
        assert_eq!(delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap(), ["aaaa0000-1"]);
        assert_eq!(files(root), other.file_names(), "{hostile}");
    }
    // A folder on the way that becomes a link is not followed.
    made.spec.naming = Naming::Named;
    made.put(root);
    let planned = delete::plan(&catalog(root), root, &[id("aaaa0000-1")], &DeleteOptions::default()).unwrap();
    fs::rename(root.join("team"), outside.path().join("team")).unwrap();
    symlink(outside.path().join("team"), root.join("team")).unwrap();
    let mut never = |_: &delete::DoomedBackup| panic!("deleted");
    let error = delete::delete(root, &planned, &DeleteOptions::default(), &|| false, &mut never).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BackupNotFound, "{error}");
    assert_eq!(files(&outside.path().join("team/one")).len(), 10);
}

#[test]
fn unlisted_objects_go_where_their_name_is_proof() {
    for naming in [Naming::New, Naming::Old, Naming::Named, Naming::Bucket] {
        let made = Made::full("aaaa0000-1", "volume-1", naming);
        let folder = store_of(&[&made]);
        let root = folder.path();
        let stale = root.join(made.spec.object_path(7));
        fs::write(&stale, "left by a longer backup").unwrap();
        delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
        assert!(!stale.exists(), "{naming:?}");
    }
    // The prefix of old releases in a container with a name: whose the rest is cannot be told.
    let made = Made::full("aaaa0000-1", "volume-1", Naming::Old);
    let folder = store_of(&[&made]);
    let root = folder.path();
    fs::create_dir_all(root.join("team")).unwrap();
    fs::rename(root.join(made.spec.container()), root.join("team/one")).unwrap();
    fs::write(root.join("team/one/backup-00008"), "x").unwrap();
    let stays = "team/one/backup-00008 stays: the backup does not list it\n";
    ends(&["delete", root.to_str().unwrap(), "aaaa"], 0, stays);
    assert_eq!(files(root), BTreeSet::from(["team/one/backup-00008".to_owned()]));
}

#[test]
fn unusable_backups_can_be_deleted_by_id() {
    let torn = ["", "{", "[]", "{\"version\": \"1.0.0\"}", "{\"backup_id\": \"other\", \"version\": \"9\"}"];
    for naming in [Naming::New, Naming::Old, Naming::Named] {
        for text in torn {
            let other = Made::full("eeee0000-9", "volume-9", Naming::Named);
            let made = Made::full("aaaa0000-1", "volume-1", naming);
            let folder = store_of(&[&other, &made]);
            let root = folder.path();
            fs::write(
                root.join(made.spec.container()).join(format!("{}_metadata", made.spec.prefix())),
                text,
            )
            .unwrap();
            delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
            assert_eq!(files(root), other.file_names(), "{naming:?} {text}");
        }
    }
    // Parents that are missing, torn, or build on their children.
    let [a, b, c, d] = &family(Naming::New);
    let folder = store_of(&[b, c]);
    assert_eq!(delete(folder.path(), "cccc0000-3", &DeleteOptions::default()).unwrap(), ["cccc0000-3"]);
    assert_eq!(files(folder.path()), b.file_names());
    let folder = store_of(&[a, d]);
    fs::write(folder.path().join(a.spec.container()).join(format!("{}_metadata", a.spec.prefix())), "{")
        .unwrap();
    let error = delete(folder.path(), "aaaa0000-1", &DeleteOptions::default()).unwrap_err();
    assert!(error.to_string().contains("dddd0000-4"), "{error}");
    assert_eq!(delete(folder.path(), "aaaa0000-1", &cascade()).unwrap(), ["dddd0000-4", "aaaa0000-1"]);
    assert_eq!(files(folder.path()), BTreeSet::new());
    let mut circle = a.clone();
    circle.spec.parent_id = Some("bbbb0000-2".into());
    let folder = store_of(&[&circle, b]);
    assert_eq!(
        delete(folder.path(), "aaaa0000-1", &DeleteOptions::default()).unwrap_err().kind(),
        ErrorKind::Usage
    );
    assert_eq!(delete(folder.path(), "aaaa0000-1", &cascade()).unwrap(), ["bbbb0000-2", "aaaa0000-1"]);
    assert_eq!(files(folder.path()), BTreeSet::new());
}

#[test]
fn copies_go_together_and_rivals_are_refused() {
    let made = Made::full("aaaa0000-1", "volume-1", Naming::Named);
    let folder = store_of(&[&made]);
    let root = folder.path();
    fs::create_dir(root.join("copy")).unwrap();
    for name in made.file_names() {
        let file = Path::new(&name).file_name().unwrap();
        fs::copy(root.join(&name), root.join("copy").join(file)).unwrap();
    }
    let mut rival = made.clone();
    rival.spec.name = Some("not the same".into());
    rival.spec.naming = Naming::New;
    rival.put(root);
    let before = files(root);
    let error = delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous, "{error}");
    assert_eq!(files(root), before);
    fs::remove_dir_all(root.join("aa")).unwrap();
    assert_eq!(delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap(), ["aaaa0000-1"]);
    assert_eq!(files(root), BTreeSet::new());
}

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
fn two_at_once_delete_once() {
    for round in 0..20 {
        let [a, b, c, d] = &family(if round % 2 == 0 { Naming::New } else { Naming::Named });
        let folder = store_of(&[a, b, c, d]);
        let (root, before) = (folder.path(), files(folder.path()));
        let barrier = std::sync::Barrier::new(4);
        let results: Vec<_> = std::thread::scope(|scope| {
            let run = |name: &'static str| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let planned = plan(root, name, &cascade()).unwrap();
                    barrier.wait();
                    let mut count = 0;
                    let result = delete::delete(root, &planned, &cascade(), &|| false, &mut |_| count += 1);
                    (name, result, count)
                })
            };
            let runs = ["bbbb0000-2", "bbbb0000-2", "cccc0000-3", "dddd0000-4"].map(run);
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        let total: usize = results.iter().map(|(_, _, count)| count).sum();
        for (name, result, _) in &results {
            if let Err(error) = result {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::BackupNotFound | ErrorKind::Target), "{name}: {error}");
            }
        }
        // Each is told by exactly one run, or by none where a run stepped back before the other.
        delete::remove_leftovers(root).unwrap();
        let listed = catalog(root).snapshot();
        let gone: Vec<_> = [b, c, d].into_iter().filter(|made| listed.get(&made.spec.id).is_none()).collect();
        assert_eq!(gone.len(), total, "{results:?}");
        assert!(gone.iter().any(|made| made.spec.id == "dddd0000-4") && gone.len() >= 2, "{results:?}");
        assert_eq!(files(root), less(&before, &gone));
        assert_eq!(hidden(root), Vec::<String>::new());
    }
}

#[test]
fn a_backup_that_has_changed_or_got_a_child_since_it_was_shown_stays() {
    let [a, b, _, _] = &family(Naming::New);
    let folder = store_of(&[a]);
    let root = folder.path();
    let run = |plan: &Plan| {
        let mut never = |_: &delete::DoomedBackup| panic!("deleted");
        delete::delete(root, plan, &cascade(), &|| false, &mut never).unwrap_err()
    };
    let shown = plan(root, "aaaa0000-1", &cascade()).unwrap();
    b.put(root);
    let error = run(&shown);
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("bbbb0000-2"), "{error}");
    check_store(root, &[a, b], "a child came");
    let shown = plan(root, "bbbb0000-2", &cascade()).unwrap();
    let metadata = root.join(b.spec.container()).join(format!("{}_metadata", b.spec.prefix()));
    let text = fs::read_to_string(&metadata).unwrap();
    fs::write(&metadata, text.replace("\"backup_name\": null", "\"backup_name\": \"other\"")).unwrap();
    assert!(run(&shown).to_string().contains("has changed since"));
    // And told to stop, none goes.
    let shown = plan(root, "aaaa0000-1", &cascade()).unwrap();
    let mut never = |_: &delete::DoomedBackup| panic!("deleted");
    let error = delete::delete(root, &shown, &cascade(), &|| true, &mut never).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    check_store(root, &[a, b], "stopped");
    assert_eq!(hidden(root), Vec::<String>::new());
}

#[test]
fn a_backup_that_is_being_written_is_left_to_its_writer() {
    let made = Made::full("aaaa0000-1", "volume-1", Naming::New);
    let folder = store_of(&[&made]);
    let root = folder.path();
    let container = ObjectName::parse("elsewhere").unwrap();
    let staging = Staging::begin(root, &made.id(), &container, "volume_x_backup_y").unwrap();
    let error = delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(error.to_string().contains("being written or deleted by another run"), "{error}");
    assert_eq!(hidden(root).len(), 1);
    check_store(root, &[&made], "refused");
    drop(staging);
    delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
}

#[test]
fn an_image_that_is_being_read_ends_in_errors_or_right_bytes() {
    let mut full = Made::full("aaaa0000-1", "volume-1", Naming::New);
    full.spec.objects.iter_mut().for_each(|object| object.packing = Packing::Plain("none"));
    let child = full.child("bbbb0000-2", 3);
    let folder = store_of(&[&full, &child]);
    let root = folder.path();
    let catalog = catalog(root);
    let image = catalog.image(catalog.snapshot().get("bbbb0000-2").unwrap()).unwrap();
    let mut block = [0; 512];
    image.read_at(&mut block, 0).unwrap();
    assert_eq!(block, child.volume[..512]);
    delete(root, "aaaa0000-1", &cascade()).unwrap();
    let mut errors = 0;
    for at in 0..child.volume.len() / 512 {
        match image.read_at(&mut block, (at * 512) as u64) {
            Ok(_) => assert_eq!(block, child.volume[at * 512..(at + 1) * 512], "block {at}"),
            Err(error) => {
                errors += 1;
                assert!(matches!(error.kind(), ErrorKind::ObjectNotFound | ErrorKind::StoreIo), "{error}");
            }
        }
    }
    assert!(errors > 0, "nothing of it was read before");
}

/// Needs root and /dev/fuse.
#[test]
fn a_mount_gives_right_bytes_or_eio_and_shows_it_no_more() {
    let mut full = Made::full("aaaa0000-1", "volume-1", Naming::New);
    full.spec.objects.iter_mut().for_each(|object| object.packing = Packing::Plain("none"));
    let child = full.child("bbbb0000-2", 3);
    let other = Made::full("eeee0000-9", "volume-9", Naming::Named);
    let folder = mount::open_folder();
    let root = folder.path().join("store");
    fs::create_dir(&root).unwrap();
    for made in [&full, &child, &other] {
        made.put(&root);
    }
    let mounted = mount::Mount::new(&root);
    let image = fs::File::open(mounted.image("bbbb0000-2")).unwrap();
    ends(&["delete", root.to_str().unwrap(), "aaaa", "--cascade"], 0, "deleted aaaa0000-1");
    let (mut block, mut errors) = ([0; 512], 0);
    for (at, expected) in child.volume.chunks(512).enumerate() {
        match image.read_at(&mut block[..expected.len()], (at * 512) as u64) {
            Ok(len) => assert_eq!(block[..len], *expected, "block {at}"),
            Err(error) => {
                errors += 1;
                assert!(matches!(error.raw_os_error(), Some(5 | 2)), "{error}");
            }
        }
    }
    assert!(errors > 0, "nothing of it was read before");
    mount::within(std::time::Duration::from_secs(5), "the deleted to vanish", || {
        mount::names(&mounted.path("backups")) == ["eeee0000-9"]
    });
    assert_eq!(fs::read(mounted.image("eeee0000-9")).unwrap(), other.volume);
}

/// Each store loses its backups one after the other, the newest first; what is left stays right to the last byte.
#[test]
fn genuine_stores_lose_one_backup_at_a_time() {
    for store in [
        "one-container",
        "old-names",
        "branch",
        "zeros",
        "texts",
        "grew",
        "emulated-python2",
        "release-10.0.0-zlib",
    ] {
        let mut backups = genuine::backups_of(store);
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join(store);
        let copied = Command::new("cp").arg("-a").arg(backups[0].store_path()).arg(&root).status().unwrap();
        assert!(copied.success());
        let before = files(&root).len() as u64;
        let mut gone = 0;
        while let Some(newest) = backups.pop() {
            let is_parent = backups.iter().any(|other| other.parent_id.as_ref() == Some(&newest.id));
            assert!(!is_parent, "{newest}");
            assert_eq!(delete(&root, &newest.id, &DeleteOptions::default()).unwrap(), [newest.id.as_str()]);
            gone += newest.objects + 2;
            assert_eq!(files(&root).len() as u64, before - gone, "{newest}");
            let catalog = catalog(&root);
            for left in &backups {
                let image = catalog.image(catalog.snapshot().get(&left.id).unwrap()).unwrap();
                let mut bytes = vec![0; left.bytes as usize];
                let mut at = 0;
                while at < bytes.len() {
                    at += image.read_at(&mut bytes[at..], at as u64).unwrap();
                }
                left.check("after a deletion", &bytes);
            }
        }
        assert_eq!(files(&root), BTreeSet::new(), "{store}");
    }
}

/// Root may read everything, so the program runs as somebody else.
#[test]
fn where_children_may_lie_unseen_nothing_goes_unless_told() {
    const NOBODY: u32 = 65534;
    let made = Made::full("aaaa0000-1", "volume-1", Naming::New);
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("cinderfs");
    fs::copy(env!("CARGO_BIN_EXE_cinderfs"), &binary).unwrap();
    let root = folder.path().join("store");
    fs::create_dir(&root).unwrap();
    made.put(&root);
    fs::create_dir(root.join("closed")).unwrap();
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(&binary);
        command.arg("delete").arg(&root).args(words).env_remove("CINDERFS_LOG").stdin(Stdio::null());
        command.env("CINDERFS_CACHE_DIR", "/nonexistent").uid(NOBODY).gid(NOBODY);
        // A sibling test that forks while the copy is written keeps it busy for a moment.
        loop {
            match command.output() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                result => return result.unwrap(),
            }
        }
    };
    let own = |path: &Path| chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    // It may not write there at all.
    let output = run(&["aaaa", "--force"]);
    assert_eq!(output.status.code(), Some(12), "{output:?}");
    check_store(&root, &[&made], "no permission");
    for path in ["", "aa", "aa/aa", "aa/aa/aaaa0000-1"] {
        own(&root.join(path));
    }
    let output = run(&["aaaa"]);
    assert_eq!(output.status.code(), Some(12), "{output:?}");
    assert!(
        stderr(&output).contains("cannot be read") && stderr(&output).contains("hint: --force"),
        "{output:?}"
    );
    check_store(&root, &[&made], "unseen");
    let output = run(&["aaaa", "--force"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(files(&root), BTreeSet::new());
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
