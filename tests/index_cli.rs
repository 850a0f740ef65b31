//! Does `cinderfs index` do what it says, also when it is interrupted, killed or run twice at once?

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/mountpoint_guard.rs"]
mod mountpoint_guard;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use cinderfs::cache_dir::CacheDir;
use cinderfs::cache_dir::seek_indexes::SeekIndexStore;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::frontend::index::index;
use cinderfs::store::posix::PosixStore;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use mountpoint_guard::is_mountpoint;
use store_kit::{BackupSpec, Packing};
use volume::{MIB, Random, full, id, mixed};

const ZLIB: Packing = Packing::Zlib { level: 6, junk: 0 };

/// A store on disk and a cache directory.
struct Kit {
    folder: TempDir,
    specs: Vec<BackupSpec>,
}

impl Kit {
    fn new(backups: &[(&str, usize)]) -> Self {
        let folder = tempfile::Builder::new().prefix("cinderfs-test-").tempdir().unwrap();
        let specs: Vec<_> = backups
            .iter()
            .enumerate()
            .map(|(n, &(name, len))| full(name, &mixed(n as u64 + 1, len), ZLIB))
            .collect();
        let kit = Self { folder, specs };
        kit.specs.iter().for_each(|spec| spec.write_to_folder(&kit.store()));
        kit
    }

    fn store(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }

    fn cache(&self) -> std::path::PathBuf {
        self.folder.path().join("cache")
    }

