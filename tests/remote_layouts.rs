//! Are backups in real Swift, S3 and an emulator of Google's read whose objects are in pieces, lie in several containers, or are gone in part?
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
use std::process::Command;

use as_cinder::{Upload, upload, uploads};
use conformance::{Bench as _, listed};
use genuine::Genuine;
use mount::{Mount, Setup, errno, names};
use servers::{Bucket, Kind, encoded};

fn mounted(bucket: &Bucket, word: &str) -> Mount {
    Setup::default().environment(&bucket.word().1).mount(word.as_ref())
}

#[track_caller]
fn run(bucket: &Bucket, words: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.args(words).envs(bucket.word().1).env("CINDERFS_CACHE_DIR", "/nonexistent/cache");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Fails unless these are their volumes, through a mount and in the eyes of `verify`.
fn check(bucket: &Bucket, backups: &[Genuine], how: &str) {
    let (word, _) = bucket.word();
    let mount = mounted(bucket, &word);
    for backup in backups {
        backup.check(how, &fs::read(mount.image(&backup.id)).unwrap());
    }
    run(bucket, &["verify", "-q", &word]);
}

/// The three kinds of objects, put in by `put`: data, digests and metadata.
fn put_in_pieces(backups: &[Genuine], mut put: impl FnMut(&str, &[&[u8]])) {
    let folder = tempfile::tempdir().unwrap();
    for upload in backups.iter().flat_map(|backup| uploads(backup, folder.path())) {
        let bytes = fs::read(&upload.file).unwrap();
        let pieces: Vec<_> = bytes.chunks(bytes.len() / 3 + 1).collect();
        put(&upload.name, &pieces);
    }
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn static_and_dynamic_large_objects_of_swift() {
    let segments = Bucket::new(Kind::Swift);
    let bucket = Bucket::new(Kind::Swift);
    let backups = genuine::backups_of("zlib-chain");
    put_in_pieces(&backups, |name, pieces| {
        let one = |(at, piece): (usize, &&[u8])| {
            let segment = format!("{name}/{at}");
            segments.put(&segment, piece);
            serde_json::json!({"path": format!("/{}/{segment}", segments.name), "size_bytes": piece.len()})
        };
        let manifest: Vec<_> = pieces.iter().enumerate().map(one).collect();
        let url = format!("{}?multipart-manifest=put", bucket.url(name));
        bucket.curl(&["-X", "PUT", &url], Some(serde_json::Value::from(manifest).to_string().as_bytes()));
    });
    check(&bucket, &backups, "static large objects");

    // Their listing says that they are empty.
    let bucket = Bucket::new(Kind::Swift);
    put_in_pieces(&backups, |name, _| {
        let manifest = format!("X-Object-Manifest: {}/{}", segments.name, encoded(&format!("{name}/")));
        bucket.curl(&["-X", "PUT", "-H", &manifest, &bucket.url(name)], Some(b""));
    });
    check(&bucket, &backups, "dynamic large objects");
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn objects_of_s3_that_came_in_parts() {
    let bucket = Bucket::new(Kind::S3);
    let backups = genuine::backups_of("texts");
    // A part that is not the last has 5 MiB, which no genuine object here has.
    put_in_pieces(&backups, |name, pieces| bucket.put_in_parts(name, &[&pieces.concat()]));
    check(&bucket, &backups, "uploads of one part");

    let bucket = Bucket::new(Kind::S3);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let plain: Vec<u8> = (0..13_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
    fs::write(path("volume"), &plain).unwrap();
    let (word, _) = bucket.word();
    let create = ["create", "-q", "--object-size", "13M", "--compression", "none", &word, &path("volume")];
    let id = run(&bucket, &create).trim().to_owned();
    let object = listed(&*bucket.store(), "-00001").remove(0);
    bucket.put_in_parts(&object, &plain.chunks(5 << 20).collect::<Vec<_>>());
    let mount = mounted(&bucket, &word);
    assert!(fs::read(mount.image(&id)).unwrap() == plain);
    run(&bucket, &["verify", "-q", &word]);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn objects_of_googles_storage_that_were_composed() {
    let bucket = Bucket::new(Kind::Gcs);
    let backups = genuine::backups_of("zstd-chain");
    put_in_pieces(&backups, |name, pieces| {
        let one = |(at, piece): (usize, &&[u8])| {
            let part = format!("parts/{name}/{at}");
            bucket.put(&part, piece);
            serde_json::json!({"name": part})
        };
        let parts: Vec<_> = pieces.iter().enumerate().map(one).collect();
        let what = serde_json::json!({"kind": "storage#composeRequest", "sourceObjects": parts,
            "destination": {"name": name, "contentType": "application/octet-stream"}});
        let base = servers::told(Kind::Gcs, "STORAGE_EMULATOR_HOST");
        let name = encoded(name).replace('/', "%2F");
        let url = format!("{base}/storage/v1/b/{}/o/{name}/compose", bucket.name);
        bucket.curl(&["-X", "POST", &url], Some(what.to_string().as_bytes()));
    });
    check(&bucket, &backups, "composed objects");
}

// An incremental that was made with another `--container` than its parent.
#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_chain_in_several_containers() {
    for kind in [Kind::Apart, Kind::Keystone, Kind::S3, Kind::Gcs] {
        let buckets = [Bucket::new(kind), Bucket::new(kind)];
        let backups = genuine::backups_of("zstd-chain");
        for (at, backup) in backups.iter().enumerate() {
            upload(&buckets[at % 2], std::slice::from_ref(backup));
        }
        if kind == Kind::Apart {
            let mount = mounted(&buckets[0], "swift:");
            for backup in &backups {
                backup.check("in two containers", &fs::read(mount.image(&backup.id)).unwrap());
            }
        }
        // One of them has not all of it, and says so.
        let mount = mounted(&buckets[1], &buckets[1].word().0);
        assert_eq!(names(&mount.path("backups")).len(), backups.len() / 2);
        let child = &backups[1];
        assert!(!mount.image(&child.id).exists(), "{kind:?}");
        let reason = mount.document(&child.id)["fail_reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(backups[0].id.as_str()), "{kind:?}: {reason}");
    }
}

// Cinder deletes in the order of names, one request each: the metadata goes behind the data.
#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_delete_that_was_cut() {
    for kind in [Kind::Swift, Kind::S3, Kind::Gcs] {
        let bucket = Bucket::new(kind);
        let (cut, whole) = (genuine::backups_of("zlib-chain"), genuine::backups_of("grew"));
        upload(&bucket, &cut);
        upload(&bucket, &whole);
        let tip = cut.last().unwrap();
        for number in 1..=tip.objects {
            bucket.remove(&format!("{}-{number:05}", as_cinder::prefix(tip)));
        }
        let (word, _) = bucket.word();
        let mount = mounted(&bucket, &word);
        assert_eq!(errno(fs::read(mount.image(&tip.id))), libc::EIO, "{kind:?}");
        for backup in cut[..cut.len() - 1].iter().chain(&whole) {
            backup.check("beside a cut one", &fs::read(mount.image(&backup.id)).unwrap());
        }
        run(&bucket, &["delete", "-q", &word, &tip.id]);
        let left = listed(&*bucket.store(), "");
        assert!(!left.iter().any(|name| name.contains(&tip.id)), "{kind:?}: {left:?}");
        let rest = cut[..cut.len() - 1].iter().chain(&whole).map(|backup| backup.objects + 2);
        assert_eq!(left.len() as u64, rest.sum::<u64>(), "{kind:?}");
    }
}
