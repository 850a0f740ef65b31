//! What becomes of each fault of each kind of file, under each verb? The real programs, on files that really fail.
//!
//! The observed verdicts stand in `docs/RELIABILITY.md`; `CINDERFS_BLESS=1` writes them there, and then they are to be looked at. In every cell, whatever its
//! verdict: no wrong byte, no hang, no panic, and all is well when the fault has ended.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/fault_matrix/more_verbs.rs"]
mod more_verbs;
#[path = "common/fault_matrix/sick.rs"]
mod sick;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use mount::{Mount, Setup, open_folder, within};
use sick::{Fault, SickFolder};
use store_kit::{BackupSpec, ObjectSpec, Packing, digests_of};
use tempfile::TempDir;

const ID: &str = "11111111-0000-4000-8000-000000000001";
const BLOCK: usize = 32 << 10;
const LEN: usize = 6 << 20;
/// No command may take longer; a slow machine is not a hang.
const WATCHDOG_SECONDS: &str = "120";
/// A failure is believed for some seconds.
const RECOVERY: Duration = Duration::from_secs(60);
const WORKERS: usize = 8;
/// What a verdict ends with where the verb opened no such file.
const NOT_OPENED: &str = " (opens none)";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Metadata,
    Digests,
    Object,
    ObjectNone,
    ObjectBz2,
    ObjectZstd,
    Index,
    DiskCache,
}

impl Kind {
    const ALL: [(Self, &'static str, &'static str); 8] = [
        (Self::Metadata, "_metadata", "metadata"),
        (Self::Digests, "_sha256file", "digests"),
        (Self::Object, "-00001", "an object, zlib"),
        (Self::ObjectNone, "-00001", "an object, none"),
        (Self::ObjectBz2, "-00001", "an object, bz2"),
        (Self::ObjectZstd, "-00001", "an object, zstd"),
        (Self::Index, "", "an index file of restart points"),
        (Self::DiskCache, "", "the disk cache"),
    ];

    /// How the object of the store is packed.
    fn packing(self) -> Packing {
        match self {
            Self::ObjectNone => Packing::Plain("none"),
            Self::ObjectBz2 => Packing::Bz2 { level: 1, streams: 1 },
            Self::ObjectZstd => Packing::Zstd { level: 1, frames: 1 },
            _ => Packing::Zlib { level: 1, junk: 0 },
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Verb {
    Mount,
    Restore,
    Create,
    Verify,
    Audit,
    Map,
    Diff,
    Repair,
    Index,
    Consolidate,
}

impl Verb {
    const ALL: [Self; 10] = [
        Self::Mount,
        Self::Restore,
        Self::Create,
        Self::Verify,
        Self::Audit,
        Self::Map,
        Self::Diff,
        Self::Repair,
        Self::Index,
        Self::Consolidate,
    ];

    /// Whether there is a cell for it.
    fn opens(self, kind: Kind) -> bool {
        match kind {
            Kind::Metadata | Kind::Digests => true,
            // These read no data.
            Kind::Object => !matches!(self, Self::Map | Self::Diff),
            // The four that carry data; other verbs read them as these do. `index` would write there, and the folder takes no new file.
            Kind::ObjectNone | Kind::ObjectBz2 | Kind::ObjectZstd | Kind::Index | Kind::DiskCache => {
                matches!(self, Self::Mount | Self::Restore | Self::Create | Self::Verify)
            }
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Restore => "restore",
            Self::Create => "create",
            Self::Verify => "verify",
            Self::Audit => "audit --repair",
            Self::Map => "map",
            Self::Diff => "diff",
            Self::Repair => "repair --dry-run",
            Self::Index => "index",
            Self::Consolidate => "consolidate",
        }
    }
}

/// Bytes that compress a little, in which no block equals another.
fn volume() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8 & 0x3F
    };
    (0..LEN).map(|_| next()).collect()
}

impl Kind {
    /// One of these is in what a program says when it cannot go on: the file, or the blocks.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Metadata => &["_metadata"],
            Self::Digests => &["_sha256file", "digest", "block", "LOST", "LEFT WRONG"],
            Self::Object | Self::ObjectNone | Self::ObjectBz2 | Self::ObjectZstd => &["-00001", "LOST"],
            Self::Index => &["seek-indexes"],
            Self::DiskCache => &["blocks"],
        }
    }
}

/// What all cells begin with.
struct Sound {
    folder: TempDir,
    plain: Vec<u8>,
    container: String,
}

