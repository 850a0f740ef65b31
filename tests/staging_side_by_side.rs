//! Do runs that write into one store at once keep out of each other's way, and out of everybody else's?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/staging_kit.rs"]
mod staging_kit;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cinderfs::ErrorKind;
use cinderfs::types::{BackupId, ObjectName};
use cinderfs::writer::staging::{FileName, Hook, Staging, Step, remove_leftovers};

use staging_kit::{Backup, errno, ours, run, store, tree};

#[test]
fn runs_side_by_side_do_not_meet() {
    let folder = store();
    let before = tree(folder.path());
    let stop = AtomicBool::new(false);
    let backups: Vec<_> = (0..24)
        .map(|n| match n % 3 {
            0 => Backup::new(&format!("abcd{n:04}-x"), "team/one"),
            1 => Backup::new(&format!("abcd{n:04}-x"), "team/new/one"),
            _ => Backup::new(&format!("abcd{n:04}-x"), &format!("qq/cd/abcd{n:04}-x")),
        })
        .collect();
    std::thread::scope(|scope| {
        let cleaner = scope.spawn(|| {
            let mut removed = 0;
            while !stop.load(Ordering::Relaxed) {
                removed += remove_leftovers(folder.path()).unwrap();
            }
            removed
        });
        let writers: Vec<_> = backups
            .chunks(3)
            .map(|some| {
                scope.spawn(|| some.iter().for_each(|backup| backup.write(folder.path(), None).unwrap()))
            })
            .collect();
        let outcomes: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok));
        // It may have been quicker than the maker of a lock, who began again then; it removed nothing else.
        cleaner.join().unwrap();
    });
    let expected = backups.iter().fold(before, |tree, backup| backup.added_to(&tree));
    assert_eq!(tree(folder.path()), expected);
}

#[test]
fn a_backup_is_written_by_one_run_and_a_prefix_published_once() {
    let folder = store();
    let before = tree(folder.path());
    let backup = &ours()[0];
    let staging = backup.begin(folder.path()).unwrap();
    backup.write_files(&staging);
    let error = backup.begin(folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("is being written by another run"), "{error}");

    // Other ids, the same prefix: whoever comes first.
    for container in ["team/one", "fresh"] {
        let container = ObjectName::parse(container).unwrap();
        let begin = |id: &str| {
            let id = BackupId::parse(id).unwrap();
            let staging = Staging::begin(folder.path(), &id, &container, "same").unwrap();
            for name in [FileName::Object(1), FileName::Digests, FileName::Metadata] {
                let mut file = staging.create_file(name).unwrap();
                file.append(id.as_str().as_bytes()).unwrap();
                file.finish().unwrap();
            }
            staging
        };
        let (first, second) = (begin("first"), begin("second"));
        second.publish().unwrap();
        let error = first.publish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        for name in ["same-00001", "same_sha256file", "same_metadata"] {
            let path = folder.path().join(container.as_path()).join(name);
            assert_eq!(fs::read(&path).unwrap(), b"second");
            fs::remove_file(path).unwrap();
        }
    }
    fs::remove_dir(folder.path().join("fresh")).unwrap();
    staging.publish().unwrap();
    assert_eq!(tree(folder.path()), backup.added_to(&before));
}

