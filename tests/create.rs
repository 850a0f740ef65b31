//! What does `create` refuse, what does it leave when it fails, and what does it cost?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/measured.rs"]
mod measured;
#[path = "common/new_backup.rs"]
mod new_backup;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cinderfs::ErrorKind;
use cinderfs::codec::Codec;
use cinderfs::format::points;
use cinderfs::types::{BackupId, ObjectName, VolumeId};
use cinderfs::writer::create::{Base, NewBackup, create};
use cinderfs::writer::source::changed::Changed;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use measured::run_measured;
use new_backup::{MemorySource, VOLUME, check, make, open, root_names, volume};

/// Text-like bytes that compress, with some noise.
fn mixed(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        match state % 4 {
            0 => bytes.extend(state.to_le_bytes()),
            _ => bytes.extend(format!("block {} of the volume; ", state % 1000).as_bytes()),
        }
    }
    bytes.truncate(len);
    bytes
}

fn small() -> NewBackup {
    let mut new = NewBackup::full(volume());
    new.block_bytes = 4096;
    new.object_bytes = Some(64 << 10);
    new
}

fn on(parent: &BackupId) -> NewBackup {
    NewBackup { base: Base::Backup(parent.clone()), ..small() }
}

#[track_caller]
fn refused(store: &Path, bytes: Vec<u8>, new: &NewBackup, kind: ErrorKind, word: &str) {
    let before = root_names(store);
    let error = make(store, &MemorySource::new(bytes), new).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(word), "{error}");
    assert_eq!(root_names(store), before);
}

// > What Cinder refuses is refused: an incremental with another block size than its parent's, or of a volume that has grown since.
#[test]
fn what_cinder_refuses_is_refused() {
    let store = tempfile::tempdir().unwrap();
    let store = store.path();
    let newest = NewBackup { base: Base::Newest, ..small() };
    refused(store, mixed(9000), &newest, ErrorKind::BackupNotFound, "make a full backup");
    let full = make(store, &MemorySource::new(mixed(9000)), &small()).unwrap();

    let other_blocks = NewBackup { block_bytes: 8192, ..on(&full.id) };
    refused(store, mixed(9000), &other_blocks, ErrorKind::Usage, "its hash block size is 4096 bytes");
    refused(store, mixed(12289), &on(&full.id), ErrorKind::Usage, "grown from 3 to 4 blocks");
    let other_volume = NewBackup { volume_id: VolumeId::parse("other").unwrap(), ..on(&full.id) };
    refused(store, mixed(9000), &other_volume, ErrorKind::Usage, "is of volume 99999999");
    let nobody = BackupId::parse("nobody").unwrap();
    refused(store, mixed(9000), &on(&nobody), ErrorKind::BackupNotFound, "nobody");

    // Within the last block it may grow, and it may always shrink.
    let grown = make(store, &MemorySource::new(mixed(12288)), &on(&full.id)).unwrap();
    check(store, &grown, &small(), &mixed(12288), Some(&mixed(9000)));
    let shrunk = make(store, &MemorySource::new(mixed(4096)), &on(&full.id)).unwrap();
    check(store, &shrunk, &small(), &mixed(4096), Some(&mixed(9000)));

    let digests = store.join(full.metadata_name.as_str().replace("_metadata", "_sha256file"));
    let whole = fs::read(&digests).unwrap();
    fs::write(&digests, &whole[..whole.len() / 2]).unwrap();
    refused(store, mixed(9000), &on(&full.id), ErrorKind::Usage, "its digest file is damaged");
    fs::remove_file(&digests).unwrap();
    refused(store, mixed(9000), &on(&full.id), ErrorKind::Usage, "its digest file is missing");
}