impl Sound {
    /// A full backup of one object, its restart points, and a disk cache that holds all of it.
    fn new(packing: Packing) -> Self {
        let (folder, plain) = (open_folder(), volume());
        let mut spec = BackupSpec::new(ID, "22222222-0000-4000-8000-000000000002");
        spec.objects = vec![ObjectSpec { offset: 0, plain: plain.clone(), packing }];
        spec.digests = Some((BLOCK, digests_of(&plain, BLOCK)));
        spec.write_to_folder(&folder.path().join("store"));
        let sound = Self { container: spec.container(), folder, plain };
        let (store, cache) = (sound.path("store"), sound.path("cache"));
        let index = cinderfs(&cache).arg("index").arg(&store).output().unwrap();
        assert!(index.status.success(), "{index:?}");
        let mount = Setup::default().cache_dir(&cache).options("disk_cache=64M").mount(&store);
        assert!(fs::read(mount.image(ID)).unwrap() == sound.plain);
        drop(mount);
        sound
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn cinderfs(cache: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", WATCHDOG_SECONDS, env!("CARGO_BIN_EXE_cinderfs")]);
    command.env_remove("CINDERFS_LOG").env("CINDERFS_CACHE_DIR", cache).stdin(Stdio::null());
    command
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "cp {from:?} {to:?}");
}

/// One cell's store and cache, a folder of which is sick. In this order, so that the folder goes last.
struct Cell<'a> {
    sick: SickFolder,
    sound: &'a Sound,
    folder: TempDir,
    kind: Kind,
}

impl<'a> Cell<'a> {
    fn new(sound: &'a Sound, kind: Kind) -> Self {
        let folder = open_folder();
        for name in ["store", "cache"] {
            copy(&sound.path(name), &folder.path().join(name));
        }
        let covered = match kind {
            Kind::Metadata
            | Kind::Digests
            | Kind::Object
            | Kind::ObjectNone
            | Kind::ObjectBz2
            | Kind::ObjectZstd => folder.path().join("store").join(&sound.container),
            Kind::Index => folder.path().join("cache/seek-indexes"),
            Kind::DiskCache => folder.path().join("cache/blocks"),
        };
        let behind = folder.path().join("behind");
        fs::rename(&covered, &behind).unwrap();
        fs::create_dir(&covered).unwrap();
        let sick = SickFolder::cover(&behind, &covered);
        Self { sick, sound, folder, kind }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, command: &mut Command) -> Output {
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked") && output.status.code() != Some(101), "{stderr}");
        assert!(output.status.code().is_some_and(|code| code < 128), "a hang: {command:?}: {stderr}");
        let said = format!("{stderr}{}", String::from_utf8_lossy(&output.stdout));
        let names = self.kind.names();
        let is_named = output.status.success() || names.iter().any(|name| said.contains(name));
        assert!(is_named, "none of {names:?} is named: {command:?}: {said}");
        output
    }

