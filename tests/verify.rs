//! What does `verify` tell, and with which exit code? The real binary on small stores, and on stores that fail.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

#[path = "common/store.rs"]
mod store;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cinderfs::ErrorKind;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::verify::{Report, Subset, VerifyOptions, verify};
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::posix::PosixStore;
use serde_json::Value;
use store::{BLOCK, Backup, flip, noise};

const FULL: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const CHILD: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const VOLUME: &str = "bbbbbbbb-0000-4000-8000-000000000001";

/// A full backup of four blocks in two objects, and a child that stores the second block anew.
fn chain(root: &Path) -> [Backup; 2] {
    let image = noise(1, 4 * BLOCK);
    let mut newer = image.clone();
    newer[BLOCK..2 * BLOCK].copy_from_slice(&noise(2, BLOCK));
    let full = Backup::new(FULL, VOLUME, image).extents(&[0..2 * BLOCK, 2 * BLOCK..4 * BLOCK]);
    #[expect(clippy::single_range_in_vec_init, reason = "one object")]
    let child =
        Backup::new(CHILD, VOLUME, newer).on(FULL, &[BLOCK..2 * BLOCK]).at("2024-03-02 01:01:07+00:00");
    full.put(root);
    child.put(root);
    [full, child]
}

fn run(cache: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.args(words).env_remove("CINDERFS_LOG").env("CINDERFS_CACHE_DIR", cache);
    command.stdin(Stdio::null()).output().unwrap()
}

struct Kit {
    folder: tempfile::TempDir,
}