#[test]
fn a_volume_that_grew_in_gib_is_refused_by_its_size() {
    // The parent claims a GiB; its digests alone would allow it.
    let store = tempfile::tempdir().unwrap();
    let image = store.path().join("image");
    // Closed each time: an image that is open for writing is in use.
    let set_len =
        |len| fs::OpenOptions::new().append(true).create(true).open(&image).unwrap().set_len(len).unwrap();
    set_len(1 << 30);
    let folder = store.path().join("store");
    fs::create_dir(&folder).unwrap();
    run(create_command(&folder, &image, &["--volume-id", VOLUME, "--compression", "zstd"]), 0);
    set_len((1 << 30) + 1);
    let failed = run(create_command(&folder, &image, &["--volume-id", VOLUME, "--incremental"]), 2);
    assert!(stderr(&failed).contains("the volume has grown from 1 to 2 GiB since"), "{}", stderr(&failed));
}

#[test]
fn nonsense_is_refused() {
    let store = tempfile::tempdir().unwrap();
    let sizes =
        [(0, 64 << 10), (511, 511 * 8), (4096, 0), (4096, 5000), (32 << 20, 64 << 20), (4096, 1 << 60)];
    for (block_bytes, object_bytes) in sizes {
        let new = NewBackup { block_bytes, object_bytes: Some(object_bytes), ..small() };
        refused(store.path(), mixed(100), &new, ErrorKind::Usage, "bytes, expected");
    }
    for container in [".cinderfs-x", "../x"] {
        let Ok(container) = ObjectName::parse(container) else { continue };
        let new = NewBackup { container: Some(container), ..small() };
        refused(store.path(), mixed(100), &new, ErrorKind::Usage, "container");
    }
    let gone = store.path().join("gone");
    let error = cinderfs::store::posix::PosixStore::open(&gone).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreNotFound);
}

// > `--incremental` builds on the volume's newest usable backup, and a new one's `created_at`, in whole seconds of UTC, is later than those of all others of its volume, also when the clock was set back.
#[test]
fn the_newest_usable_backup_is_built_on_whatever_the_clock_says() {
    let store = tempfile::tempdir().unwrap();
    let store = store.path();
    let newest = NewBackup { base: Base::Newest, ..small() };
    let mut bytes = mixed(100_000);
    let mut made = vec![make(store, &MemorySource::new(bytes.clone()), &small()).unwrap()];
    for day in ["2026-02-03T04:05:06Z", "2020-01-01T00:00:00Z", "2026-02-03T04:05:06Z"] {
        bytes[50_000] ^= 1;
        let source = MemorySource::new(bytes.clone());
        let new =
            create(store, &open(store), &source, &newest, day.parse().unwrap(), &Default::default(), &|_| {})
                .unwrap();
        let last = made.last().unwrap();
        assert_eq!(new.parent_id.as_ref(), Some(&last.id));
        assert_eq!(new.created_at.as_second(), last.created_at.as_second() + 1);
        made.push(new);
    }
    // A broken one is passed over; no change at all makes no object.
    fs::write(store.join(made[3].metadata_name.as_str()), b"{").unwrap();
    bytes[50_000] ^= 1;
    let new = make(store, &MemorySource::new(bytes.clone()), &newest).unwrap();
    assert_eq!(new.parent_id.as_ref(), Some(&made[2].id));
    assert_eq!((new.objects, new.progress.stored_bytes), (0, 0));
    check(store, &new, &newest, &bytes, Some(&bytes));
}

#[test]
fn a_damaged_digest_of_the_parent_stores_its_block_once_more() {
    let store = tempfile::tempdir().unwrap();
    let bytes = mixed(100_000);
    let full = make(store.path(), &MemorySource::new(bytes.clone()), &small()).unwrap();
    let digests = store.path().join(full.metadata_name.as_str().replace("_metadata", "_sha256file"));
    let mut text = fs::read(&digests).unwrap();
    let first = text.windows(11).position(|window| window == b"\"sha256s\": ").unwrap() + 13;
    text[first + 72 * 5 + 20] = b'X';
    fs::write(&digests, text).unwrap();
    let child = make(store.path(), &MemorySource::new(bytes.clone()), &on(&full.id)).unwrap();
    assert_eq!((child.objects, child.progress.changed_bytes), (1, 4096));
    let mut old = bytes.clone();
    old[5 * 4096] ^= 1;
    check(store.path(), &child, &small(), &bytes, Some(&old));
}