    /// The store's own files are what they were.
    fn is_untouched(&self) {
        let (folder, behind) = (self.sound.path("store").join(&self.sound.container), self.path("behind"));
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
            let there = match self.kind {
                Kind::Index | Kind::DiskCache => self.path("store").join(&self.sound.container),
                _ => behind.clone(),
            };
            let (found, sound) = (fs::read(there.join(entry.file_name())), fs::read(entry.path()));
            assert!(found.unwrap() == sound.unwrap(), "{entry:?} was changed");
        }
    }

    /// What the verb does with the fault; then without it.
    fn verdict(&self, verb: Verb, word: &str, fault: Fault) -> String {
        if verb == Verb::Mount {
            return self.mount(word, fault);
        }
        let go = || match verb {
            Verb::Restore => self.restore(),
            Verb::Create => self.create(),
            Verb::Mount | Verb::Verify => self.verify(),
            Verb::Audit => self.audit(),
            Verb::Map => self.map(),
            Verb::Diff => self.diff(),
            Verb::Repair => self.repair(),
            Verb::Index => self.index(),
            Verb::Consolidate => self.consolidate(),
        };
        self.sick.begin(word, fault);
        let mut verdict = go();
        if !self.sick.is_asked_for() {
            verdict.push_str(NOT_OPENED);
        }
        self.sick.end();
        self.is_untouched();
        let after = go();
        assert!(after.starts_with("right"), "{fault:?} of {:?}, {verb:?}: afterwards {after}", self.kind);
        verdict
    }

    fn restore(&self) -> String {
        let (target, map) = (self.path("image"), self.path("map"));
        let mut command = cinderfs(&self.path("cache"));
        command.arg("restore").arg(self.path("store")).arg(ID).arg(&target);
        let output = self.run(command.args(["--on-damage", "zero", "--loss-map"]).arg(&map));
        let code = output.status.code().unwrap();
        let verdict = match code {
            0 | 3 => {
                let found = fs::read(&target).unwrap();
                assert_eq!(found.len(), LEN);
                let blocks = found.chunks(BLOCK).zip(self.sound.plain.chunks(BLOCK));
                let wrong = blocks.filter(|(found, plain)| found != plain);
                let lost = wrong
                    .inspect(|(found, _)| assert!(found.iter().all(|&byte| byte == 0), "A WRONG BYTE"))
                    .count();
                assert_eq!(lost == 0, code == 0, "{output:?}");
                share(lost)
            }
            _ => "refused".into(),
        };
        let _ = fs::remove_file(&target); // where there is one
        let _ = fs::remove_file(&map);
        format!("{verdict}{}", exit(code))
    }

    /// An incremental backup of a volume of which one block is new, and then its image.
    fn create(&self) -> String {
        let source = self.path("volume.raw");
        let mut newer = self.sound.plain.clone();
        newer[5 * BLOCK..6 * BLOCK].fill(7);
        fs::write(&source, &newer).unwrap();
        let mut command = cinderfs(&self.path("cache"));
        // Programs that other cells start have it open for a moment.
        command.arg("create").arg(self.path("store")).arg(&source).args([
            "--force",
            "--parent",
            ID,
            "--container",
            "new",
        ]);
        let output = self.run(&mut command);
        self.made(&output, &newer)
    }

    /// What was made in the container `new`.
    fn made(&self, output: &Output, plain: &[u8]) -> String {
        let code = output.status.code().unwrap();
        let container = self.path("store/new");
        if code != 0 {
            assert!(!container.exists(), "a failed backup is there: {output:?}");
            return format!("no backup{}", exit(code));
        }
        // What was made is right once all is well.
        self.sick.end();
        let found =
            fs::read_dir(&container).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let metadata = found.into_iter().find(|name| name.ends_with("_metadata")).unwrap();
        let document: serde_json::Value =
            serde_json::from_slice(&fs::read(container.join(metadata)).unwrap()).unwrap();
        let target = self.path("made");
        let mut command = cinderfs(&self.path("cache"));
        command
            .arg("restore")
            .arg(self.path("store"))
            .arg(document["backup_id"].as_str().unwrap())
            .arg(&target);
        let output = self.run(&mut command);
        assert!(output.status.success(), "{output:?}");
        assert!(fs::read(&target).unwrap() == plain, "A WRONG BYTE");
        let objects = document["objects"].as_array().unwrap().len();
        fs::remove_file(&target).unwrap();
        fs::remove_dir_all(&container).unwrap();
        format!("right, {objects} object")
    }

    fn verify(&self) -> String {
        let mut command = cinderfs(&self.path("cache"));
        let output = self.run(command.arg("verify").arg(self.path("store")));
        let code = output.status.code().unwrap();
        format!("{}{}", if code == 0 { "right" } else { "told" }, exit(code))
    }

    fn mount(&self, word: &str, fault: Fault) -> String {
        self.sick.begin(word, fault);
        let mut setup = Setup::default().cache_dir(&self.path("cache"));
        if self.kind == Kind::DiskCache {
            setup = setup.options("disk_cache=64M");
        }
        let store = self.path("store");
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| setup.mount(&store)));
        let Ok(mount) = tried else {
            self.sick.end();
            let setup = Setup::default().cache_dir(&self.path("cache")).options("disk_cache=64M");
            assert_eq!(self.look(&setup.mount(&store)), "right");
            return "no mount, exit 1".into();
        };
        let verdict = self.look(&mount);
        self.sick.end();
        within(RECOVERY, "all is well again", || self.look(&mount) == "right");
        assert!(!mount.log().contains("panicked"), "{}", mount.log());
        verdict
    }

    /// Reads the image through the mount, block by block and past the kernel's cache.
    fn look(&self, mount: &Mount) -> String {
        let file = match File::open(mount.image(ID)) {
            Ok(file) => file,
            Err(error) => return format!("no image: {}", name_of(&error)),
        };
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut errors: BTreeMap<String, usize> = BTreeMap::new();
        let mut bytes = vec![0; BLOCK];
        for (block, plain) in self.sound.plain.chunks(BLOCK).enumerate() {
            match file.read_exact_at(&mut bytes, (block * BLOCK) as u64) {
                Ok(()) => assert!(bytes == plain, "A WRONG BYTE in block {block}"),
                Err(error) => *errors.entry(name_of(&error)).or_default() += 1,
            }
        }
        match errors.len() {
            0 => "right".into(),
            _ => {
                let names: Vec<_> = errors.keys().cloned().collect();
                format!("{}: {}", share(errors.values().sum()), names.join(", "))
            }
        }
    }
}

