//! Does every verb get along with less memory than one object has bytes? The real programs in a memory cgroup, with objects of 288 MiB of each codec.
//!
//! The kernel counts and limits what the program takes, the page cache of its files included, and kills it when it needs more. Before each verb
//! the files are dropped from that cache, for pages that an earlier program has read are counted there and not here. What is the program's own is
//! looked at every few milliseconds. `scripts/vm/run.sh cgroup` runs it where cgroups are of version 2.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cgroup.rs"]
mod cgroup;
#[path = "common/mount.rs"]
mod mount;

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cgroup::Cgroup;
use mount::{PATIENCE, mount_line, open_folder, within};
use tempfile::TempDir;

/// One object, and the volume is a little more than one.
const OBJECT_MIB: u64 = 288;
const VOLUME_MIB: u64 = 300;
/// What the kernel gives, in MiB.
const LIMIT_MIB: u64 = 160;
/// The stored object is larger than the limit too.
const STORED_MIB_MIN: u64 = 170;
/// What a verb has in memory at its peak that reads all of it.
const READ_MIB_MIN: u64 = 150;

struct World {
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: open_folder() };
        // Noise and zeros in each block of 32 KiB: no codec makes much less of it than there is noise.
        let mut file = std::io::BufWriter::new(File::create(world.path("volume.raw")).unwrap());
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut block = vec![0; 32 << 10];
        for _ in 0..(VOLUME_MIB << 20) / (32 << 10) {
            for word in block[..20 << 10].chunks_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            file.write_all(&block).unwrap();
        }
        file.flush().unwrap();
        world
    }

    /// Puts the pages of all files out of memory, so that whoever reads them next is charged for them; and tells the largest file of the store.
    fn forget_pages(&self) -> u64 {
        let (mut folders, mut largest) = (vec![self.folder.path().to_owned()], 0);
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let file = File::open(&path).unwrap();
                file.sync_all().unwrap();
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
                if path.starts_with(self.path("store")) {
                    largest = largest.max(file.metadata().unwrap().len());
                }
            }
        }
        largest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cinderfs(&self, cgroup: &Cgroup, words: &[&str]) -> Output {
        self.run(cgroup.command(env!("CARGO_BIN_EXE_cinderfs")), words)
    }

    /// Without a limit.
    fn cinderfs_free(&self, words: &[&str]) -> Output {
        self.run(Command::new(env!("CARGO_BIN_EXE_cinderfs")), words)
    }

    fn run(&self, mut command: Command, words: &[&str]) -> Output {
        command.args(words).env_remove("CINDERFS_LOG").env("CINDERFS_CACHE_DIR", self.path("cache"));
        let output = command.current_dir(self.folder.path()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        output
    }

    fn is_volume(&self, found: &Path, what: &str) {
        let (mut a, mut b) = (File::open(self.path("volume.raw")).unwrap(), File::open(found).unwrap());
        let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for mib in 0..VOLUME_MIB {
            a.read_exact(&mut left).unwrap();
            b.read_exact(&mut right).unwrap_or_else(|error| panic!("{what}, at {mib} MiB: {error}"));
            assert!(left == right, "{what}: A WRONG BYTE in MiB {mib}");
        }
        assert_eq!(b.read(&mut left).unwrap(), 0, "{what} is longer");
    }
}

/// An id out of a document of `list -f json`.
fn ids(output: &Output) -> Vec<String> {
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    rows.as_array().unwrap().iter().map(|row| row["ID"].as_str().unwrap().to_owned()).collect()
}

