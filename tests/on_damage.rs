//! What becomes of lost blocks where zeros are asked for in their place: in mounts, in restores, in the loss map.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/store.rs"]
mod store;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::error::ErrorKind;
use cinderfs::frontend::restore::{OnDamage, RestoreOptions, Target, restore};
use cinderfs::image;
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::posix::PosixStore;
use serde_json::json;

use mount::*;
use store::*;

const EIO: i32 = 5;

/// Eight blocks, of which block 3 is damaged.
fn damaged(store: &Path) -> Backup {
    let backup = Backup::new("b", "v", noise(7, 8 * BLOCK));
    backup.put(store);
    flip(&backup.file(store, "-00001"), 3 * BLOCK + 9);
    backup
}

fn with_zeros(image: &[u8]) -> Vec<u8> {
    let mut expected = image.to_vec();
    expected[3 * BLOCK..4 * BLOCK].fill(0);
    expected
}

fn attribute(path: &Path) -> String {
    let mut value = [0; 100];
    let len = rustix::fs::getxattr(path, "user.cinder.on_damage", &mut value[..]).unwrap();
    String::from_utf8(value[..len].to_vec()).unwrap()
}

// > With `on_damage=zero` a block that is lost reads as zeros, and is logged and counted as one that fails is.
//
// > `user.cinder.on_damage`, and `on_damage` in the `damage` of `metadata.json`, are `zero` with
// > `on_damage=zero` and `eio` else.
#[test]
fn a_lost_block_reads_as_zeros_and_is_told_of() {
    let folder = open_folder();
    let backup = damaged(folder.path());
    let mount = Setup::default().options("on_damage=zero").mount(folder.path());
    assert!(fs::read(mount.image("b")).unwrap() == with_zeros(&backup.image));
    let told = json!({ "blocks": 1, "healed_blocks": 0, "on_damage": "zero",
        "ranges": [{ "length": BLOCK, "offset": 3 * BLOCK }] });
    assert_eq!(mount.document("b")["damage"], told);
    assert_eq!(attribute(&mount.image("b")), "zero");
    let log = mount.log();
    assert_eq!(log.lines().filter(|line| line.contains("lost: ")).count(), 1, "{log}");
    assert!(log.contains("zeros stand in for lost bytes"), "{log}");

    let plain = Mount::new(folder.path());
    assert_eq!(errno(fs::read(plain.image("b"))), EIO);
    assert_eq!(plain.document("b")["damage"]["on_damage"], "eio");
    assert_eq!(attribute(&plain.image("b")), "eio");
}

// > Zeros in the place of lost bytes stay in the page cache until the image is opened again.
#[test]
fn a_repaired_block_takes_the_place_of_zeros_when_the_image_is_opened_again() {
    let folder = open_folder();
    let backup = damaged(folder.path());
    let mount = Setup::default().options("on_damage=zero").mount(folder.path());
    let open = File::open(mount.image("b")).unwrap();
    let mut page = [1; 4096];
    let mut read = |file: &File| {
        file.read_exact_at(&mut page, 3 * BLOCK as u64).unwrap();
        page == backup.image[3 * BLOCK..][..4096]
    };
    assert!(!read(&open));
    flip(&backup.file(folder.path(), "-00001"), 3 * BLOCK + 9);
    // Damage is believed for a moment; a look in between drops the pages again.
    within(PATIENCE, "the repaired block", || read(&File::open(mount.image("b")).unwrap()));
    assert!(read(&open), "the pages are the file's, not the opening's");
    // With nothing lost, opening keeps what was read.
    let mount_reads = || mount.log().matches(": read ").count();
    let before = mount_reads();
    assert!(read(&File::open(mount.image("b")).unwrap()));
    assert_eq!(mount_reads(), before);
}