#[test]
fn a_source_that_fails_or_shrinks_leaves_nothing() {
    let store = tempfile::tempdir().unwrap();
    let bytes = mixed(3_000_000);
    for codec in [Codec::None, Codec::Zlib, Codec::Zstd] {
        let new = NewBackup { codec, ..small() };
        let mut source = MemorySource::new(bytes.clone());
        source.bad_byte = Some(1_234_567);
        let error = make(store.path(), &source, &new).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.to_string().contains("at byte 1234567"), "{error}");

        for end in [0, 2_000_000, 3_000_000] {
            let mut source = MemorySource::new(bytes.clone());
            source.shrinks_to = Some(end);
            assert_eq!(make(store.path(), &source, &new).unwrap_err().kind(), ErrorKind::Source);
        }
        let mut source = MemorySource::new(bytes.clone());
        source.cancels_after = Some((1_000_000, Arc::default()));
        assert_eq!(make(store.path(), &source, &new).unwrap_err().kind(), ErrorKind::Interrupted);
        assert_eq!(root_names(store.path()), Vec::<String>::new());
    }
}

#[test]
fn holes_are_not_read() {
    let store = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; 8 << 20];
    bytes[3_000_000..3_000_100].fill(7);
    let source = MemorySource::new(bytes.clone());
    let new = NewBackup { object_bytes: Some(2 << 20), ..small() };
    let full = make(store.path(), &source, &new).unwrap();
    assert_eq!(source.read.load(Ordering::Relaxed), 1 << 20);
    check(store.path(), &full, &new, &bytes, None);
    let source = MemorySource::new(bytes.clone());
    let child = NewBackup { base: Base::Newest, ..new };
    assert_eq!(make(store.path(), &source, &child).unwrap().objects, 0);
    assert_eq!(source.read.load(Ordering::Relaxed), 1 << 20);
}

// > A full backup stores zeros too, so that Cinder's restore leaves nothing of what a volume held before.
#[test]
fn holes_before_between_and_behind_data_are_part_of_an_object() {
    let store = tempfile::tempdir().unwrap();
    // Windows of six pieces of a MiB; data begins at the first, the second, the fourth, and not at all.
    let mut bytes = vec![0; (24 << 20) + 700];
    for (at, byte) in [(0, 1), (7 << 20, 2), (9 << 20, 3), ((15 << 20) + 5, 4), (24 << 20, 5)] {
        bytes[at..at + 600].fill(byte);
    }
    for codec in [Codec::Zlib, Codec::Bz2, Codec::Zstd, Codec::None] {
        let new = NewBackup { object_bytes: Some(6 << 20), codec, ..small() };
        let full = make(store.path(), &MemorySource::new(bytes.clone()), &new).unwrap();
        check(store.path(), &full, &new, &bytes, None);
        // Zeros where there was data, on both sides of a piece's border, and the other way round.
        let mut edited = bytes.clone();
        edited[7 << 20..(7 << 20) + 600].fill(0);
        edited[(4 << 20) - 9000..(4 << 20) + 9000].fill(7);
        let child = NewBackup { base: Base::Backup(full.id), ..new.clone() };
        let made = make(store.path(), &MemorySource::new(edited.clone()), &child).unwrap();
        check(store.path(), &made, &child, &edited, Some(&bytes));
        let back = NewBackup { base: Base::Backup(made.id), ..new };
        let made = make(store.path(), &MemorySource::new(bytes.clone()), &back).unwrap();
        check(store.path(), &made, &back, &bytes, Some(&edited));
    }
}

#[test]
fn blocks_longer_than_a_piece_are_backed_up() {
    let store = tempfile::tempdir().unwrap();
    let bytes = mixed(9_500_000);
    for codec in [Codec::Zlib, Codec::Bz2, Codec::Zstd, Codec::None] {
        let mut new = NewBackup::full(volume());
        (new.block_bytes, new.object_bytes, new.codec) = (3 << 20, Some(6 << 20), codec);
        let full = make(store.path(), &MemorySource::new(bytes.clone()), &new).unwrap();
        check(store.path(), &full, &new, &bytes, None);
        let mut edited = bytes.clone();
        edited[7_000_000] ^= 1;
        let child = NewBackup { base: Base::Backup(full.id), ..new };
        let made = make(store.path(), &MemorySource::new(edited.clone()), &child).unwrap();
        check(store.path(), &made, &child, &edited, Some(&bytes));
    }
}

