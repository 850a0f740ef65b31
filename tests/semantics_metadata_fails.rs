//! Does a backup whose metadata the store fails to give look like one that is gone? On files that really fail.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/fault_matrix/sick.rs"]
mod sick;
#[path = "common/store.rs"]
mod store;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use mount::{Mount, PATIENCE, Setup, errno, names, open_folder, within};
use sick::{Fault, SickFolder};
use store::{BLOCK, Backup, noise};

const FULL: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const CHILD: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const OTHER: &str = "aaaaaaaa-0000-4000-8000-000000000003";

/// A full backup, an incremental on it, and one of another volume.
fn store_in(folder: &Path) -> std::path::PathBuf {
    let store = folder.join("store");
    let image = noise(1, 2 * BLOCK);
    Backup::new(FULL, "v", image.clone()).put(&store);
    #[expect(clippy::single_range_in_vec_init, reason = "one object")]
    Backup::new(CHILD, "v", image.clone()).on(FULL, &[0..BLOCK]).at("2024-03-02 01:01:07+00:00").put(&store);
    Backup::new(OTHER, "w", image).put(&store);
    store
}

/// Shows the folder of the full backup by a file system that can be told to fail.
fn sick_full(folder: &Path, store: &Path) -> SickFolder {
    let (behind, covered) = (folder.join("behind"), store.join(FULL));
    fs::rename(&covered, &behind).unwrap();
    fs::create_dir(&covered).unwrap();
    SickFolder::cover(&behind, &covered)
}

fn is_whole(mount: &Mount, id: &str) -> bool {
    fs::read(mount.image(id)).is_ok_and(|bytes| bytes == noise(1, 2 * BLOCK))
}

// > When the store fails while an image is opened, or while its metadata or that of a backup beneath it is read,
// > `volume.img` is listed and using it says EIO (EACCES where it may not be read), because the backup may be whole.
#[test]
fn a_backup_whose_metadata_fails_is_not_gone() {
    for fault in [Fault::Unopenable, Fault::Unreadable, Fault::Stale] {
        let folder = open_folder();
        let store = store_in(folder.path());
        let sick = sick_full(folder.path(), &store);
        sick.begin("_metadata", fault);
        // At the first scan.
        let mount = Mount::new(&store);
        for id in [FULL, CHILD] {
            assert_eq!(
                names(&mount.path(&format!("backups/{id}"))),
                ["metadata.json", "volume.img"],
                "{fault:?}"
            );
            assert_eq!(errno(File::open(mount.image(id))), libc::EIO, "{fault:?}");
            let document = mount.document(id);
            assert_eq!(document["status"], "error", "{fault:?}");
            assert!(document["fail_reason"].as_str().unwrap().contains(FULL), "{fault:?}: {document}");
        }
        assert!(is_whole(&mount, OTHER));
        // And when it is given again, all is well.
        sick.end();
        within(PATIENCE, "the backups", || is_whole(&mount, FULL) && is_whole(&mount, CHILD));
        // A failure at a later scan costs nothing that is known.
        sick.begin("_metadata", fault);
        let new = Backup::new("aaaaaaaa-0000-4000-8000-000000000004", "w", noise(1, 2 * BLOCK));
        new.put(&store);
        within(PATIENCE, "a later scan", || is_whole(&mount, &new.id));
        assert!(is_whole(&mount, FULL) && is_whole(&mount, CHILD), "{fault:?}");
        drop(mount);
        drop(sick);
    }
}

/// A document that is there and may not be read is no backup that is gone, either.
#[test]
fn a_backup_whose_metadata_may_not_be_read_says_so() {
    let folder = open_folder();
    let store = store_in(folder.path());
    assert!(Command::new("chmod").args(["-R", "a+rX"]).arg(&store).status().unwrap().success());
    let metadata = Backup::new(FULL, "v", Vec::new()).file(&store, "_metadata");
    fs::set_permissions(metadata, fs::Permissions::from_mode(0o600)).unwrap();
    let mount = Setup::default().by_nobody().options("allow_other").mount(&store);
    assert_eq!(errno(File::open(mount.image(FULL))), libc::EACCES);
    assert_eq!(errno(File::open(mount.image(CHILD))), libc::EACCES);
    assert!(is_whole(&mount, OTHER));
}

/// What is torn, and what is gone, has no image.
#[test]
fn a_backup_whose_metadata_is_damaged_or_gone_has_no_image() {
    let folder = open_folder();
    let store = store_in(folder.path());
    let metadata = Backup::new(FULL, "v", Vec::new()).file(&store, "_metadata");
    fs::write(&metadata, "{").unwrap();
    let mount = Mount::new(&store);
    for id in [FULL, CHILD] {
        assert_eq!(errno(File::open(mount.image(id))), libc::ENOENT);
    }
    fs::remove_file(metadata).unwrap();
    within(PATIENCE, "the backup goes", || !mount.path(&format!("backups/{FULL}")).exists());
    assert_eq!(errno(File::open(mount.image(CHILD))), libc::ENOENT);
}
