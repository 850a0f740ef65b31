//! Is every genuine backup its volume, uploaded to real Swift, S3 and an emulator of Google's as Cinder's drivers name it, and mounted?
//!
//! Run by `scripts/services/test.sh`, which starts the servers.

#![cfg(all(feature = "remote", feature = "fuse"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]
#![allow(dead_code, unused_imports, unused_macros, reason = "a part of each kit is used")]

#[path = "common/as_cinder.rs"]
mod as_cinder;
#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/servers.rs"]
mod servers;

use std::fs;
use std::sync::Mutex;

use as_cinder::upload;
use conformance::Bench as _;
use genuine::Genuine;
use mount::{Mount, Setup, errno, names};
use servers::{Bucket, Kind};

/// Objects that Cinder did not make, beside its own and among them.
const OTHERS: [&str; 7] = [
    "index.html",
    "photos/2024/cat.jpg",
    "volume_1/20240101000000/index",
    "volume_1/20240101000000/.hidden/_metadata",
    "foreign_metadata",
    "foreign_sha256file",
    "-00001",
];

fn mounted(bucket: &Bucket, word: &str) -> Mount {
    Setup::default().environment(&bucket.word().1).mount(word.as_ref())
}

/// Fails unless exactly these are usable, and each is its volume.
#[track_caller]
fn check(mount: &Mount, backups: &[Genuine], how: &str) {
    let mut others = names(&mount.path("backups"));
    others.retain(|name| !backups.iter().any(|backup| backup.id == *name));
    others.retain(|name| mount.image(name).exists());
    assert_eq!(others, [""; 0], "{how}: these are none");
    // Servers take their time for each, and have time for several.
    let rest = Mutex::new(backups.iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(backup) = rest.lock().unwrap().next() else { return };
                    backup.check(how, &fs::read(mount.image(&backup.id)).unwrap());
                    let document = mount.document(&backup.id);
                    assert_eq!(document["object_prefix"], as_cinder::prefix(backup), "{backup}");
                }
            });
        }
    });
}

fn every_genuine_backup_is_its_volume(kind: Kind) {
    let bucket = Bucket::new(kind);
    let backups = genuine::backups();
    upload(&bucket, &backups);
    OTHERS.iter().for_each(|name| bucket.put(name, b"of somebody else"));
    check(&mounted(&bucket, &bucket.word().0), &backups, &format!("mounted from {kind:?}"));
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn every_genuine_backup_in_s3_is_its_volume() {
    every_genuine_backup_is_its_volume(Kind::S3);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn every_genuine_backup_in_swift_is_its_volume() {
    every_genuine_backup_is_its_volume(Kind::Swift);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn every_genuine_backup_in_googles_storage_is_its_volume() {
    every_genuine_backup_is_its_volume(Kind::Gcs);
}
