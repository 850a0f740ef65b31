//! Does each kind of finding come of what it is called by, with the right verdict, backups and ranges? The real binary on small stores, each with one thing
//! wrong, and the library on stores that fail. A kind without a case here fails the last test.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, where a panic is the report")]

#[path = "common/store.rs"]
mod store;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cinderfs::ErrorKind;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::verify::{VerifyOptions, verify};
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::posix::PosixStore;
use serde_json::{Value, json};
use store::{BLOCK, Backup, flip, noise};

const FULL: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const CHILD: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const VOLUME: &str = "bbbbbbbb-0000-4000-8000-000000000001";
/// The full backup has two objects of two blocks; the child stores block 1 anew.
const LEN: usize = 4 * BLOCK;

fn full() -> Backup {
    Backup::new(FULL, VOLUME, noise(1, LEN)).extents(&[0..2 * BLOCK, 2 * BLOCK..LEN])
}

#[expect(clippy::single_range_in_vec_init, reason = "one object")]
fn child() -> Backup {
    let mut image = full().image;
    image[BLOCK..2 * BLOCK].copy_from_slice(&noise(2, BLOCK));
    Backup::new(CHILD, VOLUME, image).on(FULL, &[BLOCK..2 * BLOCK]).at("2024-03-02 01:01:07+00:00")
}

/// Puts other words into a document; they must be there.
#[track_caller]
fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// One digest of a backup's list.
fn digest(backup: &Backup, store: &Path, block: usize) -> String {
    let document: Value =
        serde_json::from_slice(&fs::read(backup.file(store, "_sha256file")).unwrap()).unwrap();
    document["sha256s"][block].as_str().unwrap().to_owned()
}

/// Writes a backup's only object in another way.
fn put_object(backup: &Backup, store: &Path, compression: &str, stored: &[u8]) {
    fs::write(backup.file(store, "-00001"), stored).unwrap();
    replace(&backup.file(store, "_metadata"), "\"none\"", &format!("\"{compression}\""));
}

/// What a finding must say.
struct Expected {
    kind: &'static str,
    severity: &'static str,
    cinder: &'static str,
    backups: &'static [&'static str],
    /// In blocks: first, and behind the last.
    blocks: &'static [(usize, usize)],
    /// The end of the object's name.
    object: &'static str,
    code: i32,
    /// `[verdict, cinder]` of the full backup and of the child.
    verdicts: &'static [[&'static str; 2]],
}

