//! Does every store behave alike, and does none let a name lead out of it?

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests; a panic is the report")]

#[path = "common/conformance.rs"]
mod conformance;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cinderfs::ErrorKind;
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule, SCRIBBLE};
use cinderfs::store::memory::MemoryStore;
use cinderfs::store::posix::{PosixStore, Resolution};
use cinderfs::store::{Ownership, Store, read_exact_at};
use tempfile::TempDir;

use conformance::{Bench, conforms, listed, name, read};

/// A directory as a store.
struct Posix {
    store: PosixStore,
    folder: TempDir,
}

impl Posix {
    fn new(resolution: Resolution) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = PosixStore::open_with(&root_in(&folder), resolution).unwrap();
        Self { store, folder }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Beside the store, where no name may lead.
    fn outside(&self) -> &Path {
        self.folder.path()
    }
}

fn root_in(folder: &TempDir) -> PathBuf {
    let root = folder.path().join("store");
    fs::create_dir(&root).unwrap();
    root
}

impl Bench for Posix {
    fn store(&self) -> &dyn Store {
        &self.store
    }
    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = self.folder.path().join("new");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, path).unwrap();
    }
    fn remove(&self, name: &str) {
        fs::remove_file(self.root().join(name)).unwrap();
    }
}

impl Bench for MemoryStore {
    fn store(&self) -> &dyn Store {
        self
    }
    fn put(&self, object: &str, bytes: &[u8]) {
        self.insert(name(object), bytes);
    }
    fn remove(&self, object: &str) {
        assert!(MemoryStore::remove(self, &name(object)));
    }
}

impl<S: Bench + Store> Bench for FaultStore<S> {
    fn store(&self) -> &dyn Store {
        self
    }
    fn put(&self, name: &str, bytes: &[u8]) {
        self.inner().put(name, bytes);
    }
    fn remove(&self, name: &str) {
        Bench::remove(self.inner(), name);
    }
}

conforms!(posix_kernel, Posix::new(Resolution::Kernel));
conforms!(posix_portable, Posix::new(Resolution::Portable));
conforms!(memory, MemoryStore::new());
conforms!(fault_without_script, FaultStore::new(MemoryStore::new(), []));

const BOTH: [Resolution; 2] = [Resolution::Kernel, Resolution::Portable];

fn open_error(store: &dyn Store, object: &str) -> cinderfs::Error {
    store.open(&name(object)).map(drop).expect_err(object)
}

// -- POSIX: links --

#[test]
fn no_symbolic_link_leads_out_of_the_store() {
    for resolution in BOTH {
        let bench = Posix::new(resolution);
        fs::write(bench.outside().join("secret"), "secret").unwrap();
        fs::create_dir(bench.root().join("c")).unwrap();
        let link = |to: &Path, from: &str| symlink(to, bench.root().join(from)).unwrap();
        link(&bench.outside().join("secret"), "absolute");
        link(Path::new("/proc/self/root/etc/passwd"), "proc");
        link(Path::new("../secret"), "relative");
        link(Path::new("../../secret"), "c/relative");
        link(Path::new("c/../../secret"), "winding");
        link(bench.outside(), "folder");
        link(Path::new(".."), "up");
        // Stays inside by its text, but is absolute: where the store is seen from elsewhere it would lead out.
        link(&bench.root().join("c"), "inside_but_absolute");
        let escapes = ["absolute", "proc", "relative", "c/relative", "winding", "folder/secret", "up/secret"];
        for object in escapes.into_iter().chain(["inside_but_absolute/x"]) {
            let error = open_error(&bench.store, object);
            assert_eq!(error.kind(), ErrorKind::UnsafeName, "{resolution:?} {object}: {error}");
            assert!(error.to_string().contains(&format!("{object:?}")), "{error}");
        }
        // A listing reports those that match, and goes through no folder link.
        let listing = bench.store.list("relative").unwrap();
        assert!(listing.objects.is_empty(), "{:?}", listing.objects);
        let mut reported: Vec<_> =
            listing.unreadable.iter().map(|(what, error)| (&**what, error.kind())).collect();
        reported.sort_unstable_by_key(|(what, _)| *what);
        assert_eq!(reported, [("c/relative", ErrorKind::UnsafeName), ("relative", ErrorKind::UnsafeName)]);
        assert!(bench.store.list("secret").unwrap().objects.is_empty());
    }
}