fn name_of(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EIO) => "EIO".into(),
        Some(libc::ENOENT) => "ENOENT".into(),
        other => format!("errno {other:?}"),
    }
}

/// How much is lost; not how many blocks, which depends on who reads first.
fn share(lost: usize) -> String {
    match lost {
        0 => "right",
        lost if lost == LEN / BLOCK => "all blocks lost",
        _ => "some blocks lost, others right",
    }
    .into()
}

fn exit(code: i32) -> String {
    if code == 0 { String::new() } else { format!(", exit {code}") }
}

#[test]
fn every_fault_ends_as_the_table_says() {
    let sounds: Vec<_> =
        Kind::ALL[2..6].iter().map(|(kind, ..)| (*kind, Sound::new(kind.packing()))).collect();
    let sound_of = |kind: Kind| {
        let (_, sound) = sounds.iter().find(|(known, _)| *known == kind).unwrap_or(&sounds[0]);
        sound
    };
    let mut cells = Vec::new();
    for (kind, word, _) in Kind::ALL {
        for fault in Fault::ALL {
            let verbs = Verb::ALL.into_iter().filter(|verb| verb.opens(kind));
            cells.extend(verbs.map(|verb| (kind, word, fault, verb)));
        }
    }
    let (queue, found) = (Mutex::new(cells), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some((kind, word, fault, verb)) = queue.lock().unwrap().pop() else { return };
                    let cell = Cell::new(sound_of(kind), kind);
                    let verdict = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        cell.verdict(verb, word, fault)
                    }));
                    let verdict = verdict.unwrap_or_else(|_| "BROKEN".into());
                    let verdict = settled(kind, fault, verdict);
                    found.lock().unwrap().insert((kind, fault.words(), verb), verdict);
                }
            });
        }
    });
    let table = table(&found.into_inner().unwrap());
    println!("{table}");
    assert!(!table.contains("BROKEN"), "a promise is broken, see above");
    compare(&table);
}

/// How much a late fault costs depends on who reads first where several read at once.
fn settled(kind: Kind, fault: Fault, verdict: String) -> String {
    if !fault.is_late() || !matches!(kind, Kind::ObjectNone | Kind::ObjectBz2 | Kind::ObjectZstd) {
        return verdict;
    }
    verdict.replace("all blocks lost", "blocks lost").replace("some blocks lost, others right", "blocks lost")
}

fn table(found: &BTreeMap<(Kind, &'static str, Verb), String>) -> String {
    let mut text = String::new();
    for (kind, _, words) in Kind::ALL {
        let verbs: Vec<_> = Verb::ALL.into_iter().filter(|verb| verb.opens(kind)).collect();
        let head: Vec<_> = verbs.iter().map(|verb| verb.words()).collect();
        let rule = " --- |".repeat(verbs.len() + 1);
        text.push_str(&format!("| {words} | {} |\n|{rule}\n", head.join(" | ")));
        for fault in Fault::ALL {
            let row: Vec<_> = verbs.iter().map(|verb| found[&(kind, fault.words(), *verb)].clone()).collect();
            text.push_str(&format!("| {} | {} |\n", fault.words(), row.join(" | ")));
        }
        text.push('\n');
    }
    text
}

/// With what stands in the documentation.
fn compare(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/RELIABILITY.md");
    let page = fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- fault-matrix:begin -->\n", "<!-- fault-matrix:end -->");
    let (before, rest) = page.split_once(begin).unwrap();
    let (known, after) = rest.split_once(end).unwrap();
    if std::env::var_os("CINDERFS_BLESS").is_some() {
        fs::write(&path, format!("{before}{begin}{table}{end}{after}")).unwrap();
        return;
    }
    let lines = known.lines().zip(table.lines()).filter(|(known, now)| known != now);
    let different: Vec<_> = lines.map(|(known, now)| format!("was {known}\nnow {now}")).collect();
    assert!(
        known == table,
        "run it with CINDERFS_BLESS=1 and look at what changed:\n{}",
        different.join("\n")
    );
}
