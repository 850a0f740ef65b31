//! How a mount follows its store: backups that come, go and change, and a store that cannot be listed.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/store.rs"]
mod store;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use mount::*;
use store::*;

/// What is promised.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(3);

fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

// > A backup that appears in the store, or vanishes from it, appears in or vanishes from the mount within 3
// > seconds, without a remount.
#[test]
fn backups_come_and_go_without_a_remount() {
    let folder = open_folder();
    let first = Backup::new("first", "v", noise(1, BLOCK)).named("db");
    first.put(folder.path());
    let mount = Mount::new(folder.path());
    assert_eq!(names(&mount.path("backups")), ["first"]);
    let second = Backup { id: "second".into(), ..first.clone() }.at("2024-03-02 01:01:07+00:00");
    second.put_unfinished(folder.path());
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(names(&mount.path("backups")), ["first"], "it is in progress");
    second.put(folder.path());
    within(FOLLOWS_WITHIN, "the new backup", || names(&mount.path("backups")) == ["first", "second"]);
    within(FOLLOWS_WITHIN, "latest", || target(&mount.path("names/db/latest")) == "../../backups/second");
    assert!(fs::read(mount.image("second")).unwrap() == second.image);
    // One that is never listed is found by its name alone, and another volume's folder and name come with it.
    let third = Backup { volume: "w".into(), ..Backup::new("third", "w", noise(2, BLOCK)).named("web") };
    assert_eq!(errno(fs::metadata(mount.image("third"))), libc::ENOENT);
    third.put(folder.path());
    within(FOLLOWS_WITHIN, "the new image", || fs::metadata(mount.image("third")).is_ok());
    within(FOLLOWS_WITHIN, "the new name", || mount.path("names/web/latest/volume.img").exists());
    second.remove(folder.path());
    within(FOLLOWS_WITHIN, "the deletion", || !names(&mount.path("backups")).contains(&"second".to_owned()));
    within(FOLLOWS_WITHIN, "the deleted image", || fs::metadata(mount.image("second")).is_err());
    within(FOLLOWS_WITHIN, "latest is the older one again", || {
        fs::read_link(mount.path("volumes/v/latest"))
            .is_ok_and(|link| link == Path::new("../../backups/first"))
    });
    third.remove(folder.path());
    first.remove(folder.path());
    within(FOLLOWS_WITHIN, "an empty store", || {
        ["backups", "volumes", "names"].iter().all(|path| names(&mount.path(path)).is_empty())
    });
}

// > What was opened of a backup is closed when the store has it no more and nobody reads it, within 10 seconds while
// > somebody looks at the mount and within 2 minutes else, so that its space becomes free.
#[test]
fn a_deleted_backup_that_was_read_gives_its_space_back() {
    let folder = open_folder();
    let backups = [("kept", 1), ("gone", 2)].map(|(id, seed)| Backup::new(id, id, noise(seed, 40 * BLOCK)));
    for backup in &backups {
        backup.put(folder.path());
    }
    let mount = Mount::new(folder.path());
    let held = || {
        let files = fs::read_dir(format!("/proc/{}/fd", mount.pid().as_raw_nonzero())).unwrap();
        let files = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
        let mut names: Vec<_> = files.map(|file| file.to_str().unwrap().to_owned()).collect();
        names.retain(|name| name.contains("_backup_"));
        names.sort();
        names
    };
    for backup in &backups {
        assert!(fs::read(mount.image(&backup.id)).unwrap() == backup.image);
    }
    let before = held();
    assert_eq!(before.len(), 4, "of each its object and its digests: {before:?}");
    backups[1].remove(folder.path());
    within(PATIENCE, "the closing of what was deleted", || {
        names(&mount.path("backups")) == ["kept"] && held().iter().all(|file| !file.contains("_backup_gone"))
    });
    assert_eq!(held().len(), 2, "what is there stays open");
}

// > Any number of backups can be looked at and read, however few files the daemon may open.
#[test]
fn a_store_of_more_backups_than_files_may_be_open_is_read() {
    let folder = open_folder();
    let backup =
        |n: u32| Backup::new(&format!("b{n:04}"), &format!("v{n}"), n.to_le_bytes().repeat(256)).block(512);
    for n in 0..1300 {
        backup(n).put(folder.path());
    }
    let mount = Setup::default().files_max(1024).mount(folder.path());
    for _ in 0..2 {
        for name in names(&mount.path("backups")) {
            assert_eq!(fs::metadata(mount.image(&name)).unwrap().len(), 1024, "{name}");
        }
    }
    for n in 0..1300 {
        let backup = backup(n);
        assert!(fs::read(mount.image(&backup.id)).unwrap() == backup.image, "{n}");
    }
}