#[test]
fn a_symbolic_link_inside_the_store_is_followed_by_the_kernel_and_refused_without() {
    let bench = Posix::new(Resolution::Kernel);
    bench.put("c/real", b"content");
    symlink("../c/real", bench.root().join("c/link_metadata")).unwrap();
    symlink("c", bench.root().join("d")).unwrap();
    symlink("loop_metadata", bench.root().join("loop_metadata")).unwrap();
    symlink("nowhere", bench.root().join("dangling_metadata")).unwrap();
    assert_eq!(read(&bench.store, "c/link_metadata").unwrap(), b"content");
    assert_eq!(read(&bench.store, "d/real").unwrap(), b"content");
    assert_eq!(open_error(&bench.store, "loop_metadata").kind(), ErrorKind::UnsafeName);

    let listing = bench.store.list("_metadata").unwrap();
    let found: Vec<_> = listing.objects.iter().map(|o| (o.name.as_str(), o.stat.len_bytes)).collect();
    assert_eq!(found, [("c/link_metadata", 7)], "no object twice through the folder link");
    let mut kinds: Vec<_> = listing.unreadable.iter().map(|(what, error)| (&**what, error.kind())).collect();
    kinds.sort_unstable_by_key(|(what, _)| *what);
    let expected =
        [("dangling_metadata", ErrorKind::ObjectNotFound), ("loop_metadata", ErrorKind::UnsafeName)];
    assert_eq!(kinds, expected);

    let portable = PosixStore::open_with(&bench.root(), Resolution::Portable).unwrap();
    for object in ["c/link_metadata", "d/real"] {
        assert_eq!(open_error(&portable, object).kind(), ErrorKind::UnsafeName, "{object}");
    }
    assert_eq!(read(&portable, "c/real").unwrap(), b"content");
}

#[test]
fn links_of_proc_are_refused() {
    for resolution in BOTH {
        let store = PosixStore::open_with(Path::new("/proc/self"), resolution).unwrap();
        // `exe` is a link to a regular file that leads there without a path.
        for object in ["exe", "root/etc/passwd", "cwd/Cargo.toml"] {
            assert!(Path::new("/proc/self").join(object).is_file(), "{object}: the test's own premise");
            let error = open_error(&store, object);
            assert_eq!(error.kind(), ErrorKind::UnsafeName, "{resolution:?} {object}: {error}");
        }
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_folder_that_becomes_a_link_while_it_is_walked_leads_nowhere() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    for resolution in BOTH {
        let bench = Posix::new(resolution);
        fs::create_dir(bench.outside().join("out")).unwrap();
        fs::write(bench.outside().join("out/o"), "secret, and longer").unwrap();
        bench.put("c/o", b"inside");
        let (folder, link) = (bench.root().join("c"), bench.root().join("l"));
        symlink("../out", &link).unwrap();
        let stop = AtomicBool::new(false);
        let (mut inside, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            let _stop_also_after_a_panic = StopOnDrop(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(CWD, &folder, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                }
            });
            let until = Instant::now() + Duration::from_secs(5);
            while (inside < 200 || refused < 200) && Instant::now() < until {
                match bench.store.open(&name("c/o")) {
                    Ok(source) => {
                        let mut buf = [0; 6];
                        read_exact_at(&*source, &mut buf, 0).unwrap();
                        assert_eq!(&buf, b"inside");
                        inside += 1;
                    }
                    Err(_) => refused += 1,
                }
                for object in bench.store.list("o").unwrap().objects {
                    assert!(["c/o", "l/o"].contains(&object.name.as_str()));
                    assert_eq!(object.stat.len_bytes, 6);
                }
            }
        });
        assert!(inside >= 200 && refused >= 200, "{resolution:?}: the race was not run: {inside} {refused}");
    }
}

