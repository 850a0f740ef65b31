//! Does the program read genuine backups from real Swift, S3 and an emulator of Google's, by commands and through a mount?
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

#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/servers.rs"]
mod servers;

use std::process::Command;

use cinderfs::writer::records::Record;
use mount::Setup;
use servers::{Bucket, Kind};

const ALL: [Kind; 4] = [Kind::S3, Kind::Swift, Kind::Keystone, Kind::Gcs];

/// What a command prints, which ends well.
#[track_caller]
fn run(bucket: &Bucket, words: &[&str]) -> String {
    let (_, environment) = bucket.word();
    let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(words)
        .envs(environment)
        .env("CINDERFS_CACHE_DIR", "/nonexistent/cache")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{:?} {words:?}: {}", bucket.kind, text(&output.stderr));
    text(&output.stdout)
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn genuine_backups_are_listed_restored_and_mounted() {
    for kind in ALL {
        let bucket = Bucket::new(kind);
        bucket.upload(&genuine::root().join("ext4"), "");
        let (word, environment) = bucket.word();
        let listed = run(&bucket, &["list", &word, "-f", "value", "-c", "ID"]);
        let mount = Setup::default().environment(&environment).mount(word.as_ref());
        let folder = tempfile::tempdir().unwrap();
        for backup in genuine::backups_of("ext4") {
            assert!(listed.contains(&backup.id), "{kind:?}: {listed}");
            let target = folder.path().join(&backup.id);
            run(&bucket, &["restore", "-q", &word, &backup.id, target.to_str().unwrap()]);
            backup.check(&format!("restored from {kind:?}"), &std::fs::read(&target).unwrap());
            backup.check(&format!("mounted from {kind:?}"), &std::fs::read(mount.image(&backup.id)).unwrap());
        }
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn backups_are_made_consolidated_and_taken_away() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("volume");
    let mut plain: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7 * 13 % 251) as u8).collect();
    for kind in ALL {
        let bucket = Bucket::new(kind);
        let (word, _) = bucket.word();
        let create = |plain: &[u8], words: &[&str]| {
            std::fs::write(&source, plain).unwrap();
            let all =
                [&["create", "-q", "--object-size", "1M", &word, source.to_str().unwrap()], words].concat();
            run(&bucket, &all).trim().to_owned()
        };
        let restored = |id: &str| {
            let target = folder.path().join(id);
            run(&bucket, &["restore", "-q", "--force", &word, id, target.to_str().unwrap()]);
            std::fs::read(target).unwrap()
        };
        let full = create(&plain, &[]);
        assert!(restored(&full) == plain, "{kind:?}");
        plain[1_500_000..1_500_100].fill(9);
        let increment = create(&plain, &["--incremental"]);
        assert!(restored(&increment) == plain, "{kind:?}");
        let record = run(&bucket, &["record", "export", &word, &full, "-f", "value", "-c", "backup_url"]);
        let record = Record::decode(record.trim()).unwrap();
        assert_eq!(record.fields()["container"], bucket.name, "{kind:?}");
        let whole = run(&bucket, &["consolidate", "-q", &word, &increment]).trim().to_owned();
        run(&bucket, &["delete", "-q", "--cascade", &word, &full]);
        assert!(restored(&whole) == plain, "{kind:?}");
        run(&bucket, &["verify", "-q", &word]);
        assert_eq!(run(&bucket, &["list", &word, "-f", "value", "-c", "ID"]).trim(), whole);
        run(&bucket, &["delete", "-q", &word, &whole]);
        run(&bucket, &["delete", "-q", &word, "--leftovers"]);
        let left = bucket.store().into_objects().unwrap().list_below("", &|| false).unwrap();
        assert!(left.is_empty(), "{kind:?}: {left:?}");
    }
}
