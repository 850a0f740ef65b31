//! Is nothing of a backup visible until all of it is there, whatever happens to its run?
//!
//! Needs root and /dev/loop-control for the tests with a file system of their own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/staging_kit.rs"]
mod kit;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cinderfs::ErrorKind;
use cinderfs::store::Store;
use cinderfs::store::posix::PosixStore;
use cinderfs::types::{BackupId, ObjectName};
use cinderfs::writer::staging::{FileName, Hook, Staging, Step, remove_leftovers};

use kit::{Backup, SmallFileSystem, hidden_folders, run, tree, visible};

/// Said to a child process: what to do, and where.
const CHILD: &str = "CINDERFS_TEST_STAGING";

/// A store with three backups of others: one in the container that ours will share, one beside, one below `ab`.
fn store() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Backup::new("11111111-other", "team/one").write(folder.path(), None).unwrap();
    Backup::new("22222222-other", "team").write(folder.path(), None).unwrap();
    Backup::new("abab0000-other", "ab/ab/abab0000-other").write(folder.path(), None).unwrap();
    fs::write(folder.path().join("team/one/notes.txt"), "mine").unwrap();
    folder
}

/// Ours: in a container that exists, and in three that do not, with less and less of their path.
fn ours() -> [Backup; 4] {
    [
        Backup::new("abcd1234-ours", "team/one"),
        Backup::new("abcd1234-ours", "team/two"),
        Backup::new("abcd1234-ours", "ab/cd/abcd1234-ours"),
        Backup::new("abcd1234-ours", "new/cd/abcd1234-ours"),
    ]
}

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

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
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
fn check_after_death(root: &Path, before: &kit::Tree, backup: &Backup, when: &str) -> bool {
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
    let umask = format!("{:03o}", kit::umask());
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
    let umask = format!("{:03o}", kit::umask());
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

/// What a power cut would do cannot be tried here; the order of the calls can be seen.
#[test]
fn each_kind_of_file_is_durable_before_the_next_gets_its_name() {
    for backup in ours() {
        let folder = store();
        let steps: Arc<Mutex<Vec<(Step, String)>>> = Arc::default();
        let noted = Arc::clone(&steps);
        let hook: Hook = Arc::new(move |step, name| {
            noted.lock().unwrap().push((step, name.to_owned()));
            Ok(())
        });
        backup.write(folder.path(), Some(hook)).unwrap();
        let steps = steps.lock().unwrap();
        let position = |from: usize, what: &dyn Fn(Step, &str) -> bool| {
            from + steps[from..].iter().position(|(step, name)| what(*step, name)).unwrap()
        };
        let synced = steps.iter().filter(|(step, _)| *step == Step::SyncFile).count();
        assert!(synced >= 5, "each file");
        let last_sync = steps.iter().rposition(|(step, name)| *step == Step::SyncFile && name != "journal");
        let arranged = position(0, &|step, _| step == Step::MoveFile);
        assert!(last_sync.unwrap() < arranged, "durable before they get any name");
        let journal = steps.iter().position(|(step, name)| *step == Step::SyncFile && name == "journal");
        match journal {
            Some(journal) => {
                assert_eq!(backup.container.as_str(), "team/one");
                let mut at = position(journal, &|step, name| step == Step::SyncFolder && name == "journal");
                for suffix in ["-00001", "-00002", "-00003", "_sha256file", "_metadata"] {
                    let moved = position(at, &|step, name| step == Step::MoveFile && name.ends_with(suffix));
                    if suffix.starts_with('_') {
                        let synced = position(at, &|step, _| step == Step::SyncFolder);
                        assert!(synced < moved, "before {suffix}");
                    }
                    at = moved;
                }
                position(at, &|step, name| step == Step::SyncFolder && name == "team/one");
            }
            None => {
                let moved = position(0, &|step, _| step == Step::MoveFolder);
                let arranged = steps.iter().rposition(|(step, _)| *step == Step::MoveFile).unwrap();
                let folders = steps[arranged..moved].iter().filter(|(step, _)| *step == Step::SyncFolder);
                let depth = backup.container.as_str().split('/').count();
                assert_eq!(
                    folders.count(),
                    depth + 1,
                    "the container, and all above it in the hidden folder"
                );
                position(moved, &|step, _| step == Step::SyncFolder);
                assert_eq!(steps.iter().filter(|(step, _)| *step == Step::MoveFolder).count(), 1);
            }
        }
    }
}

#[test]
fn many_small_files_are_made_durable_together() {
    let folder = store();
    let synced = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let counted = Arc::clone(&synced);
    let hook: Hook = Arc::new(move |step, _| {
        match step {
            Step::SyncFile => counted.0.fetch_add(1, Ordering::Relaxed),
            Step::SyncAll => counted.1.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        Ok(())
    });
    let (id, container) = (BackupId::parse("many").unwrap(), ObjectName::parse("m").unwrap());
    let staging = Staging::begin_with(folder.path(), &id, &container, "many", Some(hook)).unwrap();
    let object = |number| {
        let mut file = staging.create_file(FileName::Object(number)).unwrap();
        file.append(&number.to_le_bytes()).unwrap();
        file.finish().unwrap();
    };
    (1..=500).rev().for_each(object);
    // A long one is made durable by itself, by the thread that wrote it.
    let mut file = staging.create_file(FileName::Object(501)).unwrap();
    file.append(&[5; 1 << 20]).unwrap();
    file.finish().unwrap();
    for name in [FileName::Metadata, FileName::Digests] {
        staging.create_file(name).unwrap().finish().unwrap();
    }
    assert_eq!(staging.publish().unwrap().as_str(), "m/many_metadata");
    assert_eq!((synced.0.load(Ordering::Relaxed), synced.1.load(Ordering::Relaxed)), (33, 1));
    for number in 1..=500_u64 {
        let bytes = fs::read(folder.path().join(format!("m/many-{number:05}"))).unwrap();
        assert_eq!(bytes, number.to_le_bytes());
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

#[test]
fn the_hidden_folder_is_for_its_owner_and_no_lister_enters_it() {
    let folder = store();
    let above = folder.path().parent().unwrap();
    let backup = &ours()[0];
    let staging = backup.begin(folder.path()).unwrap();
    backup.write_files(&staging);
    let hidden = folder.path().join(".cinderfs-abcd1234-ours");
    assert_eq!(fs::metadata(&hidden).unwrap().permissions().mode() & 0o7777, 0o700);
    let names = tree(&hidden);
    assert!(names.len() > 5);
    assert!(names.keys().all(|path| !path.contains("volume_") && !path.contains("_metadata")), "{names:?}");
    // Even if something in it had the name of a document.
    fs::create_dir_all(hidden.join("tree/x")).unwrap();
    fs::write(hidden.join("tree/x/p_metadata"), "").unwrap();
    fs::create_dir(folder.path().join(".cinderfs")).unwrap();
    fs::write(folder.path().join(".cinderfs/p_metadata"), "").unwrap();
    fs::write(folder.path().join(".cinderfs-p_metadata"), "").unwrap();
    for root in [folder.path(), above] {
        let listing = PosixStore::open(root).unwrap().list("_metadata").unwrap();
        let names: Vec<_> = listing.objects.iter().map(|object| object.name.as_str()).collect();
        assert!(names.iter().all(|name| !name.contains("/tree/")), "{names:?}");
        for listed in [".cinderfs/p_metadata", ".cinderfs-p_metadata"] {
            assert!(names.iter().any(|name| name.ends_with(listed)), "{names:?}");
        }
    }
    drop(staging);
    assert!(!hidden.exists());
}

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
fn what_exists_is_refused_before_anything_is_written() {
    let folder = store();
    let root = folder.path();
    let touch = |path: &str| fs::write(root.join(path), "").unwrap();
    fs::create_dir_all(root.join("clash")).unwrap();
    fs::create_dir_all(root.join("old")).unwrap();
    let ours = "volume_v_20240102030405_backup_ours";
    for taken in [
        format!("{ours}-00001"),
        format!("{ours}_metadata"),
        format!("{ours}.idx"),
        ours.to_owned(),
        // The same backup with another time or volume.
        "volume_w_20240102030405_backup_ours-00007".into(),
        "volume_v_20230102030405_backup_ours_metadata".into(),
        // Its restore would count our files.
        "volume_metadata".into(),
    ] {
        touch(&format!("clash/{taken}"));
        let before = tree(root);
        let (id, container) = (BackupId::parse("ours").unwrap(), ObjectName::parse("clash").unwrap());
        let error = Staging::begin(root, &id, &container, ours).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{taken}: {error}");
        assert!(error.to_string().contains(&format!("{taken:?}")), "{error}");
        assert_eq!(tree(root), before);
        fs::remove_file(root.join("clash").join(taken)).unwrap();
    }
    // An old backup that its folder names.
    touch("old/backup_metadata");
    let (id, container) = (BackupId::parse("old").unwrap(), ObjectName::parse("old").unwrap());
    let error = Staging::begin(root, &id, &container, "volume_v_20240102030405_backup_old").unwrap_err();
    assert!(error.to_string().contains("backup old exists"), "{error}");
    // Others that look alike are none of ours.
    for fine in [
        "volume_v_20240102030405_backup_ours2-00001",
        "xvolume_v_20240102030405_backup_our_metadata",
        "_metadata",
    ] {
        touch(&format!("clash/{fine}"));
        let (id, container) = (BackupId::parse("ours").unwrap(), ObjectName::parse("clash").unwrap());
        drop(Staging::begin(root, &id, &container, "volume_v_20240102030406_backup_ours").unwrap());
    }
}

#[test]
fn names_and_links_do_not_lead_out() {
    let folder = store();
    let outside = tempfile::tempdir().unwrap();
    let root = folder.path();
    symlink(outside.path(), root.join("out")).unwrap();
    symlink("team", root.join("in")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    fs::write(root.join("file"), "").unwrap();
    let before = tree(root);
    for (container, prefix, kind) in [
        ("out", "p", ErrorKind::UnsafeName),
        ("out/new", "p", ErrorKind::UnsafeName),
        ("file", "p", ErrorKind::Usage),
        ("file/new", "p", ErrorKind::Usage),
        (".cinderfs-x", "p", ErrorKind::Usage),
        ("a/.cinderfs-x/b", "p", ErrorKind::Usage),
        (&["d"; 31].join("/"), "p", ErrorKind::Usage),
        ("c", "", ErrorKind::Usage),
        ("c", "a/b", ErrorKind::Usage),
        ("c", "..", ErrorKind::Usage),
        ("c", ".p", ErrorKind::Usage),
        ("c", "p\0", ErrorKind::Usage),
        ("c", &"p".repeat(224), ErrorKind::Usage),
    ] {
        let id = BackupId::parse("ours").unwrap();
        let error = Staging::begin(root, &id, &ObjectName::parse(container).unwrap(), prefix).unwrap_err();
        assert_eq!(error.kind(), kind, "{container} {prefix:?}: {error}");
        assert_eq!(tree(root), before);
    }
    // A link that stays inside is followed, as by the reader.
    let inside = Backup::new("abcd1234-ours", "in/one");
    inside.write(root, None).unwrap();
    inside.check_image(root);
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    for path in fs::read_dir(root.join("team/one")).unwrap().map(name) {
        if path.contains("abcd1234") {
            fs::remove_file(root.join("team/one").join(path)).unwrap();
        }
    }
    // Where a link leads nowhere, or out by the time of publishing, nothing is made.
    for (container, swap) in [("dangling", false), ("swapped/x", true)] {
        let backup = Backup::new("abcd1234-ours", container);
        let staging = backup.begin(root).unwrap();
        backup.write_files(&staging);
        if swap {
            symlink(outside.path(), root.join("swapped")).unwrap();
        }
        let error = staging.publish().unwrap_err();
        let kind = if swap { ErrorKind::UnsafeName } else { ErrorKind::Target };
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(hidden_folders(root), BTreeSet::new());
    }
    fs::remove_file(root.join("swapped")).unwrap();
    assert_eq!(tree(root), before);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn an_incomplete_backup_is_not_published() {
    let folder = store();
    let before = tree(folder.path());
    let backup = &ours()[0];
    let all = [FileName::Object(1), FileName::Object(2), FileName::Digests, FileName::Metadata];
    for (missing, words) in
        [(1, "object 2 was not written"), (2, "the digest file was"), (3, "the metadata document was")]
    {
        let staging = backup.begin(folder.path()).unwrap();
        let written = all.iter().chain([&FileName::Object(3)]).enumerate().filter(|(i, _)| *i != missing);
        written.for_each(|(_, name)| staging.create_file(*name).unwrap().finish().unwrap());
        let error = staging.publish().unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(tree(folder.path()), before);
    }
    let staging = backup.begin(folder.path()).unwrap();
    all.iter().for_each(|name| staging.create_file(*name).unwrap().finish().unwrap());
    let open = staging.create_file(FileName::Object(3)).unwrap();
    let error = staging.publish().unwrap_err();
    assert!(error.to_string().contains("1 files of the backup are still being written"), "{error}");
    drop(open);
    let staging = backup.begin(folder.path()).unwrap();
    all.iter().chain([&all[0]]).for_each(|name| staging.create_file(*name).unwrap().finish().unwrap());
    assert!(staging.publish().unwrap_err().to_string().contains("object 1 was written twice"));
    assert_eq!(tree(folder.path()), before);
}

/// As a pipeline does that finds at its end that an object did not get smaller.
#[test]
fn an_object_is_written_again_out_of_its_first_attempt() {
    let folder = store();
    let (id, container) = (BackupId::parse("again").unwrap(), ObjectName::parse("c").unwrap());
    let staging = Staging::begin(folder.path(), &id, &container, "again").unwrap();
    let mut first = staging.create_file(FileName::Object(1)).unwrap();
    first.append(b"abc").unwrap();
    first.append(b"def").unwrap();
    first.write_at(b"X", 8).unwrap();
    assert_eq!(first.len_bytes(), 9);
    let mut second = staging.create_file(FileName::Object(1)).unwrap();
    let mut buf = [1; 16];
    assert_eq!(first.read_at(&mut buf, 1).unwrap(), 8);
    assert_eq!(first.read_at(&mut buf[8..], 9).unwrap(), 0);
    drop(first);
    second.append(&buf[..8]).unwrap();
    second.finish().unwrap();
    staging.create_file(FileName::Digests).unwrap().finish().unwrap();
    staging.create_file(FileName::Metadata).unwrap().finish().unwrap();
    staging.publish().unwrap();
    assert_eq!(fs::read(folder.path().join("c/again-00001")).unwrap(), b"bcdef\0\0X");
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

#[test]
fn a_missing_store_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert_eq!(ours()[0].begin(&missing).unwrap_err().kind(), ErrorKind::StoreNotFound);
    assert_eq!(remove_leftovers(&missing).unwrap_err().kind(), ErrorKind::StoreNotFound);
}

#[test]
fn a_full_file_system_is_told_and_gets_its_room_back() {
    let small = SmallFileSystem::new(8 << 20, 40);
    let other = Backup::new("11111111-other", "team/one");
    other.write(small.root(), None).unwrap();
    let (before, room) = (tree(small.root()), small.free_bytes());
    for backup in ours() {
        let staging = backup.begin(small.root()).unwrap();
        let mut file = staging.create_file(FileName::Object(1)).unwrap();
        let error = (0..1000).find_map(|_| file.append(&[7; 65536]).err()).expect("8 MiB hold no 64 MiB");
        assert_eq!(error.kind(), ErrorKind::Target);
        assert!(error.to_string().contains("cannot write an object at byte"), "{error}");
        assert!(error.to_string().contains("the store's file system is full"), "{error}");
        drop(file);
        drop(staging);
        assert_eq!(tree(small.root()), before);
        // Out of files, wherever that happens: while they are written, or while their container is made.
        let mut refused = 0;
        for spare in 0..16 {
            let filler = tempfile::tempdir_in(small.root()).unwrap();
            let full = (0..1000).find(|i| fs::write(filler.path().join(i.to_string()), "").is_err());
            for i in 0..spare.min(full.unwrap()) {
                fs::remove_file(filler.path().join(i.to_string())).unwrap();
            }
            let written = backup.write(small.root(), None);
            filler.close().unwrap();
            match written {
                Ok(()) => {
                    assert_eq!(tree(small.root()), backup.added_to(&before));
                    backup.remove_from(small.root(), &before);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Target, "{error}");
                    assert!(error.to_string().contains("full"), "{error}");
                    refused += 1;
                }
            }
            assert_eq!(tree(small.root()), before, "{} {spare}", backup.container);
        }
        assert!((5..16).contains(&refused), "{refused}");
    }
    other.check_image(small.root());
    let deadline = Instant::now() + Duration::from_secs(10);
    while small.free_bytes() + (64 << 10) < room {
        assert!(Instant::now() < deadline, "{} of {room} bytes", small.free_bytes());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_store_that_may_not_be_written_is_told() {
    let small = SmallFileSystem::new(8 << 20, 64);
    Backup::new("11111111-other", "team/one").write(small.root(), None).unwrap();
    let before = tree(small.root());
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(small.root()));
    for backup in ours() {
        let error = backup.begin(small.root()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Target);
        assert!(error.to_string().contains("the store is read-only"), "{error}");
    }
    run(Command::new("mount").args(["-o", "remount,rw"]).arg(small.root()));
    // What even root may not change.
    let immutable =
        |on: bool, path: &Path| run(Command::new("chattr").arg(if on { "+i" } else { "-i" }).arg(path));
    immutable(true, small.root());
    let error = ours()[0].begin(small.root()).unwrap_err();
    immutable(false, small.root());
    assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
    assert!(error.to_string().contains("may not write"), "{error}");
    let container = small.root().join("team/one");
    immutable(true, &container);
    let written = ours()[0].write(small.root(), None);
    immutable(false, &container);
    assert_eq!(written.unwrap_err().kind(), ErrorKind::AccessDenied);
    assert_eq!(tree(small.root()), before);
}

#[test]
fn a_container_on_another_file_system_is_refused_at_once() {
    let folder = store();
    let mounted = folder.path().join("elsewhere");
    fs::create_dir(&mounted).unwrap();
    let small = SmallFileSystem::at(8 << 20, 64, &mounted);
    for container in ["elsewhere", "elsewhere/a/b"] {
        let error = Backup::new("abcd1234-ours", container).begin(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Target);
        assert!(error.to_string().contains("lies on another file system"), "{error}");
    }
    assert_eq!(hidden_folders(folder.path()), BTreeSet::new());
    drop(small);
}

#[test]
fn a_quota_is_told() {
    let folder = store();
    let before = tree(folder.path());
    let hook: Hook = Arc::new(|step, name| match (step, name) {
        (Step::Write, "-00002") => Err(errno(122)), // EDQUOT
        _ => Ok(()),
    });
    let error = ours()[0].write(folder.path(), Some(hook)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(error.to_string().contains("cannot write an object"), "{error}");
    assert!(error.to_string().contains("quota on the store's file system is used up"), "{error}");
    assert_eq!(tree(folder.path()), before);
}