#[test]
fn at_each_restart_point_a_decoder_may_begin() {
    let store = tempfile::tempdir().unwrap();
    let bytes = mixed(9 << 20);
    let mut new = NewBackup::full(volume());
    new.object_bytes = Some(4 << 20);
    let full = make(store.path(), &MemorySource::new(bytes.clone()), &new).unwrap();
    let document: Value =
        serde_json::from_slice(&fs::read(store.path().join(full.metadata_name.as_str())).unwrap()).unwrap();
    let folder = store.path().join(full.metadata_name.as_str());
    let folder = folder.parent().unwrap();
    let mut checked = 0;
    for object in document["objects"].as_array().unwrap() {
        let (name, object) = object.as_object().unwrap().iter().next().unwrap();
        let stored = fs::read(folder.join(name)).unwrap();
        let points = points::parse(object[points::RESTART_POINTS_KEY].as_str().unwrap(), 1000).unwrap();
        for point in points {
            let mut plain = vec![0; 5000];
            let mut inflate = flate2::Decompress::new(false);
            let from = &stored[point.stored_offset as usize..];
            inflate.decompress(from, &mut plain, flate2::FlushDecompress::None).unwrap();
            let at = (object["offset"].as_u64().unwrap() + point.plain_offset) as usize;
            let plain = &plain[..inflate.total_out() as usize];
            assert!(!plain.is_empty() && plain == &bytes[at..at + plain.len()]);
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
}

#[test]
fn a_list_of_changes_spares_reading_and_is_checked_when_asked() {
    let store = tempfile::tempdir().unwrap();
    let old = mixed(9_000_123);
    let full = make(store.path(), &MemorySource::new(old.clone()), &small()).unwrap();
    let mut bytes = old.clone();
    bytes[4_000_000] ^= 1;
    bytes[7_000_000] ^= 1;
    let list = |text: &str| Some(Changed::parse(text.as_bytes(), 9_000_123).unwrap());
    let both = r#"[{"offset":3999744,"length":4096,"exists":"true"},{"offset":6999000,"length":4096,"exists":"true"}]"#;
    let one = r#"[{"offset":3999744,"length":4096,"exists":"true"}]"#;

    let source = MemorySource::new(bytes.clone());
    let new = NewBackup { changed: list(both), ..on(&full.id) };
    let made = make(store.path(), &source, &new).unwrap();
    check(store.path(), &made, &new, &bytes, Some(&old));
    // The blocks that are listed, and the last one, of which the length may have changed: 1 + 2 of 4096 bytes, and 1.
    let blocks = [3_999_744, 4_003_839, 6_999_000, 7_003_095, 9_000_122u64].map(|at| at / 4096);
    let blocks = std::collections::BTreeSet::from(blocks);
    let read: u64 = blocks.iter().map(|block| (9_000_123 - block * 4096).min(4096)).sum();
    assert_eq!(source.read.load(Ordering::Relaxed), read);
    assert_eq!(made.progress.unlisted_bytes, 0);

    let new = NewBackup { changed: list(one), paranoid: true, ..on(&full.id) };
    let made = make(store.path(), &MemorySource::new(bytes.clone()), &new).unwrap();
    check(store.path(), &made, &new, &bytes, Some(&old));
    assert_eq!(made.progress.unlisted_bytes, 4096);

    let new = NewBackup { changed: list(one), ..small() };
    refused(store.path(), bytes, &new, ErrorKind::Usage, "give --incremental or --parent");
}

// > A source that is in use is refused, unless `--force` is given.
#[test]
fn a_source_in_use_is_refused_unless_forced() {
    let (_folder, store, image) = world(&mixed(300_000));
    let writer = fs::OpenOptions::new().write(true).open(&image).unwrap();
    let failed = run(create_command(&store, &image, &["--snapshot", "none"]), 1);
    assert!(stderr(&failed).contains("is in use"), "{}", stderr(&failed));
    assert_eq!(root_names(&store), Vec::<String>::new());
    let forced = run(create_command(&store, &image, &["--snapshot", "none", "--force"]), 0);
    assert!(stderr(&forced).contains("warning: source"), "{}", stderr(&forced));
    drop(writer);
    run(create_command(&store, &image, &["--snapshot", "none"]), 0);
    run(create_command(&store, &image, &["--snapshot", "magic"]), 2);
    run(create_command(&store, &image, &["--paranoid"]), 2);
}

fn create_command(store: &Path, source: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.arg("create").arg(store).arg(source).args(words);
    command.env_remove("CINDERFS_LOG").env("CINDERFS_CACHE_DIR", "/nonexistent/cache");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn run(mut command: Command, code: i32) -> Output {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A folder with a store and an image.
fn world(bytes: &[u8]) -> (TempDir, std::path::PathBuf, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (store, image) = (folder.path().join("store"), folder.path().join("disk.img"));
    fs::create_dir(&store).unwrap();
    fs::write(&image, bytes).unwrap();
    (folder, store, image)
}

#[test]
fn the_program_prints_the_id_and_tells_the_rest_on_stderr() {
    let (_folder, store, image) = world(&mixed(300_000));
    let words = ["--name", "mon", "--property", "os=linux", "--container", "team/one", "--progress", "json"];
    let output = run(create_command(&store, &image, &words), 0);
    let id = String::from_utf8(output.stdout.clone()).unwrap();
    let id = id.strip_suffix('\n').unwrap();
    let text = stderr(&output);
    let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(summary["summary"]["backup_id"], id);
    assert_eq!(summary["summary"]["changed_bytes"], 300_000);

    let catalog = open(&store);
    let snapshot = catalog.snapshot();
    let entry = snapshot.get(id).unwrap();
    assert_eq!((entry.name.as_deref(), entry.container.as_str()), (Some("mon"), "team/one"));
    assert_eq!((entry.volume_name.as_deref(), entry.volume_size_gib), (Some("disk.img"), Some(1)));
    let document = fs::read_to_string(store.join(entry.metadata_name.as_str())).unwrap();
    assert!(document.contains(r#"\"volume-metadata\": {\"os\": \"linux\"}"#), "{document}");

    let output = run(create_command(&store, &image, &["--parent", "mon", "--container", "team/one"]), 0);
    let text = stderr(&output);
    assert!(text.starts_with(&format!("incremental backup on {id} of ")), "{text}");
    assert!(text.contains("0 B stored as 0 B in 0 objects"), "{text}");
}

#[test]
fn exit_codes_are_those_of_the_readme() {
    let (folder, store, image) = world(&mixed(1000));
    let gone = folder.path().join("gone");
    run(create_command(&gone, &image, &[]), 10);
    run(create_command(&store, &gone, &[]), 2);
    run(create_command(&store, &image, &["--incremental"]), 1);
    for words in [
        ["--object-size", "1000"],
        ["--block-size", "0"],
        ["--block-size", "x"],
        ["--container", "../x"],
        ["--container", ""],
        ["--volume-id", "a/b"],
        ["--property", "novalue"],
        ["--compression", "lzma"],
    ] {
        run(create_command(&store, &image, &words), 2);
    }
    run(create_command(&store, &store, &[]), 2);
    assert_eq!(root_names(&store), Vec::<String>::new());
}

/// A run that takes a while: the image is long, and of noise.
fn long_run(store: &Path, folder: &Path) -> Child {
    let image = folder.join("long.img");
    let file = File::create(&image).unwrap();
    let noise = mixed(16 << 20);
    for i in 0..16 {
        file.write_all_at(&noise, i * (noise.len() as u64 + 12345)).unwrap();
    }
    drop(file);
    let mut command = create_command(store, &image, &["--compression", "bz2", "--object-size", "4M"]);
    command.arg("--threads=2").spawn().unwrap()
}

#[track_caller]
fn wait_for_objects(store: &Path) {
    let begun = Instant::now();
    let hidden = || root_names(store).into_iter().find(|name| name.starts_with(".cinderfs-"));
    let has_parts =
        |name: String| fs::read_dir(store.join(name).join("parts")).is_ok_and(|parts| parts.count() > 4);
    while !hidden().is_some_and(has_parts) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", root_names(store));
        std::thread::sleep(Duration::from_millis(5));
    }
}

// > A run that fails, is interrupted, finds the disk full or its quota used up says why, and leaves nothing in sight.
#[test]
fn a_run_that_is_ended_leaves_nothing_in_sight() {
    let (folder, store, image) = world(&mixed(100_000));
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::TERM, Some(143)), (Signal::KILL, None)] {
        let mut child = long_run(&store, folder.path());
        wait_for_objects(&store);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), code);
        let mut text = String::new();
        child.stderr.unwrap().read_to_string(&mut text).unwrap();
        let mut printed = String::new();
        child.stdout.unwrap().read_to_string(&mut printed).unwrap();
        assert_eq!(printed, "", "{text}");
        assert_eq!(open(&store).snapshot().entries().count(), 0);
        if code.is_some() {
            assert!(text.contains("interrupted"), "{text}");
            assert_eq!(root_names(&store), Vec::<String>::new());
        }
    }
    // What the killed one left goes with the next run.
    run(create_command(&store, &image, &[]), 0);
    assert!(root_names(&store).iter().all(|name| !name.starts_with('.')), "{:?}", root_names(&store));
}

// > Any number of runs may write into one store, and one container, at once.
#[test]
fn two_at_once_do_not_meet() {
    let (_folder, store, image) = world(&mixed(2_000_000));
    run(create_command(&store, &image, &["--container", "shared"]), 0);
    let start = || {
        let words = ["--incremental", "--container", "shared", "--object-size", "64K"];
        create_command(&store, &image, &words).spawn().unwrap()
    };
    fs::write(&image, mixed(2_000_000).iter().map(|byte| byte ^ 1).collect::<Vec<u8>>()).unwrap();
    let runs: Vec<_> = (0..4).map(|_| start()).collect();
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let catalog = open(&store);
    let wanted = fs::read(&image).unwrap();
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.entries().count(), 5);
    for entry in snapshot.entries().filter(|entry| entry.parent_id.is_some()) {
        let mut read = vec![0; wanted.len()];
        let mut at = 0;
        let image = catalog.image(entry).unwrap();
        while at < read.len() {
            at += image.read_at(&mut read[at..], at as u64).unwrap();
        }
        assert!(read == wanted);
    }
}

// > A run takes at most 256 MiB of memory, whatever the size of the volume and of its objects; where it writes into an object store 400 MiB,
// > and 1 GiB with the largest objects that one may ask for there, of 256 MiB.
#[test]
fn memory_is_bounded_whatever_the_size_of_volume_and_object() {
    let folder = tempfile::tempdir().unwrap();
    let (store, image) = (folder.path().join("store"), folder.path().join("disk.img"));
    fs::create_dir(&store).unwrap();
    let file = File::create(&image).unwrap();
    // Sparse, so that 32 GiB cost a second; with data in places.
    file.set_len(32 << 30).unwrap();
    let data = mixed(48 << 20);
    for at in [0, 5 << 30, (32 << 30) - data.len() as u64] {
        file.write_all_at(&data, at).unwrap();
    }
    drop(file);
    for words in [
        &["--compression", "zstd", "--object-size", "8G"][..],
        &["--compression", "zlib"],
        &["--compression", "zstd", "--incremental"],
        &["--compression", "none", "--threads", "64"],
    ] {
        let (output, peak) = run_measured(create_command(&store, &image, words));
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(peak > 1 << 20 && peak < 256 << 20, "{words:?}: {} MiB", peak >> 20);
    }
}