    fn plain(&self, n: usize) -> &[u8] {
        &self.specs[n].objects[0].plain
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        command.args(words).env("CINDERFS_CACHE_DIR", self.cache()).env_remove("CINDERFS_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// `cinderfs index STORE WORDS --progress json`, which must end with `code`; its summary.
    #[track_caller]
    fn index(&self, words: &[&str], code: i32) -> Value {
        let store = self.store();
        let mut all = vec!["index", store.to_str().unwrap()];
        all.extend(words);
        all.extend(["--progress", "json"]);
        let output = self.run(&all);
        assert_eq!(output.status.code(), Some(code), "{all:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "index printed to stdout");
        summary(&output).unwrap_or_else(|| panic!("no summary in {}", text(&output.stderr)))
    }

    /// What `list --long -c Indexed` says of each backup, by id.
    #[track_caller]
    fn indexed(&self, n: usize) -> u64 {
        let store = self.store();
        let words = ["list", store.to_str().unwrap(), "--long", "-c", "ID", "-c", "Indexed", "-f", "json"];
        let output = self.run(&words);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
        let row = rows.as_array().unwrap().iter().find(|row| row["ID"] == self.specs[n].id.as_str()).unwrap();
        row["Indexed"].as_u64().unwrap_or_else(|| panic!("no number: {row}"))
    }

    /// Compares a restored image.
    #[track_caller]
    fn check_restored(&self, n: usize, path: &Path) {
        assert!(fs::read(path).unwrap() == self.plain(n), "the restored image of backup {n} is wrong");
        fs::remove_file(path).unwrap();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn summary(output: &Output) -> Option<Value> {
    let last =
        text(&output.stderr).lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok())?;
    last.get("summary").cloned()
}

/// All that is in a folder, with sizes and times of change.
fn listing(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stat = fs::symlink_metadata(&path).unwrap();
        found.push(format!(
            "{path:?} {} {} {} {}",
            stat.len(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.ctime_nsec()
        ));
        if stat.is_dir() {
            found.extend(listing(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn all_or_named_backups_are_indexed_once_and_nothing_is_written_to_the_store() {
    let kit = Kit::new(&[("a", 9 * MIB), ("b", 7 * MIB), ("c", MIB)]);
    let before = listing(&kit.store());
    assert_eq!([0, 1, 2].map(|n| kit.indexed(n)), [0, 0, 100], "before anything is indexed");
    let named = kit.index(&[&id("b")], 0);
    assert_eq!(named["backups"], 1, "{named}");
    assert_eq!(named["known_bytes"], 0, "{named}");
    assert_eq!(named["plain_bytes"], 7 * MIB, "{named}");
    assert_eq!([0, 1, 2].map(|n| kit.indexed(n)), [0, 100, 100], "after one was indexed");
    let all = kit.index(&[], 0);
    // The small one needs none.
    assert_eq!((&all["backups"], &all["objects"]), (&3.into(), &2.into()), "{all}");
    assert_eq!(all["plain_bytes"], 16 * MIB, "{all}");
    assert_eq!(all["known_bytes"], 7 * MIB, "what is known is not looked for again: {all}");
    assert_eq!([0, 1, 2].map(|n| kit.indexed(n)), [100; 3], "after all were indexed");
    let again = kit.index(&[], 0);
    assert_eq!(again["known_bytes"], 16 * MIB, "{again}");
    assert_eq!(listing(&kit.store()), before, "the store was written to");
    // For people.
    let store = kit.store();
    let output = kit.run(&["index", store.to_str().unwrap()]);
    let said = text(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(said.contains("indexed already: 3 backups, 2 large compressed objects, 16.00 MiB\n"), "{said}");
}

#[test]
fn wrong_calls_say_so() {
    let kit = Kit::new(&[("a", MIB)]);
    let store = kit.store();
    let store = store.to_str().unwrap();
    for (words, code, said) in [
        (vec!["index"], 2, "STORE"),
        (vec!["index", "/nonexistent-store"], 10, "/nonexistent-store"),
        (vec!["index", store, "ffffffff"], 1, "ffffffff"),
        (vec!["index", store, "--threads", "0"], 2, "--threads"),
        (vec!["index", store, "--volume", "nobody"], 1, "nobody"),
    ] {
        let output = kit.run(&words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(said), "{words:?}: {}", text(&output.stderr));
    }
    // Without a place to keep them there is nothing to be done.
    fs::remove_dir_all(kit.cache()).unwrap();
    fs::write(kit.cache(), "a file").unwrap();
    let output = kit.run(&["index", store]);
    assert!(!output.status.success(), "an index run without a cache directory succeeded");
    assert!(text(&output.stderr).contains("CINDERFS_CACHE_DIR"), "{}", text(&output.stderr));
}

/// Cinder counts the files of a container, and a store is only ever read.
#[test]
fn a_cache_directory_inside_the_store_is_refused() {
    let kit = Kit::new(&[("a", MIB)]);
    let store = kit.store();
    let before = listing(&store);
    let cache = store.join("cache");
    let target = kit.cache().join("target");
    let (store_word, target_word) = (store.to_str().unwrap(), target.to_str().unwrap());
    for words in [
        vec!["index", store_word],
        vec!["list", "--long", store_word],
        vec!["restore", store_word, "latest", target_word],
        vec!["mount", "-f", store_word, "/nonexistent"],
        vec!["hydrate", store_word, "latest"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        let output = command.args(&words).env("CINDERFS_CACHE_DIR", &cache).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("inside the store"), "{words:?}: {}", text(&output.stderr));
    }
    assert_eq!(listing(&store), before, "nothing is written into the store");
}

#[test]
fn a_damaged_object_is_told_and_what_was_found_is_kept() {
    let kit = Kit::new(&[("a", 24 * MIB), ("b", 7 * MIB)]);
    let path = kit.store().join(kit.specs[0].object_path(0));
    let stored = fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(stored / 2).unwrap();
    for round in 0..2 {
        let summary = kit.index(&[], 3);
        let failed = summary["failed_objects"].as_array().unwrap();
        assert_eq!(failed.len(), 1, "round {round}: {summary}");
        assert!(failed[0].as_str().unwrap().contains(&id("a")), "round {round}: {summary}");
        assert_eq!(summary["objects"], 1, "round {round}: the other object is fine: {summary}");
    }
    let percent = kit.indexed(0);
    assert!((20..80).contains(&percent), "{percent} percent of an object whose second half is gone");
    assert_eq!(kit.indexed(1), 100);
}

/// Runs `index` with a cache directory on a file system of its own, of `size`, into which `fill` is copied first; then lists
/// what was kept.
fn index_on_a_small_disk(kit: &Kit, size: &str, fill: &str) -> Output {
    fs::create_dir(kit.cache()).unwrap();
    let script = "mount -t tmpfs -o size=\"$4\",mode=700 tmpfs \"$1\" && head -c \"$5\" /dev/zero > \"$1/fill\" && \
                  CINDERFS_CACHE_DIR=\"$1/c\" \"$2\" index \"$3\" --threads 1; code=$?; ls \"$1/c/seek-indexes\"; exit $code";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"]);
    command.arg(kit.cache()).arg(env!("CARGO_BIN_EXE_cinderfs")).arg(kit.store()).args([size, fill]);
    command.output().unwrap()
}

/// Needs root, for a file system of its own.
#[test]
fn a_full_disk_is_told_before_anything_is_decoded() {
    let kit = Kit::new(&[("a", 9 * MIB)]);
    let output = index_on_a_small_disk(&kit, "1m", "1044480");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/c/seek-indexes\": No space left on device"), "{said}");
    assert!(said.contains("CINDERFS_CACHE_DIR"), "{said}");
    assert!(!said.contains("indexed:"), "{said}");
}

/// All indexes together may take a twentieth of the disk, which here is enough for the smallest of three.
#[test]
fn an_index_that_was_not_kept_is_told_and_what_was_kept_stays() {
    let kit = Kit::new(&[("a", 5 * MIB), ("b", 41 * MIB), ("c", 42 * MIB)]);
    let output = index_on_a_small_disk(&kit, "360k", "0");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the index of 2 of 3 decoded objects was not kept in "), "{said}");
    assert!(said.contains("/c/seek-indexes\""), "{said}");
    let kept = text(&output.stdout).lines().count();
    assert_eq!(kept, 1, "{said}");
}

#[test]
fn unusable_backups_are_named_and_the_others_indexed() {
    let kit = Kit::new(&[("a", 9 * MIB), ("b", 7 * MIB)]);
    let metadata = kit.store().join(kit.specs[0].object_path(0).replace("-00001", "_metadata"));
    fs::write(&metadata, "{").unwrap();
    let store = kit.store();
    let store = store.to_str().unwrap();
    // Its id is not to be read any more, so it is called after its folder or file.
    let listed = kit.run(&["list", store, "-f", "value", "-c", "ID", "--status", "error"]);
    let broken = text(&listed.stdout).trim().to_owned();
    assert_eq!(broken.lines().count(), 1, "{broken}");
    let all = kit.index(&[], 3);
    assert_eq!((&all["backups"], &all["objects"]), (&1.into(), &1.into()), "{all}");
    assert_eq!(all["unusable_backups"], serde_json::json!([broken]), "{all}");
    assert_eq!(kit.indexed(1), 100);
    let output = kit.run(&["index", store]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(&format!("backup {broken} cannot be indexed: ")), "{said}");
    // Also when they are named; but one alone is a failure.
    assert_eq!(kit.run(&["index", store, &broken, &id("b")]).status.code(), Some(3));
    assert_eq!(kit.run(&["index", store, &broken]).status.code(), Some(1));
}

#[test]
fn the_column_indexed_needs_no_long() {
    let kit = Kit::new(&[("a", 9 * MIB)]);
    let store = kit.store();
    let list = |words: &[&str]| {
        let mut all = vec!["list", store.to_str().unwrap(), "-f", "csv"];
        all.extend(words);
        let output = kit.run(&all);
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    assert_eq!(list(&["-c", "indexed"]), "\"Indexed\"\n0\n");
    assert!(!list(&[]).contains("Indexed"));
    assert!(list(&["--long"]).contains("Indexed"));
}

/// Steps of tens of megabytes would make the rate and the time left jump.
#[test]
fn progress_is_told_while_bytes_pass_and_counts_what_is_decoded() {
    let kit = Kit::new(&[("a", 160 * MIB), ("b", 7 * MIB)]);
    let cache = CacheDir::open(&kit.cache()).unwrap();
    let run = || {
        let store = Arc::new(PosixStore::open(&kit.store()).unwrap());
        let indexes = Some(Arc::new(SeekIndexStore::open(&cache, 1 << 30).unwrap()));
        let catalog =
            Catalog::open(store, CatalogOptions { seek_indexes: indexes, ..CatalogOptions::default() });
        let catalog = catalog.unwrap();
        let snapshot = catalog.snapshot();
        let images: Vec<_> = snapshot.entries().map(|entry| catalog.image(entry).unwrap()).collect();
        let images: Vec<_> = images.iter().map(|image| &**image).collect();
        let told = std::sync::Mutex::new(Vec::new());
        index(&images, 1, &AtomicBool::new(false), &|progress| told.lock().unwrap().push(progress)).unwrap();
        told.into_inner().unwrap()
    };
    let told = run();
    let last = told.last().unwrap();
    assert_eq!((last.done_bytes, last.total_bytes), (167 * MIB as u64, 167 * MIB as u64));
    assert!(told.windows(2).all(|pair| pair[0].done_bytes <= pair[1].done_bytes), "{told:?}");
    let is_between = |done: u64| done < last.done_bytes && !done.is_multiple_of(32 * MIB as u64);
    assert!(told.iter().any(|progress| is_between(progress.done_bytes)), "{told:?}");
    // What is known is no work.
    let again = *run().last().unwrap();
    assert_eq!((again.done_bytes, again.total_bytes), (0, 0));
}

/// Starts an index run that takes a while and waits until it has begun.
fn spawn_slow(kit: &Kit) -> Child {
    let store = kit.store();
    let mut command =
        kit.command(&["index", store.to_str().unwrap(), "--threads", "1", "--progress", "json"]);
    command.spawn().unwrap()
}

#[test]
fn an_interrupted_run_keeps_what_it_found() {
    let kit = Kit::new(&[("a", 160 * MIB)]);
    let child = spawn_slow(&kit);
    // The first points are saved after some 64 MiB.
    let indexes = kit.cache().join("seek-indexes");
    let has_saved = || fs::read_dir(&indexes).is_ok_and(|mut files| files.next().is_some());
    let started = Instant::now();
    while !has_saved() {
        assert!(started.elapsed() < Duration::from_secs(60), "no points were saved within a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("kept"), "{said}");
    let rest = kit.index(&[], 0);
    let known = rest["known_bytes"].as_u64().unwrap();
    assert!(known > 0, "nothing was kept: {rest}");
    assert_eq!(kit.indexed(0), 100);
}

/// One line for a daemon, whatever it opens, and in words that say what it means.
#[test]
fn a_cache_directory_of_no_use_is_told_once() {
    let kit = Kit::new(&[("a", 3 * MIB), ("b", 3 * MIB)]);
    fs::write(kit.cache(), "a file").unwrap();
    let log = kit.folder.path().join("log");
    let mount = Mount::with_log(&kit, File::create(&log).unwrap().into());
    for n in 0..2 {
        mount.check_at_random(&kit, n, 3, 1);
    }
    drop(mount);
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(
        log.contains("will be slow again in the next run") && log.contains("CINDERFS_CACHE_DIR"),
        "{log}"
    );
    assert_eq!(log.matches(kit.cache().to_str().unwrap()).count(), 1, "{log}");
}

/// A mount in the foreground that ends with its value.
struct Mount {
    folder: TempDir,
    child: Child,
}

impl Mount {
    #[track_caller]
    fn new(kit: &Kit) -> Self {
        Self::with_log(kit, Stdio::null())
    }

    #[track_caller]
    fn with_log(kit: &Kit, log: Stdio) -> Self {
        assert!(Path::new("/dev/fuse").exists(), "this test mounts, which needs /dev/fuse");
        let folder = tempfile::Builder::new().prefix("cinderfs-test-").tempdir().unwrap();
        let store = kit.store();
        let words = ["mount", "-f", store.to_str().unwrap(), folder.path().to_str().unwrap()];
        let child = kit.command(&words).stderr(log).spawn().unwrap();
        let mount = Self { folder, child };
        let started = Instant::now();
        while !is_mountpoint(mount.folder.path()) {
            assert!(started.elapsed() < Duration::from_secs(20), "no mount within 20 s");
            std::thread::sleep(Duration::from_millis(10));
        }
        mount
    }

    #[track_caller]
    fn check_at_random(&self, kit: &Kit, n: usize, reads: usize, seed: u64) {
        let path = self.folder.path().join("backups").join(&kit.specs[n].id).join("volume.img");
        let (image, plain) = (File::open(path).unwrap(), kit.plain(n));
        let mut random = Random::new(seed);
        for _ in 0..reads {
            let len = 1 + random.below(200_000);
            let at = random.below(plain.len() - len);
            let mut buf = vec![0; len];
            image.read_exact_at(&mut buf, at as u64).unwrap_or_else(|error| panic!("{len} at {at}: {error}"));
            assert!(buf == plain[at..at + len], "wrong bytes through the mount: {len} at {at}");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let path = self.folder.path();
        let unmount = || {
            let umount =
                Command::new(env!("CARGO_BIN_EXE_cinderfs")).arg("umount").arg("--lazy").arg(path).output();
            umount.is_ok_and(|output| output.status.success())
        };
        let started = Instant::now();
        let mut unmounted = unmount();
        while !matches!(self.child.try_wait(), Ok(Some(_))) {
            if started.elapsed() > Duration::from_secs(20) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
                assert!(std::thread::panicking(), "the mount did not end");
                return;
            }
            if !unmounted {
                unmounted = unmount();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_killed_run_leaves_a_cache_that_serves_and_goes_on() {
    let kit = Kit::new(&[("a", 96 * MIB)]);
    let mut random = Random::new(u64::from(std::process::id()));
    let mut killed = 0;
    for round in 0..6 {
        let mut child = spawn_slow(&kit);
        std::thread::sleep(Duration::from_millis(20 + random.below(200) as u64));
        if matches!(child.try_wait(), Ok(None)) {
            killed += 1;
        }
        let _ = child.kill();
        child.wait().unwrap();
        Mount::new(&kit).check_at_random(&kit, 0, 10, round);
    }
    assert!(killed > 0, "each run ended before it was killed: the test shows nothing");
    let rest = kit.index(&[], 0);
    let known = rest["known_bytes"].as_u64().unwrap();
    assert!(known > 0, "nothing was known after {killed} killed runs and mounts: {rest}");
    assert_eq!(kit.indexed(0), 100);
    let output = kit.run(&[
        "restore",
        kit.store().to_str().unwrap(),
        &kit.specs[0].id,
        kit.folder.path().join("out").to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    kit.check_restored(0, &kit.folder.path().join("out"));
}

#[test]
fn processes_that_share_a_cache_directory_do_not_disturb_each_other() {
    let kit = Kit::new(&[("a", 24 * MIB), ("b", 24 * MIB)]);
    let store = kit.store();
    let store = store.to_str().unwrap();
    let mounts = [Mount::new(&kit), Mount::new(&kit)];
    std::thread::scope(|scope| {
        for (seed, mount) in mounts.iter().enumerate() {
            for n in 0..2 {
                let kit = &kit;
                scope.spawn(move || mount.check_at_random(kit, n, 60, (seed * 2 + n) as u64));
            }
        }
        for n in 0..2 {
            let kit = &kit;
            scope.spawn(move || {
                let target = kit.folder.path().join(format!("out{n}"));
                let output = kit.run(&["restore", store, &kit.specs[n].id, target.to_str().unwrap()]);
                assert!(output.status.success(), "{}", text(&output.stderr));
                kit.check_restored(n, &target);
            });
            scope.spawn(move || {
                for _ in 0..2 {
                    kit.index(&[], 0);
                }
            });
        }
    });
    drop(mounts);
    assert_eq!([0, 1].map(|n| kit.indexed(n)), [100; 2], "what all of them found is kept");
}

#[test]
fn the_summary_stands_on_a_line_of_its_own() {
    let kit = Kit::new(&[("a", 4 * MIB)]);
    let store = kit.store();
    let command =
        format!("stty rows 24 cols 80; exec {} index {}", env!("CARGO_BIN_EXE_cinderfs"), store.display());
    let output = Command::new("script")
        .args(["-qefc", &command, "/dev/null"])
        .env("TERM", "xterm")
        .env("CINDERFS_CACHE_DIR", kit.cache())
        .env_remove("CINDERFS_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains('%'), "{text:?}");
    let before = text.split("indexed: ").next().unwrap().rsplit(['\r', '\n']).next().unwrap();
    assert!(!before.contains(['%', '█', '░']), "{text:?}");
}
