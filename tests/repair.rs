//! What `repair` makes of a damaged backup.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cinderfs::types::BackupId;
use cinderfs::writer::repair::{Outcome, RepairOptions, repair};
use serde_json::Value;
use store_kit::{BackupSpec, Packing};
use volume::{BLOCK, MIB, full, mixed};

fn cinderfs(words: &[&str], paths: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.args(words).args(paths).env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.output().unwrap()
}

/// Runs `repair`: its rows, and its exit code.
fn run_repair(store: &Path, id: &str, words: &[&str]) -> (Vec<Value>, i32) {
    let output = cinderfs(&[&["repair", "-f", "json"], words].concat(), &[store, id.as_ref()]);
    let rows = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (rows, output.status.code().unwrap())
}

fn restored(store: &Path, id: &str) -> Result<Vec<u8>, i32> {
    let output = cinderfs(&["restore", "-q"], &[store, id.as_ref(), "-".as_ref()]);
    if output.status.success() { Ok(output.stdout) } else { Err(output.status.code().unwrap()) }
}

/// Every file below with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

fn objects(store: &Path, id: &str) -> Vec<PathBuf> {
    let is_object = |path: &PathBuf| {
        let name = path.to_string_lossy();
        name.contains(&format!("backup_{id}-"))
    };
    files(store).into_keys().filter(is_object).collect()
}

fn spoil(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at..at + 40].iter_mut().for_each(|byte| *byte ^= 0x5A);
    fs::write(path, bytes).unwrap();
}

fn put(store: &Path, spec: &BackupSpec) {
    for (name, bytes) in spec.files() {
        fs::create_dir_all(store.join(&name).parent().unwrap()).unwrap();
        fs::write(store.join(name), bytes).unwrap();
    }
}