/// Between the look into the container and the renames, somebody takes one of the names.
// > No file that is there is ever replaced, and an id or prefix that exists is refused.
#[test]
fn a_name_that_is_taken_in_the_middle_is_never_replaced() {
    for (mode, taken) in [("renames", "-00002"), ("links", "-00003"), ("checks", "_metadata")] {
        let folder = store();
        let backup = ours()[0].clone();
        let path = folder.path().join("team/one").join(format!("{}{taken}", backup.prefix));
        let (moves, at) = (AtomicU64::new(0), path.clone());
        let hook: Hook = Arc::new(move |step, name| {
            // The first moves arrange the files in the hidden folder.
            let is_first = step == Step::MoveFile && moves.fetch_add(1, Ordering::Relaxed) == 5;
            if is_first {
                assert!(name.ends_with("-00001"));
                fs::write(&at, "theirs").unwrap();
            }
            match step {
                Step::MoveFile if mode != "renames" => Err(errno(22)),
                Step::LinkFile if mode == "checks" => Err(errno(1)),
                _ => Ok(()),
            }
        });
        let before = tree(folder.path());
        let error = backup.write(folder.path(), Some(hook)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        fs::remove_file(path).unwrap();
        assert_eq!(tree(folder.path()), before, "{mode}");
        let hook: Hook = Arc::new(move |step, _| match step {
            Step::MoveFile | Step::MoveFolder if mode != "renames" => Err(errno(22)),
            Step::LinkFile if mode == "checks" => Err(errno(1)),
            _ => Ok(()),
        });
        for backup in ours() {
            let folder = store();
            backup.write(folder.path(), Some(Arc::clone(&hook))).unwrap();
            assert_eq!(tree(folder.path()), backup.added_to(&before), "{mode}");
        }
    }
}

/// While a run arranges its files, others make its container, or folders above it.
#[test]
fn a_container_that_appears_meanwhile_is_shared() {
    for made in ["new", "new/cd", "new/cd/abcd1234-ours"] {
        let folder = store();
        let before = tree(folder.path());
        let backup = ours()[3].clone();
        let (path, once) = (folder.path().join(made), AtomicBool::new(false));
        let hook: Hook = Arc::new(move |step, _| {
            if step == Step::MoveFolder && !once.swap(true, Ordering::Relaxed) {
                fs::create_dir_all(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
                fs::write(path.join("theirs"), "theirs").unwrap();
            }
            Ok(())
        });
        backup.write(folder.path(), Some(hook)).unwrap();
        assert_eq!(fs::read(folder.path().join(made).join("theirs")).unwrap(), b"theirs");
        fs::remove_file(folder.path().join(made).join("theirs")).unwrap();
        let mut now = tree(folder.path());
        let mut expected = backup.added_to(&before);
        for tree in [&mut now, &mut expected] {
            tree.retain(|path, _| path != made); // its permissions are theirs
        }
        assert_eq!(now, expected, "{made}");
    }
}

#[test]
fn only_what_dead_runs_made_is_removed() {
    let folder = store();
    let root = folder.path();
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(outside.path().join("parts")).unwrap();
    fs::write(outside.path().join("lock"), "").unwrap();
    fs::write(outside.path().join("parts/.1"), "mine").unwrap();
    let make = |path: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "mine").unwrap();
    };
    // Not of ours: without a lock; a link; a file; a lock that is none; a name that is no id.
    make(".cinderfs-nolock/parts/.1");
    symlink(outside.path(), root.join(".cinderfs-link")).unwrap();
    make(".cinderfs-file");
    make(".cinderfs-lockfolder/lock/x");
    make(".cinderfs-with space/lock");
    fs::create_dir(root.join(".cinderfs-fifo")).unwrap();
    run(Command::new("mkfifo").arg(root.join(".cinderfs-fifo/lock")));
    assert!(fs::symlink_metadata(root.join(".cinderfs-fifo/lock")).unwrap().file_type().is_fifo());
    fs::create_dir(root.join(".cinderfs-linklock")).unwrap();
    symlink("../team/one/notes.txt", root.join(".cinderfs-linklock/lock")).unwrap();
    // A dead run's to which somebody added something: that stays, and all else that tells whose it is.
    make(".cinderfs-added/lock");
    make(".cinderfs-added/theirs");
    // Journals that name files of others: a whole backup's, and objects of one that Cinder is writing. They have other
    // numbers, but for one that the dead run had made.
    let mut names = fs::read_dir(root.join("team/one")).unwrap().map(|entry| entry.unwrap().file_name());
    let whole = names.find_map(|name| Some(name.to_str()?.strip_suffix("_metadata")?.to_owned())).unwrap();
    make("team/one/living-00001");
    let kept = tree(root);
    make("team/one/living-00002");
    for (id, prefix) in [("whole", &*whole), ("living", "living")] {
        let number = |suffix: &str| {
            fs::metadata(root.join(format!("team/one/{prefix}{suffix}"))).map_or(1 << 40, |file| file.ino())
        };
        let own = if id == "living" { number("-00002") } else { 1 << 40 };
        let entries =
            format!("{} -00001\n{own} -00002\n{} _metadata\n", number("-00001") + 1, number("-00001"));
        make(&format!(".cinderfs-{id}/lock"));
        let journal =
            format!("cinderfs journal 1\ncontainer \"team/one\"\nprefix \"{prefix}\"\n{entries}end\n");
        fs::write(root.join(format!(".cinderfs-{id}/journal")), journal).unwrap();
    }
    // And dead ones: whole, empty, killed at their end.
    make(".cinderfs-dead/lock");
    make(".cinderfs-dead/parts/.1");
    make(".cinderfs-dead/tree/a/b/p_metadata");
    symlink(outside.path(), root.join(".cinderfs-dead/tree/a/link")).unwrap();
    fs::create_dir(root.join(".cinderfs-empty")).unwrap();
    assert_eq!(remove_leftovers(root).unwrap(), 3);
    assert_eq!(tree(root), kept);
    assert_eq!(fs::read(outside.path().join("parts/.1")).unwrap(), b"mine");

    // A journal that cannot be read keeps its folder, and holds up no other backup.
    make(".cinderfs-broken/lock");
    make(".cinderfs-broken/journal");
    fs::write(root.join(".cinderfs-broken/journal"), "something else\n").unwrap();
    let kept = tree(root);
    assert_eq!(remove_leftovers(root).unwrap(), 0);
    assert_eq!(tree(root), kept);
    ours()[2].write(root, None).unwrap();
    for name in ["nolock", "broken", "added", "file", "link", "fifo"] {
        let error = Backup::new(name, "team/one").begin(root).unwrap_err();
        assert!(error.to_string().contains(&format!(".cinderfs-{name}")), "{error}");
    }
}