impl Kit {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("store")).unwrap();
        Self { folder }
    }

    fn store(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    /// The report, whose exit code must be this.
    #[track_caller]
    fn verify(&self, code: i32, more: &[&str]) -> Value {
        let store = self.store();
        let mut words = vec!["verify", store.to_str().unwrap(), "-f", "json"];
        words.extend(more);
        let output = run(&self.folder.path().join("cache"), &words);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{told}\n{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// `[id, verdict, cinder]` of each backup.
fn verdicts(report: &Value) -> Vec<[&str; 3]> {
    let words =
        |backup: &'_ Value| ["id", "verdict", "cinder"].map(|key| backup[key].as_str().unwrap().to_owned());
    let all: Vec<_> = report["backups"].as_array().unwrap().iter().map(words).collect();
    all.into_iter().map(|words| words.map(|word| &*word.leak())).collect()
}

fn kinds(report: &Value) -> Vec<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["kind"].as_str().unwrap()).collect()
}

// > `verify` reads each object of the chosen chains once, and tells of each backup whether it is good, damaged, unusable or
// > unchecked.
#[test]
fn a_whole_store_is_good() {
    let kit = Kit::new();
    chain(&kit.store());
    let report = kit.verify(0, &[]);
    assert_eq!(verdicts(&report), [[FULL, "good", "yes"], [CHILD, "good", "yes"]]);
    assert_eq!(kinds(&report), Vec::<&str>::new());
    assert_eq!(report["summary"]["objects"], 3);
    assert_eq!(report["summary"]["plain_bytes"], 5 * BLOCK);
    assert_eq!(report["backups"][1]["checked_bytes"], 5 * BLOCK);
}

// > Each finding tells which backups and which ranges of the volume it touches, and whether genuine Cinder would restore them:
// > yes, no (it ends with an error), or wrongly (it ends well, with wrong bytes).
#[test]
fn a_flipped_bit_is_told_with_all_it_touches() {
    let kit = Kit::new();
    let [full, _] = chain(&kit.store());
    flip(&full.file(&kit.store(), "-00001"), 5);
    let report = kit.verify(3, &[]);
    assert_eq!(verdicts(&report), [[FULL, "damaged", "wrongly"], [CHILD, "damaged", "wrongly"]]);
    assert_eq!(kinds(&report), ["object_wrong"]);
    let finding = &report["findings"][0];
    assert_eq!(finding["backups"], serde_json::json!([FULL, CHILD]));
    assert_eq!(finding["ranges"], serde_json::json!([{ "offset": 0, "length": BLOCK }]));
    assert_eq!(finding["cinder"], "wrongly");
    assert!(finding["object"].as_str().unwrap().ends_with("-00001"));
    assert_eq!(report["backups"][1]["lost_bytes"], BLOCK);
    // What the child hides costs the child nothing.
    let kit = Kit::new();
    let [full, _] = chain(&kit.store());
    flip(&full.file(&kit.store(), "-00001"), BLOCK + 5);
    let report = kit.verify(3, &[]);
    assert_eq!(verdicts(&report), [[FULL, "damaged", "wrongly"], [CHILD, "good", "yes"]]);
}

#[test]
fn a_missing_object_stops_cinder_also_where_it_is_hidden() {
    let kit = Kit::new();
    let [full, _] = chain(&kit.store());
    fs::remove_file(full.file(&kit.store(), "-00002")).unwrap();
    let report = kit.verify(3, &[CHILD]);
    assert_eq!(verdicts(&report), [[CHILD, "damaged", "no"]]);
    assert_eq!(report["backups"][0]["lost_bytes"], 2 * BLOCK);
    assert_eq!(kinds(&report), ["object_missing"]);
}

// > A file that begins with a backup's prefix and is none of its objects makes genuine Cinder refuse the backup; `verify` tells
// > it, and ends with 3.
#[test]
fn a_stray_is_no_damage_and_cinder_refuses_it() {
    let kit = Kit::new();
    let [full, _] = chain(&kit.store());
    fs::write(full.file(&kit.store(), "-00001.idx"), "mine").unwrap();
    let report = kit.verify(3, &[]);
    assert_eq!(verdicts(&report), [[FULL, "good", "no"], [CHILD, "good", "no"]]);
    assert_eq!(kinds(&report), ["stray"]);
}

#[test]
fn a_folder_may_be_a_stray_also_when_it_is_empty() {
    let kit = Kit::new();
    let [full, child] = chain(&kit.store());
    fs::create_dir(child.file(&kit.store(), "_old")).unwrap();
    let report = kit.verify(3, &[]);
    assert_eq!(verdicts(&report), [[FULL, "good", "yes"], [CHILD, "good", "no"]]);
    assert_eq!(kinds(&report), ["stray"]);
    fs::create_dir(full.file(&kit.store(), "_old")).unwrap();
    fs::write(full.file(&kit.store(), "_old/file"), "").unwrap();
    let report = kit.verify(3, &[]);
    assert_eq!(kinds(&report), ["stray", "stray"]);
    assert!(
        report["findings"][0]["object"].as_str().unwrap().ends_with("_old"),
        "the folder, not what is in it"
    );
}

/// A backup with one object, stored like this.
fn stored(compression: &str, bytes: impl Fn(&[u8]) -> Vec<u8>) -> Kit {
    let kit = Kit::new();
    let backup = Backup::new(FULL, VOLUME, noise(1, 8 * BLOCK));
    backup.put(&kit.store());
    fs::write(backup.file(&kit.store(), "-00001"), bytes(&backup.image)).unwrap();
    let metadata = backup.file(&kit.store(), "_metadata");
    let text = fs::read_to_string(&metadata).unwrap();
    let told = text.replace("\"none\"", &format!("\"{compression}\""));
    assert_ne!(told, text);
    fs::write(metadata, told).unwrap();
    kit
}

// > A file of right bytes that genuine Cinder reads otherwise than it should, such as a zstd object of several frames, is told with what Cinder makes of it.
#[test]
fn zstd_frames_that_cinder_does_not_read() {
    let sized = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    let unsized_ = |bytes: &[u8]| {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let (one, two) = (2 * BLOCK, 6 * BLOCK);
    let one_sized = stored("zstd", sized);
    assert_eq!(kinds(&one_sized.verify(0, &[])), [""; 0]);
    for (kit, cinder, code) in [
        (stored("zstd", unsized_), "no", 3),
        (stored("zstd", |all| [unsized_(&all[..one]), unsized_(&all[one..])].concat()), "unknown", 0),
        (stored("zstd", |all| [sized(&all[..one]), sized(&all[one..])].concat()), "yes", 0),
        (stored("zstd", |all| [sized(&all[..two]), sized(&all[two..])].concat()), "unknown", 0),
    ] {
        let report = kit.verify(code, &[]);
        assert_eq!(kinds(&report), ["foreign_frames"]);
        assert_eq!(verdicts(&report), [[FULL, "good", cinder]], "{report}");
    }
}

#[test]
fn junk_behind_a_bz2_stream_is_told_and_harmless() {
    let bz2 = |bytes: &[u8]| {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let whole = stored("bz2", |all| [bz2(&all[..BLOCK]), bz2(&all[BLOCK..])].concat());
    assert_eq!(kinds(&whole.verify(0, &[])), [""; 0]);
    let report = stored("bz2", |all| [bz2(all), b"junk".to_vec()].concat()).verify(0, &[]);
    assert_eq!(kinds(&report), ["trailing_bytes"]);
    assert_eq!(verdicts(&report), [[FULL, "good", "yes"]]);
    assert!(report["findings"][0]["message"].as_str().unwrap().ends_with("end of its stream: 4 bytes"));
}

#[test]
fn a_parent_that_is_gone_and_what_is_left_of_it() {
    let kit = Kit::new();
    let [full, _] = chain(&kit.store());
    fs::remove_file(full.file(&kit.store(), "_metadata")).unwrap();
    let report = kit.verify(3, &[]);
    assert_eq!(verdicts(&report), [[CHILD, "unusable", "no"]]);
    assert_eq!(kinds(&report), ["backup_unusable", "in_progress"]);
    for ending in ["-00001", "-00002", "_sha256file"] {
        let file = fs::File::options().write(true).open(full.file(&kit.store(), ending)).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3 * 86_400)).unwrap();
    }
    let report = kit.verify(3, &[]);
    assert_eq!(kinds(&report), ["backup_unusable", "orphans"]);
    assert_eq!(report["findings"][1]["backups"], serde_json::json!([FULL]));
}

// > A run with `--subset` looks at its share only, and says `unchecked` of what it did not look at; the parts 1/t to t/t are
// > everything.
#[test]
fn parts_are_everything_and_each_alone_is_unchecked() {
    let kit = Kit::new();
    let [full, _] = chain(&kit.store());
    flip(&full.file(&kit.store(), "-00002"), 7);
    let (mut objects, mut found) = (0, 0);
    for part in ["1/3", "2/3", "3/3"] {
        let store = kit.store();
        let cache = kit.folder.path().join(format!("cache-{}", &part[..1]));
        let words = ["verify", store.to_str().unwrap(), "-f", "json", "--subset", part];
        let output = run(&cache, &words);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        objects += report["summary"]["objects"].as_u64().unwrap();
        found += kinds(&report).len();
        let is_hit = !kinds(&report).is_empty();
        assert_eq!(output.status.code(), Some(if is_hit { 3 } else { 0 }), "{report}");
        if !is_hit && report["summary"]["objects"] != 3 {
            assert!(
                verdicts(&report)
                    .iter()
                    .any(|[_, verdict, cinder]| [*verdict, *cinder] == ["unchecked", "unknown"])
            );
        }
    }
    assert_eq!((objects, found), (3, 1));
}

// > `--subset SIZE` takes what was verified longest ago, and what was found damaged before that.
#[test]
fn night_after_night_everything_is_verified() {
    let kit = Kit::new();
    let [full, _] = chain(&kit.store());
    let night = || kit.verify(0, &["--subset", "64K"]);
    let first = night();
    assert_eq!(first["summary"]["objects"], 1);
    assert_eq!(first["summary"]["never_verified_objects"], 3);
    assert_eq!(first["summary"]["oldest_seconds"], Value::Null);
    assert_eq!(night()["summary"]["never_verified_objects"], 2);
    night();
    assert_eq!(night()["summary"]["never_verified_objects"], 0);
    let nothing = kit.verify(0, &["--stale-after", "1d"]);
    assert_eq!(nothing["summary"]["objects"], 0);
    // One that has changed counts as never verified, and stays in the report once it was found damaged.
    flip(&full.file(&kit.store(), "-00002"), 7);
    assert_eq!(kit.verify(3, &["--stale-after", "1d"])["summary"]["objects"], 1);
    for _ in 0..2 {
        assert_eq!(kinds(&kit.verify(3, &["--subset", "1K"])), ["object_wrong"]);
    }
}

// > Stamps are advice: losing them, or finding them damaged, costs time and nothing else.
#[test]
fn without_stamps_all_is_verified_again() {
    let kit = Kit::new();
    chain(&kit.store());
    let cache = kit.folder.path().join("cache");
    assert_eq!(kit.verify(0, &[])["summary"]["never_verified_objects"], 3);
    assert_eq!(kit.verify(0, &["--stale-after", "1d"])["summary"]["objects"], 0);
    let mut folders = vec![cache.clone()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() { folders.push(entry) } else { files.push(entry) }
        }
    }
    for file in &files {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    }
    let report = kit.verify(0, &["--stale-after", "1d"]);
    assert_eq!(verdicts(&report)[1][1], "good", "{report}");
    fs::remove_dir_all(&cache).unwrap();
    assert_eq!(kit.verify(0, &["--stale-after", "1d"])["summary"]["objects"], 3);
}