/// A full backup that this program writes; its id.
fn create(store: &Path, source: &Path, words: &[&str]) -> String {
    let all = [&["create", "-q", "--object-size", "1M"], words].concat();
    let output = cinderfs(&all, &[store, source]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

// > `repair` writes an object anew, whole and in one step, when each of its bytes is proven, out of what is left of it
// > and of blocks with the same sha256 anywhere in the store; then its metadata is true of it, restart points included.
#[test]
fn an_object_comes_back_out_of_another_backup() {
    let folder = tempfile::tempdir().unwrap();
    let (store, source) = (folder.path().join("store"), folder.path().join("volume"));
    let plain = mixed(3, 3 * MIB);
    fs::write(&source, &plain).unwrap();
    for codec in ["none", "zlib", "bz2", "zstd"] {
        fs::create_dir(&store).unwrap();
        let level = ["--compression", codec];
        let (first, second) = (create(&store, &source, &level), create(&store, &source, &level));
        let before = files(&store);
        let [one, two, three] = &objects(&store, &first)[..] else { panic!("three objects") };
        spoil(one);
        fs::remove_file(two).unwrap();
        fs::write(three, b"").unwrap();
        let damaged = files(&store);

        let (rows, code) = run_repair(&store, &first, &["--dry-run"]);
        assert_eq!((rows.len(), code), (3, 0), "{codec}: {rows:?}");
        assert!(rows.iter().all(|row| row["Outcome"] == "repairable"), "{codec}: {rows:?}");
        assert!(files(&store) == damaged, "{codec}: a dry run changed the store");

        let (rows, code) = run_repair(&store, &first, &[]);
        assert_eq!((rows.len(), code), (3, 0), "{codec}: {rows:?}");
        assert!(rows.iter().all(|row| row["Outcome"] == "repaired"), "{codec}: {rows:?}");
        assert!(files(&store) == before, "{codec}: the same encoder makes the same files");
        let nothing = run_repair(&store, &first, &[]);
        assert_eq!(nothing, (Vec::new(), 0), "{codec}");
        fs::remove_dir_all(store.join(&second[..2]).join(&second[2..4]).join(&second)).unwrap();
        assert!(restored(&store, &first).unwrap() == plain, "{codec}");
        fs::remove_dir_all(&store).unwrap();
    }
}

#[test]
fn restart_points_are_told_anew_where_the_encoder_differs() {
    let folder = tempfile::tempdir().unwrap();
    let (store, source) = (folder.path().join("store"), folder.path().join("volume"));
    fs::create_dir(&store).unwrap();
    let plain = mixed(3, 3 * MIB);
    fs::write(&source, &plain).unwrap();
    let words = ["--compression", "zlib"];
    let (first, second) = (create(&store, &source, &words), create(&store, &source, &words));
    // As another level would have written them: other points, and another stream.
    let metadata =
        files(&store).into_keys().find(|path| path.to_string_lossy().ends_with(&format!("{first}_metadata")));
    let metadata = metadata.unwrap();
    let text = fs::read_to_string(&metadata).unwrap();
    let key = "\"cinderfs_restart_points\": \"";
    let at = text.find(key).expect("points in the metadata") + key.len();
    let other = format!("{}7{}", &text[..at], &text[at..]);
    fs::write(&metadata, &other).unwrap();
    spoil(&objects(&store, &first)[0]);
    let (rows, code) = run_repair(&store, &first, &[]);
    assert_eq!((rows.len(), code), (1, 0), "{rows:?}");
    assert_eq!(fs::read_to_string(&metadata).unwrap(), text, "the points are those of the new object");
    fs::remove_dir_all(store.join(&second[..2]).join(&second[2..4]).join(&second)).unwrap();
    assert!(restored(&store, &first).unwrap() == plain);
}

/// Genuine Cinder's objects are one stream each; copies stand at another offset of another volume, in another codec.
#[test]
fn blocks_are_found_at_any_offset_of_any_volume() {
    let plain = mixed(5, 2 * MIB);
    let shifted: Vec<u8> = [&vec![7; 5 * BLOCK][..], &plain].concat();
    for packing in [
        Packing::Plain("none"),
        Packing::Zlib { level: 6, junk: 0 },
        Packing::Bz2 { level: 9, streams: 1 },
        Packing::Zstd { level: 3, frames: 1 },
    ] {
        let folder = tempfile::tempdir().unwrap();
        let broken = full("aaaa", &plain, packing);
        put(folder.path(), &broken);
        let object = folder.path().join(broken.object_path(0));
        let metadata = |store: &Path| {
            let all = files(store);
            all.into_iter()
                .find(|(path, _)| path.to_string_lossy().ends_with(&format!("{}_metadata", broken.id)))
                .unwrap()
                .1
        };
        let told = metadata(folder.path());
        spoil(&object);
        // Alone it loses what depends on the damage.
        let (rows, code) = run_repair(folder.path(), &broken.id, &[]);
        assert_eq!((rows.len(), code), (1, 3), "{packing:?}: {rows:?}");
        assert!(rows[0]["Lost Ranges"].as_str().is_some_and(|text| text.contains(" to ")), "{rows:?}");
        let spoiled = fs::read(&object).unwrap();
        assert!(restored(folder.path(), &broken.id).is_err());

        let mut other = full("bbbb", &shifted, Packing::Zstd { level: 1, frames: 1 });
        other.volume_id = "another-volume".into();
        put(folder.path(), &other);
        let (rows, code) = run_repair(folder.path(), &broken.id, &["--dry-run"]);
        assert_eq!((rows.len(), code), (1, 0), "{packing:?}: {rows:?}");
        assert!(rows[0]["Copied Blocks"].as_u64() > Some(0), "{rows:?}");
        assert!(fs::read(&object).unwrap() == spoiled);
        let (rows, code) = run_repair(folder.path(), &broken.id, &[]);
        assert_eq!((rows.len(), code), (1, 0), "{packing:?}: {rows:?}");
        fs::remove_dir_all(folder.path().join(&other.id[..2])).unwrap();
        assert!(restored(folder.path(), &broken.id).unwrap() == plain, "{packing:?}");
        assert!(metadata(folder.path()) == told, "genuine metadata stays as it is");
        if matches!(packing, Packing::Zlib { .. }) {
            let mut unpacked = Vec::new();
            let stored = fs::read(&object).unwrap();
            flate2::read::ZlibDecoder::new(&stored[..]).read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == plain);
        }
    }
}

// > `repair` makes a digest file anew out of objects whose md5 is right; what it cannot prove stays as it is, is
// > told by its ranges, and ends it with 3.
#[test]
fn a_digest_file_comes_back_out_of_the_objects() {
    let folder = tempfile::tempdir().unwrap();
    let plain = mixed(6, 2 * MIB + 1000);
    let spec = full("aaaa", &plain, Packing::Zlib { level: 6, junk: 0 });
    put(folder.path(), &spec);
    let digests = files(folder.path())
        .into_keys()
        .find(|path| path.to_string_lossy().ends_with("_sha256file"))
        .unwrap();
    let right = fs::read(&digests).unwrap();
    let told = |bytes: &[u8]| {
        let document: Value = serde_json::from_slice(bytes).unwrap();
        document["sha256s"].clone()
    };
    let at = right.len() / 2;
    let mut wrong = right.clone();
    let digit = (at..).find(|&at| wrong[at].is_ascii_hexdigit()).unwrap();
    wrong[digit] = if wrong[digit] == b'0' { b'1' } else { b'0' };
    let mut no_digit = right.clone();
    no_digit[digit] = b'z';
    for (what, spoiled) in [
        ("missing", None),
        ("torn", Some(&right[..at])),
        ("wrong", Some(&wrong)),
        ("no digit", Some(&no_digit)),
    ] {
        match spoiled {
            None => fs::remove_file(&digests).unwrap(),
            Some(bytes) => fs::write(&digests, bytes).unwrap(),
        }
        let (rows, code) = run_repair(folder.path(), &spec.id, &["--dry-run"]);
        assert_eq!((rows.len(), code), (1, 0), "{what}: {rows:?}");
        let (rows, code) = run_repair(folder.path(), &spec.id, &[]);
        assert_eq!((rows.len(), code), (1, 0), "{what}: {rows:?}");
        assert_eq!(told(&fs::read(&digests).unwrap()), told(&right), "{what}");
        assert!(restored(folder.path(), &spec.id).unwrap() == plain, "{what}");
    }
    // With a damaged object there is nothing that proves the rest.
    fs::remove_file(&digests).unwrap();
    spoil(&folder.path().join(spec.object_path(0)));
    let before = files(folder.path());
    let (rows, code) = run_repair(folder.path(), &spec.id, &[]);
    assert_eq!((rows.len(), code), (2, 3), "{rows:?}");
    assert!(files(folder.path()) == before);
}

// > A run of `repair` that is killed or fails at any step leaves each file as it was or repaired, and nothing else.
#[test]
fn a_repair_that_fails_at_any_step_leaves_old_or_new() {
    let plain = mixed(5, MIB);
    let broken = full("aaaa", &plain, Packing::Zlib { level: 6, junk: 0 });
    let copy = full("bbbb", &plain, Packing::Plain("none"));
    let id = BackupId::parse(&broken.id).unwrap();
    for fails_at in 0.. {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), &broken);
        put(folder.path(), &copy);
        let object = folder.path().join(broken.object_path(0));
        spoil(&object);
        let before = files(folder.path());
        let steps = Arc::new(AtomicUsize::new(0));
        let counted = steps.clone();
        let hook = move |_, _: &str| match counted.fetch_add(1, Ordering::Relaxed) == fails_at {
            true => Err(std::io::Error::from_raw_os_error(28)),
            false => Ok(()),
        };
        let cancel = AtomicBool::new(false);
        let options = RepairOptions {
            dry_run: false,
            threads: 2,
            cancel: &cancel,
            progress: &|_, _| {},
            hook: Some(Arc::new(hook)),
        };
        let result = repair(folder.path(), &id, &options);
        let mut after = files(folder.path());
        after.retain(|path, _| !path.to_string_lossy().contains("/.cinderfs-"));
        if after != before {
            assert_eq!(
                after.keys().collect::<Vec<_>>(),
                before.keys().collect::<Vec<_>>(),
                "step {fails_at}"
            );
            assert!(restored(folder.path(), &broken.id).unwrap() == plain, "step {fails_at}");
        } else {
            assert!(result.is_err(), "step {fails_at}");
        }
        if steps.load(Ordering::Relaxed) <= fails_at {
            assert!(matches!(result.unwrap()[..], [ref one] if matches!(one.outcome, Outcome::Repaired)));
            assert!(fails_at > 5, "only {fails_at} steps were seen");
            return;
        }
        // The next run finishes it.
        assert_eq!(run_repair(folder.path(), &broken.id, &[]).1, 0, "step {fails_at}");
        assert!(restored(folder.path(), &broken.id).unwrap() == plain);
        assert!(files(folder.path()).keys().all(|path| !path.to_string_lossy().contains("/.cinderfs-")));
    }
}