fn all_verbs(codec: &str) {
    let world = World::new();
    let mut peaks = Vec::new();
    let mut each = |verb: &str, run: &mut dyn FnMut(&Cgroup)| {
        let largest = world.forget_pages() >> 20;
        assert!(
            verb == "create" || largest >= STORED_MIB_MIN,
            "{codec}: the largest object has {largest} MiB stored"
        );
        let cgroup = Cgroup::new(&format!("{codec}-{verb}"), LIMIT_MIB << 20);
        let own = cgroup.watch(|| run(&cgroup));
        // Cached pages of files fill what is there; what matters is that nothing was killed, and what was the program's own.
        assert_eq!(cgroup.kills(), 0, "{codec}, {verb}: killed");
        let all = cgroup.most();
        peaks.push(format!("{verb} {}/{}", own.div_ceil(1 << 20), all >> 20));
        all >> 20
    };
    let object = format!("{OBJECT_MIB}M");
    let create =
        ["create", "store", "volume.raw", "--force", "--compression", codec, "--object-size", &object];
    fs::create_dir(world.path("store")).unwrap();
    each("create", &mut |cgroup| drop(world.cinderfs(cgroup, &create)));
    let mut id = String::new();
    each("list", &mut |cgroup| id = ids(&world.cinderfs(cgroup, &["list", "store", "-f", "json"])).remove(0));
    // As Cinder writes it: nothing tells where reading may begin.
    forget_points(&world.path("store"));
    let index = each("index", &mut |cgroup| drop(world.cinderfs(cgroup, &["index", "store"])));
    // Its pages fill what there is: it was read, and here.
    assert!(codec == "none" || index >= READ_MIB_MIN, "{index} MiB");
    let verify = each("verify", &mut |cgroup| {
        let output = world.cinderfs(cgroup, &["verify", "store", "-f", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["summary"]["plain_bytes"], VOLUME_MIB << 20);
        assert_eq!(report["backups"][0]["verdict"], "good");
    });
    assert!(verify >= READ_MIB_MIN, "{verify} MiB");
    each("map", &mut |cgroup| {
        let rows = world.cinderfs(cgroup, &["map", "store", &id, "-f", "json"]);
        assert!(!rows.stdout.is_empty());
    });
    each("audit", &mut |cgroup| {
        let audited = world.cinderfs(cgroup, &["audit", "store", &id, "volume.raw", "-f", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&audited.stdout).unwrap();
        assert_eq!(report["equal"], true);
    });
    each("audit --repair", &mut |cgroup| {
        let zeros = File::create(world.path("zeros.raw")).unwrap();
        zeros.set_len(VOLUME_MIB << 20).unwrap();
        world.cinderfs(cgroup, &["audit", "store", &id, "zeros.raw", "--repair", "--yes", "--force"]);
        world.is_volume(&world.path("zeros.raw"), "repaired");
        fs::remove_file(world.path("zeros.raw")).unwrap();
    });
    each("hydrate", &mut |cgroup| {
        world.cinderfs(cgroup, &["hydrate", "store", &id]);
        world.cinderfs(cgroup, &["hydrate", "store", "--drop", &id]);
    });
    each("restore", &mut |cgroup| {
        world.cinderfs(cgroup, &["restore", "store", &id, "image"]);
        world.is_volume(&world.path("image"), "restored");
        fs::remove_file(world.path("image")).unwrap();
    });
    each("mount", &mut |cgroup| {
        let root = world.path("mnt");
        fs::create_dir(&root).unwrap();
        let mut command = cgroup.command(env!("CARGO_BIN_EXE_cinderfs"));
        command
            .args(["mount", "-f", "-o", "cache_size=32M", "store", "mnt"])
            .current_dir(world.folder.path());
        command.env("CINDERFS_CACHE_DIR", world.path("cache")).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(File::create(world.path("log")).unwrap()).process_group(0);
        let mut daemon = command.spawn().unwrap();
        within(PATIENCE, "the mount", || mount_line(&root).is_some());
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.is_volume(&root.join(format!("backups/{id}/volume.img")), "mounted");
        }));
        let _ = rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH);
        let status = daemon.wait().unwrap();
        assert!(
            read.is_ok() && status.success(),
            "{status}: {}",
            fs::read_to_string(world.path("log")).unwrap()
        );
    });
    each("consolidate", &mut |cgroup| {
        drop(world.cinderfs(cgroup, &["consolidate", "store", &id, "--object-size", &object]));
    });
    let other =
        ids(&world.cinderfs_free(&["list", "store", "-f", "json"])).into_iter().find(|other| *other != id);
    let other = other.unwrap();
    each("diff", &mut |cgroup| {
        let rows = world.cinderfs(cgroup, &["diff", "store", &id, &other, "-f", "json"]);
        assert!(!String::from_utf8_lossy(&rows.stdout).contains("\"dirty\": true"), "{rows:?}");
    });
    // Two objects of the same bytes: one is mended out of the other.
    damage_first_object(&world.path("store"), &id);
    let repair = each("repair", &mut |cgroup| drop(world.cinderfs(cgroup, &["repair", "store", &id])));
    assert!(repair >= READ_MIB_MIN, "{repair} MiB");
    let image = world.path("image");
    world.cinderfs_free(&["restore", "store", &id, "image"]);
    world.is_volume(&image, "restored after the repair");
    // For the table in docs/RELIABILITY.md.
    std::io::stdout().write_all(format!("{codec}: {}\n", peaks.join(", ")).as_bytes()).unwrap();
}

/// Puts zeros into the middle of the backup's first object.
fn damage_first_object(store: &Path, id: &str) {
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().is_some_and(|path| path.contains(id) && path.ends_with("-00001")) {
                let file = File::options().write(true).open(&path).unwrap();
                file.write_all_at(&[0; 4096], file.metadata().unwrap().len() / 2).unwrap();
                return;
            }
        }
    }
    panic!("no object of {id}");
}

/// Takes the key out of the metadata that a genuine backup does not have, as bytes, so that the rest stays.
fn forget_points(store: &Path) {
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.to_str().unwrap().ends_with("_metadata") {
                let mut document: serde_json::Value =
                    serde_json::from_slice(&fs::read(&entry).unwrap()).unwrap();
                for object in document["objects"].as_array_mut().unwrap() {
                    let value = object.as_object_mut().unwrap().values_mut().next().unwrap();
                    let known = ["compression", "length", "md5", "offset"];
                    value.as_object_mut().unwrap().retain(|key, _| known.contains(&key.as_str()));
                }
                fs::write(&entry, serde_json::to_vec_pretty(&document).unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn none_in_less_than_an_object() {
    all_verbs("none");
}

#[test]
fn zlib_in_less_than_an_object() {
    all_verbs("zlib");
}

#[test]
fn bz2_in_less_than_an_object() {
    all_verbs("bz2");
}

#[test]
fn zstd_in_less_than_an_object() {
    all_verbs("zstd");
}