// -- POSIX: what is not an object --

#[test]
fn what_is_no_regular_file_is_no_object_and_never_waits() {
    for resolution in BOTH {
        let bench = Posix::new(resolution);
        fs::create_dir(bench.root().join("folder_metadata")).unwrap();
        let fifo = bench.root().join("fifo_metadata");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(bench.root().join("socket_metadata")).unwrap();
        let (sender, done) = mpsc::channel();
        std::thread::spawn(move || {
            let errors = ["folder", "fifo", "socket"].map(|what| {
                let error = open_error(&bench.store, &format!("{what}_metadata"));
                (what, error.kind(), error.to_string())
            });
            let listing = bench.store.list("_metadata").unwrap();
            sender.send((errors, listing)).unwrap();
        });
        let (errors, listing) = done.recv_timeout(Duration::from_secs(20)).expect("hangs");
        for (what, kind, message) in errors {
            assert_eq!(kind, ErrorKind::ObjectNotFound, "{message}");
            let said = if what == "folder" { "directory" } else { what };
            assert!(message.to_lowercase().contains(said), "{message}");
            assert!(message.contains("not a regular file"), "{message}");
        }
        assert!(listing.objects.is_empty());
        let mut reported: Vec<_> = listing.unreadable.into_iter().map(|(what, _)| what).collect();
        reported.sort_unstable();
        assert_eq!(reported, ["fifo_metadata", "socket_metadata"]);
    }
}

#[test]
fn names_that_are_not_utf8_and_folders_too_deep_are_reported() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let bench = Posix::new(Resolution::Kernel);
    let foreign = |bytes: &'static [u8]| bench.root().join(OsStr::from_bytes(bytes));
    bench.put("good_metadata", b"");
    fs::write(foreign(b"\xff_metadata"), "").unwrap();
    fs::write(foreign(b"\xff_other"), "").unwrap();
    fs::create_dir(foreign(b"folder\xff")).unwrap();
    bench.put(&format!("{}/32_metadata", vec!["d"; 32].join("/")), b"");
    bench.put(&format!("{}/33_metadata", vec!["e"; 33].join("/")), b"");

    for _ in 0..2 {
        let listing = bench.store.list("_metadata").unwrap();
        assert_eq!(listing.objects.len(), 2, "{:?}", listing.objects);
        let mut reported: Vec<_> =
            listing.unreadable.iter().map(|(what, error)| (what.clone(), error.kind())).collect();
        reported.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let expected = [
            (vec!["e"; 33].join("/"), ErrorKind::LimitExceeded),
            ("folder\u{fffd}".into(), ErrorKind::UnsafeName),
            ("\u{fffd}_metadata".into(), ErrorKind::UnsafeName),
        ];
        assert_eq!(reported, expected);
    }
}

// -- POSIX: the root, permission --