// > With `--max-duration` no object is begun after that time.
#[test]
fn no_object_is_begun_when_the_time_is_up() {
    let kit = Kit::new();
    chain(&kit.store());
    let report = kit.verify(0, &["--max-duration", "0s"]);
    assert_eq!((&report["summary"]["objects"], &report["summary"]["complete"]), (&0.into(), &false.into()));
}

/// The report of the library on a store that may fail.
fn report(root: &Path, script: Vec<Rule>, is_cancelled: bool) -> Report {
    let options = VerifyOptions {
        threads: 2,
        cancel: &AtomicBool::new(is_cancelled),
        subset: Subset::All,
        fresh_since: None,
        until: None,
        stamps: None,
        seed: 0,
        root: None,
    };
    let store = Arc::new(FaultStore::new(PosixStore::open(root).unwrap(), script));
    let catalog = Catalog::open(store, CatalogOptions::default()).unwrap();
    verify(&catalog, None, &options, &|_| {}).unwrap()
}

// > A store that fails is no damage: what it does not give is unchecked, and the exit code is 1 if nothing else is wrong.
#[test]
fn what_the_store_does_not_give_is_no_damage() {
    let kit = Kit::new();
    chain(&kit.store());
    for operation in [Operation::Read, Operation::Open] {
        let failing = Rule::new(operation, Fault::Error(ErrorKind::StoreIo)).names("*1-00002");
        let report = report(&kit.store(), vec![failing], false);
        assert!(!report.is_damaged(), "{:?}", report.findings);
        assert_eq!(report.failure.as_ref().unwrap().kind(), ErrorKind::StoreIo);
        assert!(
            report.backups.iter().all(|backup| backup.verdict.name() == "unchecked"),
            "{:?}",
            report.backups
        );
        assert!(
            report.backups.iter().all(|backup| backup.cinder.name() == "unknown"),
            "{:?}",
            report.backups
        );
        assert_eq!(report.findings.len(), 1);
    }
}

