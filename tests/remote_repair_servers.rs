//! Does `repair` mend backups in real Swift, S3 and an emulator of Google's, so that Cinder restores them?
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

#[path = "common/cinder.rs"]
mod cinder;
#[path = "common/conformance.rs"]
mod conformance;
#[path = "common/driver.rs"]
mod driver;
#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/servers.rs"]
mod servers;

use std::collections::BTreeMap;
use std::process::{Command, Output};

use conformance::{Bench as _, listed};
use mount::Setup;
use servers::{Bucket, Kind};

/// Plain bytes of an object, of which the volume has four whole ones and a rest.
const OBJECT_BYTES: usize = 1 << 20;

fn content() -> Vec<u8> {
    let mixed = |i: u32| (i ^ i >> 15).wrapping_mul(0x85eb_ca6b) >> 26;
    (0..4 * OBJECT_BYTES as u32 + 700).map(|i| mixed(i.wrapping_mul(2_654_435_761)) as u8).collect()
}

fn cinderfs(bucket: &Bucket, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.args(words).envs(bucket.word().1).env("CINDERFS_CACHE_DIR", "/nonexistent/cache");
    command.output().unwrap()
}

/// What a command prints, which ends with `code`.
#[track_caller]
fn run(bucket: &Bucket, code: i32, words: &[&str]) -> String {
    let output = cinderfs(bucket, words);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(code), "{:?} {words:?}: {}", bucket.kind, text(&output.stderr));
    text(&output.stdout)
}

/// The id of a new backup.
fn create(bucket: &Bucket, plain: &[u8], words: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("volume");
    std::fs::write(&source, plain).unwrap();
    let (word, _) = bucket.word();
    let volume = ["--volume-id", "6f5e1c0e-2f0c-4b5e-8f3c-0d8f4f1f7a11"];
    let all = [&["create", "-q", &word, source.to_str().unwrap()], &volume[..], words].concat();
    run(bucket, 0, &all).trim().to_owned()
}

/// Two backups of one volume; the id of the first, and what its names begin with.
fn backups(bucket: &Bucket, words: &[&str]) -> (String, String) {
    let id = create(bucket, &content(), words);
    create(bucket, &content(), words);
    let prefix = listed(&*bucket.store(), &format!("{id}_metadata")).remove(0);
    (id, prefix.strip_suffix("_metadata").unwrap().to_owned())
}

/// All that a bucket holds.
fn bytes(bucket: &Bucket) -> BTreeMap<String, Vec<u8>> {
    let store = bucket.store();
    let names = listed(&*store, "").into_iter();
    names.map(|name| (name.clone(), conformance::read(&*store, &name).unwrap())).collect()
}