// > Names and attributes that were found are believed for up to 1 second; a name that was missing is looked
// > up anew each time.
#[test]
fn what_was_missing_is_looked_up_anew_and_what_was_found_is_believed_for_a_second() {
    let folder = open_folder();
    let backup = Backup::new("b", "v", noise(1, BLOCK));
    backup.put(folder.path());
    let mount = Mount::new(folder.path());
    let late = Backup { id: "late".into(), ..backup.clone() };
    for _ in 0..5 {
        assert_eq!(errno(fs::metadata(mount.image("late"))), libc::ENOENT);
    }
    late.put(folder.path());
    // No more than the interval between scans: the kernel remembers no absence.
    within(Duration::from_secs(2), "the name that was missing", || fs::metadata(mount.image("late")).is_ok());
    // Removed at once, it may be believed for its second, and no longer.
    fs::metadata(mount.image("late")).unwrap();
    late.remove(folder.path());
    within(FOLLOWS_WITHIN, "the name that was found", || fs::metadata(mount.image("late")).is_err());
}

// > A backup that is replaced under its id is a new inode, so no page of the old one is ever served as the
// > new one's.
//
// > A link's inode changes with its target.
#[test]
fn a_replaced_backup_is_another_file() {
    let folder = open_folder();
    let (old, new) = (noise(1, 6 * BLOCK), noise(2, 6 * BLOCK));
    Backup::new("b", "v", old.clone()).put(folder.path());
    Backup::new("c", "v", old.clone()).at("2023-03-01 01:01:07+00:00").put(folder.path());
    let mount = Mount::new(folder.path());
    let (image, latest) = (mount.image("b"), mount.path("volumes/v/latest"));
    assert!(fs::read(&image).unwrap() == old);
    let (image_ino, latest_ino) = (ino(&image), ino(&latest));
    for content in [&new, &old, &new] {
        let before = ino(&image);
        // Files of one length, written in place within one second: the worst case for caches.
        Backup::new("b", "v", content.clone()).put(folder.path());
        within(FOLLOWS_WITHIN, "the new inode", || {
            fs::metadata(&image).is_ok_and(|stat| stat.ino() != before)
        });
        assert!(fs::read(&image).unwrap() == *content, "pages of the old content");
    }
    assert_ne!(ino(&image), image_ino);
    assert_eq!(ino(&latest), latest_ino, "its target is the same");
    Backup::new("d", "v", old).at("2025-03-01 01:01:07+00:00").put(folder.path());
    within(FOLLOWS_WITHIN, "the new target", || target(&latest) == "../../backups/d");
    assert_ne!(ino(&latest), latest_ino);
}

// > When the store cannot be listed, listing `/backups`, `/volumes`, `/names` and a volume's folder fails
// > with EIO, and names that were known still resolve.
#[test]
fn a_store_that_cannot_be_listed_is_not_an_empty_one() {
    let folder = open_folder();
    let store = folder.path().join("store");
    let image = noise(1, 4 * BLOCK);
    Backup::new("b", "v", image.clone()).named("db").put(&store);
    let mount = Mount::new(&store);
    let open = File::open(mount.image("b")).unwrap();
    assert!(fs::read(mount.image("b")).unwrap() == image);
    let listed = ["backups", "volumes", "names", "volumes/v"];
    for path in listed {
        assert!(!names(&mount.path(path)).is_empty());
    }
    // The daemon holds the store's folder; once that is deleted, reading it fails.
    fs::remove_dir_all(&store).unwrap();
    for path in listed {
        within(FOLLOWS_WITHIN, "the failure", || fs::read_dir(mount.path(path)).is_err());
        assert_eq!(errno(fs::read_dir(mount.path(path))), libc::EIO, "{path}");
    }
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(names(mount.root()), ["backups", "names", "volumes"], "these do not come from the store");
    assert!(fs::symlink_metadata(mount.path("backups/b")).is_ok());
    assert_eq!(target(&mount.path("names/db")), "../volumes/v");
    assert_eq!(target(&mount.path("volumes/v/2024-03-01T01:01:07Z")), "../../backups/b");
    let mut bytes = Vec::new();
    (&open).read_to_end(&mut bytes).unwrap();
    assert!(bytes == image, "a running reader goes on");
    let told = mount.log().lines().filter(|line| line.contains("cannot list the store")).count();
    assert_eq!(told, 1, "{}", mount.log());
}