#[test]
fn an_interrupted_run_calls_nothing_good() {
    let kit = Kit::new();
    chain(&kit.store());
    let report = report(&kit.store(), Vec::new(), true);
    assert!(report.is_interrupted && !report.is_damaged());
    assert!(report.backups.iter().all(|backup| backup.verdict.name() == "unchecked"), "{:?}", report.backups);
}

#[test]
fn what_a_killed_run_left_is_noted() {
    let kit = Kit::new();
    chain(&kit.store());
    fs::create_dir(kit.store().join(".cinderfs-x")).unwrap();
    let report = kit.verify(0, &[]);
    assert_eq!(kinds(&report), ["leftovers"]);
    assert_eq!(report["findings"][0]["object"], ".cinderfs-x");
}

#[test]
fn people_read_it_too() {
    let kit = Kit::new();
    let [full, _] = chain(&kit.store());
    flip(&full.file(&kit.store(), "-00001"), 5);
    let store = kit.store();
    let output = run(&kit.folder.path().join("cache"), &["verify", store.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    for words in [
        "  damaged: 32.00 KiB lost\n  would Cinder restore it: wrongly (",
        "damage object_wrong: ",
        "    volume bytes 0 to 32768\n",
        "    also in aaaaaaaa-0000-4000-8000-000000000002\n",
        "2 backups: 0 good, 2 damaged\n3 objects, 160.00 KiB verified in ",
        "1 case of damage",
        "what to do\n  - object_*: `cinderfs repair` mends what other backups of the store still",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    // Names and the chains of ids may be longer than a line; sentences are not.
    for line in text.lines().filter(|line| !line.contains("backup_") && !line.contains("name of")) {
        assert!(line.chars().count() <= 80, "{line}");
    }
    for bad in [vec!["--subset", "0/3"], vec!["--max-duration", "soon"], vec!["nobody"]] {
        let mut words = vec!["verify", store.to_str().unwrap()];
        words.extend(&bad);
        let code = run(&kit.folder.path().join("cache"), &words).status.code();
        assert_eq!(code, Some(if bad == ["nobody"] { 1 } else { 2 }), "{bad:?}");
    }
}