// > What the store fails to deliver is an error also then, and so is what cannot be found while the backup's own
// > metadata is gone as well.
#[test]
fn a_failing_store_is_never_zeros() {
    let folder = open_folder();
    let backup = Backup::new("b", "v", noise(7, 8 * BLOCK));
    backup.put(folder.path());
    // A store that fails.
    let store = FaultStore::new(PosixStore::open(folder.path()).unwrap(), []);
    let store = Arc::new(store);
    let catalog = Catalog::open(store.clone(), CatalogOptions::default()).unwrap();
    let image = catalog.image(catalog.snapshot().get("b").unwrap()).unwrap();
    let mut bytes = vec![1; BLOCK];
    let mut read = |offset| image.read_as(image::OnDamage::Zeros, &mut bytes, offset);
    // The digests first: once read, they are held in memory.
    store.set_script([Rule::new(Operation::Read, Fault::Error(ErrorKind::StoreIo)).names("*_sha256file")]);
    assert_eq!(read(4 * BLOCK as u64).unwrap_err().kind(), ErrorKind::StoreIo);
    store.set_script([Rule::new(Operation::Read, Fault::Error(ErrorKind::StoreIo)).names("*-00001")]);
    assert_eq!(read(0).unwrap_err().kind(), ErrorKind::StoreIo);
    store.set_script([]);
    assert_eq!(read(4 * BLOCK as u64).unwrap(), BLOCK);
    assert!(!image.take_stand_ins());

    // A store that is gone: nothing is found in what is left in its place.
    let object = backup.file(folder.path(), "-00001");
    let mount = Setup::default().options("on_damage=zero").mount(folder.path());
    let file = File::open(mount.image("b")).unwrap();
    fs::rename(folder.path().join("b"), folder.path().join("away")).unwrap();
    let mut page = [1; 4096];
    assert_eq!(errno(file.read_exact_at(&mut page, 0)), EIO);
    // An object that is missing beside its metadata is lost.
    fs::rename(folder.path().join("away"), folder.path().join("b")).unwrap();
    fs::remove_file(object).unwrap();
    within(PATIENCE, "zeros", || file.read_exact_at(&mut page, 0).is_ok());
    assert_eq!(page, [0; 4096]);
}

fn cinderfs(words: &[&str], paths: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    run(command
        .args(words)
        .args(paths)
        .env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache")))
}

// > `restore --on-damage zero` writes zeros for what is lost and ends with 3, and ends with an error where the
// > store fails; no zeros replace what the store may still hold.
#[test]
fn a_restore_replaces_what_is_lost_and_nothing_else() {
    let folder = open_folder();
    let (store, target) = (folder.path().join("store"), folder.path().join("target"));
    let backup = damaged(&store);
    let restored = cinderfs(&["restore", "--on-damage", "zero"], &[&store, "b".as_ref(), &target]);
    assert_eq!(restored.status.code(), Some(3), "{}", stderr(&restored));
    assert!(fs::read(&target).unwrap() == with_zeros(&backup.image));
    fs::remove_file(&target).unwrap();

    let failing = Rule::new(Operation::Read, Fault::Error(ErrorKind::StoreIo))
        .names("*-00001")
        .bytes(6 * BLOCK as u64..7 * BLOCK as u64);
    let failing = FaultStore::new(PosixStore::open(&store).unwrap(), [failing]);
    let catalog = Catalog::open(Arc::new(failing), CatalogOptions::default()).unwrap();
    let image = catalog.image(catalog.snapshot().get("b").unwrap()).unwrap();
    let cancel = AtomicBool::new(false);
    let options = RestoreOptions { force: false, on_damage: OnDamage::Zero, threads: 2, cancel: &cancel };
    let error = restore(&image, Target::Path(target.clone()), &options, &|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreIo, "{error}");
    assert!(!target.exists());
}

// > `restore --loss-map` writes a mapfile that GNU ddrescue reads, covering the whole volume, which has its name
// > only when it is complete; one inside the store is refused.
#[test]
fn the_loss_map_is_read_by_ddrescuelog() {
    let folder = open_folder();
    let (store, target, map) =
        (folder.path().join("store"), folder.path().join("img"), folder.path().join("map"));
    let backup = damaged(&store);
    let words = ["restore", "--on-damage", "zero", "--loss-map"];
    let refused = cinderfs(&words, &[&store.join("map"), &store, "b".as_ref(), &target]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(!store.join("map").exists() && !target.exists());

    let restored = cinderfs(&words, &[&map, &store, "b".as_ref(), &target]);
    assert_eq!(restored.status.code(), Some(3), "{}", stderr(&restored));
    assert_eq!(names(folder.path()), ["img", "map", "store"], "nothing is left beside the map");
    let lost = ddrescuelog(&["-b", "512", "-l-"], &map);
    let sectors: Vec<usize> = lost.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(sectors, (3 * BLOCK / 512..4 * BLOCK / 512).collect::<Vec<_>>());
    let good = ddrescuelog(&["-b", "512", "-l+"], &map).lines().count();
    assert_eq!(good + sectors.len(), backup.image.len() / 512);
    let status = ddrescuelog(&["-t"], &map);
    assert!(status.contains("finished"), "{status}");
    // ddrescue itself goes on with it, from another copy of the volume, and fetches what was lost.
    let copy = folder.path().join("copy");
    fs::write(&copy, &backup.image).unwrap();
    run(Command::new("ddrescue").args(["-q", "-r1"]).arg("--try-again").args([&copy, &target, &map]));
    assert!(fs::read(&target).unwrap() == backup.image, "ddrescue did not fill in what was lost");
}

fn ddrescuelog(words: &[&str], map: &Path) -> String {
    let output = run(Command::new("ddrescuelog").args(words).arg(map));
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).to_owned()
}