#[track_caller]
fn check_same(now: &BTreeMap<String, Vec<u8>>, right: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(now.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>(), "{what}");
    let other: Vec<_> =
        now.iter().filter(|(name, bytes)| right[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(other.is_empty(), "{what}: {other:?}");
}

fn damaged_backups_are_mended(kind: Kind) {
    let bucket = Bucket::new(kind);
    let (id, prefix) = backups(&bucket, &["--object-size", "1M"]);
    let right = bytes(&bucket);
    let (word, _) = bucket.word();
    let mut rotten = right[&format!("{prefix}-00002")].clone();
    rotten[OBJECT_BYTES / 4..][..40].fill(0x5a);
    bucket.put(&format!("{prefix}-00002"), &rotten);
    bucket.remove(&format!("{prefix}-00004"));
    run(&bucket, 3, &["verify", "-q", &word, &id]);
    let damaged = bytes(&bucket);
    let outcomes = ["-f", "value", "-c", "File", "-c", "Outcome"];
    let told = run(&bucket, 0, &[&["repair", "-q", &word, &id, "--dry-run"], &outcomes[..]].concat());
    assert_eq!(told, "-00002 repairable\n-00004 repairable\n", "{kind:?}");
    check_same(&bytes(&bucket), &damaged, "a dry run");

    let told = run(&bucket, 0, &[&["repair", "-q", &word, &id], &outcomes[..]].concat());
    assert_eq!(told, "-00002 repaired\n-00004 repaired\n", "{kind:?}");
    check_same(&bytes(&bucket), &right, "repaired");
    bucket.remove(&format!("{prefix}_sha256file"));
    let told = run(&bucket, 0, &[&["repair", "-q", &word, &id], &outcomes[..]].concat());
    assert_eq!(told, "_sha256file repaired\n", "{kind:?}");
    check_same(&bytes(&bucket), &right, "digests repaired");

    // What the backup builds on comes first, and is read for it then.
    let all = run(&bucket, 0, &["list", &word, "-f", "value", "-c", "ID"]);
    let other = all.lines().find(|other| *other != id).unwrap();
    let mut changed = content();
    changed[OBJECT_BYTES + 5] ^= 1;
    let child = create(&bucket, &changed, &["--object-size", "1M", "--parent", other]);
    let right = bytes(&bucket);
    let of_other = listed(&*bucket.store(), &format!("{other}-00003")).remove(0);
    bucket.put(&of_other, &rotten);
    bucket.remove(&listed(&*bucket.store(), &format!("{child}_sha256file")).remove(0));
    let told = run(&bucket, 0, &[&["repair", "-q", &word, &child], &outcomes[..]].concat());
    assert_eq!(told, "-00003 repaired\n_sha256file repaired\n", "{kind:?}");
    check_same(&bytes(&bucket), &right, "a chain");
    run(&bucket, 0, &["delete", "-q", &word, &child]);

    // Without help from the other backup.
    run(&bucket, 0, &["delete", "-q", &word, other]);
    run(&bucket, 0, &["verify", "-q", &word]);
    let mount = Setup::default().environment(&bucket.word().1).mount(word.as_ref());
    assert!(std::fs::read(mount.image(&id)).unwrap() == content(), "{kind:?}");
    if matches!(kind, Kind::S3 | Kind::Swift) {
        assert!(driver::of(&bucket).restores(&id, content().len()) == content(), "{kind:?}, by Cinder");
    }
    // Nothing is left to be had from.
    bucket.remove(&format!("{prefix}-00001"));
    let before = bytes(&bucket);
    let told = run(&bucket, 3, &[&["repair", "-q", &word, &id], &outcomes[..]].concat());
    assert_eq!(told, "-00001 lost\n", "{kind:?}");
    check_same(&bytes(&bucket), &before, "lost");
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn damaged_backups_in_s3_are_mended() {
    damaged_backups_are_mended(Kind::S3);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn damaged_backups_in_swift_are_mended() {
    damaged_backups_are_mended(Kind::Swift);
}

#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn damaged_backups_in_googles_storage_are_mended() {
    damaged_backups_are_mended(Kind::Gcs);
}

// > `repair` puts one plain object in the place of what an object store has in pieces; pieces with names of their own, as those of an SLO
// > or a DLO, stay, and headers, tags and storage class of the old object are not kept.
#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn damaged_large_objects_of_swift_become_plain_ones() {
    for is_static in [true, false] {
        let (bucket, segments) = (Bucket::new(Kind::Swift), Bucket::new(Kind::Swift));
        let (id, prefix) = backups(&bucket, &["--object-size", "1M"]);
        let (right, name) = (bytes(&bucket), format!("{prefix}-00002"));
        let mut rotten = right[&name].clone();
        rotten[OBJECT_BYTES / 4..][..40].fill(0x5a);
        let pieces: Vec<_> = rotten.chunks(rotten.len() / 3 + 1).enumerate().collect();
        pieces.iter().for_each(|(at, piece)| segments.put(&format!("{name}/{at}"), piece));
        if is_static {
            let one = |(at, piece): &(usize, &[u8])| serde_json::json!({"path": format!("/{}/{name}/{at}", segments.name), "size_bytes": piece.len()});
            let manifest = serde_json::Value::from(pieces.iter().map(one).collect::<Vec<_>>()).to_string();
            let url = format!("{}?multipart-manifest=put", bucket.url(&name));
            bucket.curl(&["-X", "PUT", &url], Some(manifest.as_bytes()));
        } else {
            let manifest =
                format!("X-Object-Manifest: {}/{}", segments.name, servers::encoded(&format!("{name}/")));
            bucket.curl(&["-X", "PUT", "-H", &manifest, &bucket.url(&name)], Some(b""));
        }
        let before = bytes(&segments);
        assert!(bytes(&bucket)[&name] == rotten);
        run(&bucket, 0, &["repair", "-q", &bucket.word().0, &id]);
        check_same(&bytes(&bucket), &right, "repaired");
        check_same(&bytes(&segments), &before, "the pieces");
        let told = bucket.curl(&["-I", &bucket.url(&name)], None).to_lowercase();
        assert!(!told.contains("x-static-large-object") && !told.contains("x-object-manifest"), "{told}");
    }
}

// > `repair` puts one plain object in the place of what an object store has in pieces; pieces with names of their own, as those of an SLO
// > or a DLO, stay, and headers, tags and storage class of the old object are not kept.
#[test]
#[ignore = "needs servers; scripts/services/test.sh"]
fn a_damaged_upload_in_parts_becomes_a_plain_object_of_s3() {
    let bucket = Bucket::new(Kind::S3);
    let (id, prefix) = backups(&bucket, &["--object-size", "5M", "--compression", "none"]);
    let (right, name) = (bytes(&bucket), format!("{prefix}-00001"));
    let mut rotten = right[&name].clone();
    rotten[OBJECT_BYTES..][..40].fill(0x5a);
    bucket.put_in_parts(&name, &[&rotten]);
    let told = || bucket.curl(&["-I", &bucket.url(&name)], None).to_lowercase();
    assert!(told().contains("-1\"\r\n"), "{}", told());
    run(&bucket, 0, &["repair", "-q", &bucket.word().0, &id]);
    check_same(&bytes(&bucket), &right, "repaired");
    assert!(!told().contains("-1\"\r\n"), "{}", told());
}