#[test]
fn a_root_that_is_missing_or_no_directory_is_no_store() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    for resolution in BOTH {
        for missing in ["missing", "file", "file/below"] {
            let path = folder.path().join(missing);
            let error = PosixStore::open_with(&path, resolution).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StoreNotFound, "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
    // A root behind a link is the user's wish, and no matter of names.
    let root = root_in(&folder);
    symlink(&root, folder.path().join("link")).unwrap();
    let store = PosixStore::open(&folder.path().join("link")).unwrap();
    assert!(listed(&store, "").is_empty());
    fs::remove_dir(root).unwrap();
    assert_eq!(store.list("").unwrap_err().kind(), ErrorKind::StoreNotFound);
}

/// Runs `test` in a thread that permissions apply to, also when root runs the tests.
fn without_privilege<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let run = || {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::fs::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        test()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

#[test]
fn what_this_user_may_not_read_is_told_apart_from_what_is_missing() {
    for resolution in BOTH {
        let bench = Posix::new(resolution);
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        chmod(bench.outside(), 0o755);
        bench.put("a/o_metadata", b"readable");
        bench.put("b/o_metadata", b"in a closed folder");
        bench.put("c/o_metadata", b"closed");
        chmod(&bench.root().join("b"), 0o000);
        chmod(&bench.root().join("c/o_metadata"), 0o000);
        without_privilege(|| {
            assert_eq!(read(&bench.store, "a/o_metadata").unwrap(), b"readable");
            for object in ["b/o_metadata", "c/o_metadata"] {
                assert_eq!(open_error(&bench.store, object).kind(), ErrorKind::AccessDenied, "{object}");
            }
            let listing = bench.store.list("_metadata").unwrap();
            let found: Vec<_> = listing.objects.iter().map(|o| o.name.as_str()).collect();
            assert_eq!(found, ["a/o_metadata", "c/o_metadata"], "one bad folder hides no other");
            let reported: Vec<_> = listing.unreadable.iter().map(|(what, e)| (&**what, e.kind())).collect();
            assert_eq!(reported, [("b", ErrorKind::AccessDenied)]);
        });
        chmod(&bench.root(), 0o311);
        without_privilege(|| {
            assert_eq!(bench.store.list("").unwrap_err().kind(), ErrorKind::AccessDenied);
            assert_eq!(read(&bench.store, "a/o_metadata").unwrap(), b"readable");
        });
        chmod(&bench.root(), 0o644);
        without_privilege(|| {
            let error = PosixStore::open_with(&bench.root(), resolution).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
        });
        chmod(&bench.root(), 0o755);
        chmod(&bench.root().join("b"), 0o755);
    }
}

// -- POSIX: rescans --

#[test]
fn a_rescan_sees_every_change_and_reads_only_folders_that_changed() {
    let bench = Posix::new(Resolution::Kernel);
    for container in ["aa/bb/1", "aa/bb/2", "cc/dd/3"] {
        bench.put(&format!("{container}/x_metadata"), b"{}");
        bench.put(&format!("{container}/x-00001"), b"data");
    }
    let folders = 8;
    let found = || listed(&bench.store, "_metadata");
    let read_by = |change: &dyn Fn()| {
        let before = bench.store.folders_read();
        change();
        bench.store.folders_read() - before
    };
    let three = ["aa/bb/1/x_metadata", "aa/bb/2/x_metadata", "cc/dd/3/x_metadata"];
    assert_eq!(read_by(&|| assert_eq!(found(), three)), folders);
    assert_eq!(read_by(&|| assert_eq!(found(), three)), folders, "fresh times prove nothing");
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(read_by(&|| assert_eq!(found(), three)), folders, "read once more after they settled");
    assert_eq!(read_by(&|| assert_eq!(found(), three)), 0, "settled folders are remembered");

    // A file overwritten in place, as Cinder does, is no change of its folder.
    let version = || bench.store.list("_metadata").unwrap().objects[0].stat.version.clone();
    let before = version();
    let read = read_by(&|| {
        fs::write(bench.root().join("aa/bb/1/x_metadata"), "[]").unwrap();
        assert_ne!(version(), before);
    });
    assert_eq!(read, 0);

    let read = read_by(&|| {
        bench.put("aa/bb/4/x_metadata", b"");
        assert_eq!(found(), ["aa/bb/1/x_metadata", "aa/bb/2/x_metadata", "aa/bb/4/x_metadata", three[2]]);
    });
    assert_eq!(read, 2, "the new folder and the one it stands in");
    // Renamed with all below: the folders below did not change, but are new names.
    fs::rename(bench.root().join("cc"), bench.root().join("ee")).unwrap();
    assert_eq!(found()[3], "ee/dd/3/x_metadata");
    fs::remove_dir_all(bench.root().join("aa")).unwrap();
    assert_eq!(found(), ["ee/dd/3/x_metadata"]);
    // Another folder takes the place of one that was remembered.
    fs::rename(bench.root().join("ee/dd/3"), bench.root().join("ee/dd/5")).unwrap();
    bench.put("ee/dd/3/y_metadata", b"");
    assert_eq!(found(), ["ee/dd/3/y_metadata", "ee/dd/5/x_metadata"]);
    // Each suffix has its own memory.
    assert_eq!(listed(&bench.store, "-00001"), ["ee/dd/5/x-00001"]);
    assert_eq!(found().len(), 2);
}

#[test]
fn changes_within_one_tick_of_the_clock_are_seen() {
    let bench = Posix::new(Resolution::Kernel);
    fs::create_dir(bench.root().join("c")).unwrap();
    for count in 1..=300 {
        fs::write(bench.root().join(format!("c/{count}_metadata")), "").unwrap();
        assert_eq!(listed(&bench.store, "_metadata").len(), count);
    }
}

// -- memory --

#[test]
fn memory_tells_the_owner_it_was_given() {
    let store = MemoryStore::new();
    store.put("o", b"1");
    let owner = Ownership { mode: 0o640, uid: 7, gid: 8 };
    let before = store.open(&name("o")).unwrap().stat().clone();
    assert!(store.set_owner(&name("o"), owner));
    assert!(!store.set_owner(&name("p"), owner));
    let after = store.open(&name("o")).unwrap().stat().clone();
    assert_eq!(after.owner, owner);
    assert_ne!(before.version, after.version);
    store.put("o", b"2");
    assert_eq!(store.open(&name("o")).unwrap().stat().owner, owner);
}

// -- faults --

fn faulty(script: impl IntoIterator<Item = Rule>) -> FaultStore<MemoryStore> {
    let store = FaultStore::new(MemoryStore::new(), script);
    store.put("c/a", &[1; 1000]);
    store.put("c/b", &[2; 1000]);
    store
}

#[test]
fn an_injected_error_is_an_error_and_leaves_no_data_behind() {
    for kind in [ErrorKind::StoreIo, ErrorKind::AccessDenied, ErrorKind::ObjectNotFound] {
        let store = faulty([Rule::new(Operation::Read, Fault::Error(kind)).names("*/a").bytes(500..600)]);
        let source = store.open(&name("c/a")).unwrap();
        let mut buf = [0; 1000];
        let error = read_exact_at(&*source, &mut buf, 0).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains("\"c/a\" at byte 0"), "{error}");
        assert_eq!(buf, [SCRIBBLE; 1000]);
        // Reads that do not touch the range, and other objects, are whole.
        for (offset, len) in [(0, 500), (600, 400)] {
            read_exact_at(&*source, &mut buf[..len], offset).unwrap();
            assert!(buf[..len].iter().all(|&byte| byte == 1));
        }
        assert!(read_exact_at(&*source, &mut [0; 2], 499).is_err());
        assert_eq!(read(&store, "c/b").unwrap(), [2; 1000]);
    }
}

#[test]
fn rules_count_their_own_calls() {
    let once = Rule::new(Operation::Open, Fault::Error(ErrorKind::StoreIo)).names("c/a").skip(1).times(1);
    let store = faulty([once.clone()]);
    for _ in 0..2 {
        let outcome = [0; 4].map(|_| {
            store.open(&name("c/b")).unwrap();
            store.open(&name("c/a")).is_ok()
        });
        assert_eq!(outcome, [true, false, true, true]);
        store.set_script([once.clone()]);
    }
    let always = Rule::new(Operation::Open, Fault::Error(ErrorKind::StoreIo));
    store.set_script([always]);
    assert!((0..10).all(|_| store.open(&name("c/a")).is_err()));
    store.set_script([]);
    assert_eq!(read(&store, "c/a").unwrap(), [1; 1000]);
}

#[test]
fn a_listing_fails_as_a_whole_or_in_part() {
    let store = faulty([Rule::new(Operation::List, Fault::Error(ErrorKind::StoreIo)).times(1)]);
    assert_eq!(store.list("").unwrap_err().kind(), ErrorKind::StoreIo);
    assert_eq!(listed(&store, ""), ["c/a", "c/b"]);
    store.set_script([Rule::new(Operation::List, Fault::Error(ErrorKind::AccessDenied)).names("c/a*")]);
    let listing = store.list("").unwrap();
    assert_eq!(listing.objects.len(), 1);
    assert_eq!((&*listing.unreadable[0].0, listing.unreadable[0].1.kind()), ("c/a", ErrorKind::AccessDenied));
}

#[test]
fn an_injected_end_is_a_truncated_object() {
    let store = faulty([Rule::new(Operation::Read, Fault::EndAt(300)).names("c/a")]);
    let source = store.open(&name("c/a")).unwrap();
    assert_eq!(source.stat().len_bytes, 1000, "it ends earlier than it said");
    assert_eq!(read(&store, "c/a").unwrap_err().kind(), ErrorKind::Truncated);
    let mut buf = [0; 400];
    assert_eq!(source.read_at(&mut buf, 200).unwrap(), 100);
    assert!(buf[..100] == [1; 100] && buf[100..] == [SCRIBBLE; 300]);
    assert_eq!(source.read_at(&mut buf, 300).unwrap(), 0);

    store.set_script([Rule::new(Operation::Open, Fault::EndAt(300)).names("c/a")]);
    assert_eq!(read(&store, "c/a").unwrap(), [1; 300], "it ends where it says");
    assert_eq!(read(&store, "c/b").unwrap().len(), 1000);
}

#[test]
fn short_reads_are_put_together_again() {
    let store = faulty([Rule::new(Operation::Read, Fault::ShortRead(7))]);
    let source = store.open(&name("c/a")).unwrap();
    let mut buf = [0; 20];
    assert_eq!(source.read_at(&mut buf, 0).unwrap(), 7);
    assert_eq!(buf[7..], [SCRIBBLE; 13]);
    assert_eq!(read(&store, "c/a").unwrap(), [1; 1000]);
    store.set_script([Rule::new(Operation::Read, Fault::ShortRead(0))]);
    assert_eq!(source.read_at(&mut buf, 0).unwrap(), 1, "0 would mean the end");
}

#[test]
fn a_flipped_bit_is_flipped_however_it_is_read() {
    // A store cannot know: that this never reaches a reader is for the digests to show.
    let store =
        faulty([Rule::new(Operation::Read, Fault::FlipBit { offset_bytes: 500, bit: 6 }).names("c/a")]);
    let mut expected = [1; 1000];
    expected[500] = 1 | 1 << 6;
    assert_eq!(read(&store, "c/a").unwrap(), expected);
    let source = store.open(&name("c/a")).unwrap();
    for (offset, byte) in [(499, 1), (500, 65), (501, 1)] {
        let mut buf = [0];
        read_exact_at(&*source, &mut buf, offset).unwrap();
        assert_eq!(buf, [byte]);
    }
    assert_eq!(read(&store, "c/b").unwrap(), [2; 1000]);
}

#[test]
fn a_delay_delays_and_changes_nothing() {
    let delay = Duration::from_millis(50);
    for operation in [Operation::List, Operation::Open, Operation::Read] {
        let store = faulty([Rule::new(operation, Fault::Delay(delay)).times(1)]);
        let start = Instant::now();
        assert_eq!(listed(&store, ""), ["c/a", "c/b"]);
        assert_eq!(read(&store, "c/a").unwrap(), [1; 1000]);
        assert!(start.elapsed() >= delay, "{operation:?}");
    }
}