fn found(store: &Path) -> (i32, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .arg("verify")
        .arg(store)
        .args(["-f", "json"])
        .env_remove("CINDERFS_LOG")
        .env("CINDERFS_CACHE_DIR", store.with_extension("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code().unwrap(), report.unwrap_or_else(|error| panic!("{error}: {told}")))
}

/// One finding, and just this, of a store that is made like this.
#[track_caller]
fn check(expected: &Expected, make: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    fs::create_dir(&store).unwrap();
    make(&store);
    let (code, report) = found(&store);
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{report:#}");
    let finding = &findings[0];
    let ranges: Vec<Value> = expected
        .blocks
        .iter()
        .map(|(first, end)| json!({ "offset": first * BLOCK, "length": (end - first) * BLOCK }))
        .collect();
    let said = ["kind", "severity", "cinder", "backups", "ranges"].map(|key| finding[key].clone());
    let must = [
        json!(expected.kind),
        json!(expected.severity),
        json!(expected.cinder),
        json!(expected.backups),
        json!(ranges),
    ];
    assert_eq!(said, must, "{report:#}");
    assert!(finding["object"].as_str().unwrap_or_default().ends_with(expected.object), "{finding:#}");
    let verdicts: Vec<Value> = report["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backup| json!([backup["verdict"], backup["cinder"]]))
        .collect();
    assert_eq!(json!(verdicts), json!(expected.verdicts), "{report:#}");
    assert_eq!(code, expected.code, "{report:#}");
}

/// What a case starts from, with no backup of its own.
const NOTHING: Expected = Expected {
    kind: "",
    severity: "damage",
    cinder: "yes",
    backups: &[FULL],
    blocks: &[],
    object: "",
    code: 3,
    verdicts: &[["good", "yes"]],
};

// --- objects ----------------------------------------------------------------------------------------------------------

#[test]
fn object_missing() {
    let verdicts = &[["damaged", "no"], ["damaged", "no"]];
    let backups = &[FULL, CHILD];
    let expected = Expected {
        kind: "object_missing",
        cinder: "no",
        backups,
        blocks: &[(2, 4)],
        object: "-00002",
        verdicts,
        ..NOTHING
    };
    check(&expected, |store| {
        full().put(store);
        child().put(store);
        fs::remove_file(full().file(store, "-00002")).unwrap();
    });
}

#[test]
fn object_wrong() {
    let expected = Expected {
        kind: "object_wrong",
        cinder: "wrongly",
        blocks: &[(1, 2)],
        object: "-00001",
        verdicts: &[["damaged", "wrongly"]],
        ..NOTHING
    };
    check(&expected, |store| flip(&full().put(store).file(store, "-00001"), BLOCK + 7));
}

#[test]
fn object_too_short() {
    let expected = Expected {
        kind: "object_too_short",
        cinder: "wrongly",
        blocks: &[(1, 2)],
        object: "-00001",
        verdicts: &[["damaged", "wrongly"]],
        ..NOTHING
    };
    check(&expected, |store| {
        let path = full().put(store).file(store, "-00001");
        fs::File::options().write(true).open(path).unwrap().set_len(BLOCK as u64 + 9).unwrap();
    });
}

/// Readers get all of it; what is too much would be written over the next object's bytes, and these over it.
#[test]
fn object_too_long() {
    let verdicts = &[["damaged", "yes"]];
    let expected = Expected { kind: "object_too_long", object: "-00001", verdicts, ..NOTHING };
    check(&expected, |store| {
        let path = full().put(store).file(store, "-00001");
        fs::File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
    });
}

#[test]
fn object_damaged() {
    let expected = Expected {
        kind: "object_damaged",
        cinder: "no",
        blocks: &[(0, 4)],
        object: "-00001",
        verdicts: &[["damaged", "no"]],
        ..NOTHING
    };
    check(&expected, |store| {
        let one = Backup::new(FULL, VOLUME, noise(1, LEN));
        put_object(one.put(store), store, "zlib", b"no stream");
    });
}

/// A zstd frame that asks for a window of 256 MiB.
#[test]
fn object_beyond_limits() {
    let expected = Expected {
        kind: "object_beyond_limits",
        cinder: "unknown",
        blocks: &[(0, 1)],
        object: "-00001",
        verdicts: &[["damaged", "unknown"]],
        ..NOTHING
    };
    check(&expected, |store| {
        let one = Backup::new(FULL, VOLUME, noise(1, BLOCK));
        let block = (BLOCK as u32) << 3 | 1;
        let mut frame = vec![0x28, 0xB5, 0x2F, 0xFD, 0, 18 << 3];
        frame.extend_from_slice(&block.to_le_bytes()[..3]);
        frame.extend_from_slice(&one.image);
        put_object(one.put(store), store, "zstd", &frame);
    });
}

#[test]
fn object_unproven() {
    let folder = tempfile::tempdir().unwrap();
    let backup = Backup::new(FULL, VOLUME, noise(1, LEN)).without_digests();
    let md5 = backup.metadata()["objects"][0].as_object().unwrap().values().next().unwrap()["md5"].clone();
    let metadata = backup.put(folder.path()).file(folder.path(), "_metadata");
    replace(&metadata, md5.as_str().unwrap(), "none");
    let (code, report) = found(folder.path());
    let findings = report["findings"].as_array().unwrap();
    let kinds: Vec<_> = findings.iter().map(|finding| finding["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["object_unproven", "digests_missing"], "{report:#}");
    assert_eq!(findings[0]["ranges"], json!([{ "offset": 0, "length": LEN }]));
    assert_eq!(
        (&report["backups"][0]["verdict"], &report["backups"][0]["cinder"]),
        (&json!("damaged"), &json!("unknown"))
    );
    assert_eq!(code, 3);
}

#[test]
fn md5_wrong() {
    let expected = Expected { kind: "md5_wrong", severity: "warning", object: "-00002", code: 0, ..NOTHING };
    check(&expected, |store| {
        let objects = full().metadata()["objects"].clone();
        let md5 = objects[1].as_object().unwrap().values().next().unwrap()["md5"].clone();
        let path = full().put(store).file(store, "_metadata");
        replace(&path, md5.as_str().unwrap(), "00112233445566778899aabbccddeeff");
    });
}

#[test]
fn trailing_bytes() {
    let expected =
        Expected { kind: "trailing_bytes", severity: "warning", object: "-00001", code: 0, ..NOTHING };
    check(&expected, |store| {
        let one = Backup::new(FULL, VOLUME, noise(1, LEN));
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        encoder.write_all(&one.image).unwrap();
        let stored = [encoder.finish().unwrap(), b"junk".to_vec()].concat();
        put_object(one.put(store), store, "bz2", &stored);
    });
}

#[test]
fn foreign_frames() {
    let expected = Expected {
        kind: "foreign_frames",
        severity: "warning",
        cinder: "no",
        object: "-00001",
        verdicts: &[["good", "no"]],
        ..NOTHING
    };
    check(&expected, |store| {
        let one = Backup::new(FULL, VOLUME, noise(1, 2 * LEN));
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&one.image).unwrap();
        put_object(one.put(store), store, "zstd", &encoder.finish().unwrap());
    });
}

// --- digests ----------------------------------------------------------------------------------------------------------

/// The md5 is right, so the digest is not.
#[test]
fn digest_wrong() {
    let expected =
        Expected { kind: "digest_wrong", blocks: &[(3, 4)], verdicts: &[["damaged", "yes"]], ..NOTHING };
    check(&expected, |store| {
        let path = full().put(store).file(store, "_sha256file");
        replace(&path, &digest(&full(), store, 3), &"ab".repeat(32));
    });
}

#[test]
fn digest_damaged() {
    let expected = Expected {
        kind: "digest_damaged",
        blocks: &[(2, 3)],
        object: "_sha256file",
        verdicts: &[["damaged", "yes"]],
        ..NOTHING
    };
    check(&expected, |store| {
        let path = full().put(store).file(store, "_sha256file");
        replace(&path, &digest(&full(), store, 2), &"xy".repeat(32));
    });
}

#[test]
fn digests_missing() {
    let expected =
        Expected { kind: "digests_missing", severity: "warning", object: "_sha256file", code: 0, ..NOTHING };
    check(&expected, |store| {
        full().without_digests().put(store);
    });
}

#[test]
fn digests_torn() {
    let verdicts = &[["damaged", "yes"]];
    let expected = Expected { kind: "digests_torn", object: "_sha256file", verdicts, ..NOTHING };
    check(&expected, |store| {
        let path = full().put(store).file(store, "_sha256file");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
}

// --- chains -----------------------------------------------------------------------------------------------------------

#[test]
fn backup_unusable() {
    let expected =
        Expected { kind: "backup_unusable", cinder: "no", verdicts: &[["unusable", "no"]], ..NOTHING };
    check(&expected, |store| {
        replace(
            &full().put(store).file(store, "_metadata"),
            "\"version\": \"1.0.0\"",
            "\"version\": \"9.0.0\"",
        );
    });
}

/// Its digests say that there is data where no object is.
#[test]
fn no_data() {
    let expected = Expected {
        kind: "no_data",
        cinder: "wrongly",
        blocks: &[(1, 3)],
        verdicts: &[["damaged", "wrongly"]],
        ..NOTHING
    };
    check(&expected, |store| {
        full().extents(&[0..BLOCK, 3 * BLOCK..LEN]).put(store);
    });
}

/// The child was made on another full backup: one whose last block was other.
#[test]
fn chain_inconsistent() {
    let expected = Expected {
        kind: "chain_inconsistent",
        cinder: "wrongly",
        backups: &[CHILD],
        blocks: &[(3, 4)],
        verdicts: &[["good", "yes"], ["damaged", "wrongly"]],
        ..NOTHING
    };
    check(&expected, |store| {
        full().put(store);
        let mut child = child();
        child.image[3 * BLOCK..].copy_from_slice(&noise(3, BLOCK));
        child.put(store);
    });
}

#[test]
fn block_size_changed() {
    let expected = Expected {
        kind: "block_size_changed",
        severity: "note",
        backups: &[CHILD],
        code: 0,
        verdicts: &[["good", "yes"], ["good", "yes"]],
        ..NOTHING
    };
    check(&expected, |store| {
        full().put(store);
        child().block(BLOCK / 2).put(store);
    });
}

/// An incremental backup that stored zeros where its parent has data.
#[test]
#[expect(clippy::single_range_in_vec_init, reason = "one object")]
fn cinder_22_to_28() {
    let expected = Expected {
        kind: "cinder_22_to_28",
        severity: "note",
        backups: &[CHILD],
        blocks: &[(32, 64)],
        code: 0,
        verdicts: &[["good", "yes"], ["good", "yes"]],
        ..NOTHING
    };
    check(&expected, |store| {
        let (image, mib) = (noise(1, 96 * BLOCK), 32 * BLOCK);
        let mut zeroed = image.clone();
        zeroed[mib..2 * mib].fill(0);
        Backup::new(FULL, VOLUME, image).put(store);
        let child = Backup::new(CHILD, VOLUME, zeroed).on(FULL, &[mib..2 * mib]);
        child.at("2024-03-02 01:01:07+00:00").put(store);
    });
}

// --- what else lies there ---------------------------------------------------------------------------------------------

#[test]
fn stray() {
    let expected = Expected {
        kind: "stray",
        severity: "warning",
        cinder: "no",
        object: ".idx",
        verdicts: &[["good", "no"]],
        ..NOTHING
    };
    check(&expected, |store| fs::write(full().put(store).file(store, "-00001.idx"), "mine").unwrap());
}

#[test]
fn copy() {
    let expected = Expected { kind: "copy", severity: "note", object: "_metadata", code: 0, ..NOTHING };
    check(&expected, |store| {
        let backup = full();
        backup.put(store);
        let other = store.join("other");
        fs::create_dir(&other).unwrap();
        for ending in ["-00001", "-00002", "_sha256file", "_metadata"] {
            let from = backup.file(store, ending);
            fs::copy(&from, other.join(from.file_name().unwrap())).unwrap();
        }
    });
}

#[test]
fn in_progress() {
    let expected = Expected {
        kind: "in_progress",
        severity: "note",
        cinder: "unknown",
        code: 0,
        verdicts: &[],
        ..NOTHING
    };
    check(&expected, |store| full().put_unfinished(store));
}

#[test]
fn orphans() {
    let expected =
        Expected { kind: "orphans", severity: "warning", cinder: "no", code: 0, verdicts: &[], ..NOTHING };
    check(&expected, |store| {
        full().put_unfinished(store);
        for ending in ["-00001", "-00002", "_sha256file"] {
            let file = fs::File::options().write(true).open(full().file(store, ending)).unwrap();
            let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3 * 86_400);
            file.set_modified(old).unwrap();
        }
    });
}

#[test]
fn leftovers() {
    let expected = Expected {
        kind: "leftovers",
        severity: "note",
        backups: &[],
        object: ".cinderfs-x",
        code: 0,
        ..NOTHING
    };
    check(&expected, |store| {
        full().put(store);
        fs::create_dir(store.join(".cinderfs-x")).unwrap();
    });
}

/// The kinds that the library tells of a store whose calls fail so.
fn of_failing(operation: Operation, names: &str) -> Vec<(&'static str, &'static str)> {
    let folder = tempfile::tempdir().unwrap();
    full().put(folder.path());
    let rule = Rule::new(operation, Fault::Error(ErrorKind::StoreIo)).names(names);
    let store = Arc::new(FaultStore::new(PosixStore::open(folder.path()).unwrap(), vec![rule]));
    let catalog = Catalog::open(store, CatalogOptions::default()).unwrap();
    let cancel = AtomicBool::new(false);
    let report = verify(&catalog, None, &VerifyOptions::everything(&cancel), &|_| {}).unwrap();
    assert!(!report.is_damaged() && report.failure.is_some(), "{:?}", report.findings);
    report.findings.iter().map(|finding| (finding.kind.name(), finding.cinder.name())).collect()
}

#[test]
fn object_unreadable() {
    assert_eq!(of_failing(Operation::Read, "*-00002"), [("object_unreadable", "unknown")]);
}

#[test]
fn unreadable() {
    assert_eq!(of_failing(Operation::Open, "*_metadata"), [("unreadable", "unknown")]);
}

// --- all of them ------------------------------------------------------------------------------------------------------

/// Each kind that the code can name has a test of its name here, or stands in the one that needs several containers.
#[test]
fn no_kind_is_without_a_case() {
    let (source, here) =
        (include_str!("../src/frontend/verify/findings.rs"), include_str!("verify_kinds.rs"));
    let (_, names) = source.split_once("/// The word for documents.").unwrap();
    let (names, _) = names.split_once("/// What to do about it").unwrap();
    let names: Vec<_> =
        names.lines().filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\",")).collect();
    assert!(names.len() > 20, "{names:?}");
    let of_containers = include_str!("one_container.rs");
    let has_case = |name: &str| {
        here.contains(&format!("]\nfn {name}()")) || of_containers.contains(&format!("\"{name}\""))
    };
    let missing: Vec<_> = names.iter().filter(|name| !has_case(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
