//! Is a backup published whole, durably, and only where nothing is in its way?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[allow(dead_code, reason = "this uses a part of it")]
#[path = "common/staging_kit.rs"]
mod staging_kit;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use cinderfs::ErrorKind;
use cinderfs::store::Store;
use cinderfs::store::posix::PosixStore;
use cinderfs::types::{BackupId, ObjectName};
use cinderfs::writer::staging::{FileName, Hook, Staging, Step};

use staging_kit::{Backup, hidden_folders, ours, store, tree};

/// What a power cut would do cannot be tried here; the order of the calls can be seen.
// > A backup's `_metadata` gets its name last, when all its other files have theirs and are durable.
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

// > Nothing of a backup that is being written is in sight: its files lie in the store's hidden folder `.cinderfs-<backup id>`, which no lister enters.
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

// > No file that is there is ever replaced, and an id or prefix that exists is refused.
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
