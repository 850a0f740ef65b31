//! Does `delete` take away a backup and nothing else, and never one that others build on?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/delete_kit.rs"]
mod delete_kit;
#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/life_kit.rs"]
mod life_kit;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use cinderfs::ErrorKind;
use cinderfs::writer::delete::DeleteOptions;

use delete_kit::*;
use life_kit::*;
use store_kit::Naming;

// > `delete` refuses a backup that others build on, and names them; `--cascade` takes them along, children first.
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
    ends(&["delete", store, "bbbb", "aaaa", "dddd", "cccc"], 0, "deleted aaaa0000-1: 3 objects");
    assert_eq!((files(root), hidden(root)), (BTreeSet::new(), vec![]));
}

// > `delete` refuses a backup that others build on, and names them; `--cascade` takes them along, children first.
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
    // By another process: what a sibling test starts meanwhile would hold this one's copy open for writing.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_cinderfs")).arg(&binary).status();
    assert!(copied.unwrap().success());
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
