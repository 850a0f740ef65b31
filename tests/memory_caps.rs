//! Does every verb get along with less memory than one object has bytes? The real programs in a memory cgroup, with objects of 288 MiB of each codec.
//!
//! The kernel counts and limits what the program takes, the page cache of its files included, and kills it when it needs more.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/mount.rs"]
mod mount;

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mount::{PATIENCE, mount_line, open_folder, within};
use tempfile::TempDir;

/// One object, and the volume is a little more than one.
const OBJECT_MIB: u64 = 288;
const VOLUME_MIB: u64 = 300;
/// What the kernel gives, in MiB.
const LIMIT_MIB: u64 = 160;

/// A memory cgroup, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Fails where there is no memory controller of version 1: such a test must not pass.
    fn new(name: &str) -> Self {
        let path = Path::new("/sys/fs/cgroup/memory").join(format!("cinderfs-{}-{name}", std::process::id()));
        fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("{path:?}: {error}; this test needs root and a memory cgroup"));
        fs::write(path.join("memory.limit_in_bytes"), (LIMIT_MIB << 20).to_string()).unwrap();
        Self(path)
    }

    /// Runs there.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.0).arg(program);
        command
    }

    fn number(&self, file: &str, word: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(word)).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What was counted here and is still cached goes to the parent.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

struct World {
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: open_folder() };
        // Some text and many zeros in each block of 32 KiB: no block equals another, and bz2 has an end.
        let mut file = std::io::BufWriter::new(File::create(world.path("volume.raw")).unwrap());
        let zeros = vec![0; 28 << 10];
        for block in 0..(VOLUME_MIB << 20) / (32 << 10) {
            for line in 0..128 {
                let number = block * 128 + line;
                writeln!(file, "{number:010} {:020}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15)).unwrap();
            }
            file.write_all(&zeros).unwrap();
        }
        file.flush().unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cinderfs(&self, cgroup: &Cgroup, words: &[&str]) -> Output {
        let mut command = cgroup.command(env!("CARGO_BIN_EXE_cinderfs"));
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
        let cgroup = Cgroup::new(&format!("{codec}-{verb}"));
        run(&cgroup);
        // Cached pages of files fill what is there; what matters is that nothing was killed, and what was the program's own.
        assert_eq!(cgroup.number("memory.oom_control", "oom_kill "), 0, "{codec}, {verb}: killed");
        peaks.push(format!("{verb} {} MiB", cgroup.number("memory.max_usage_in_bytes", "") >> 20));
    };
    let object = format!("{OBJECT_MIB}M");
    let create = ["create", "store", "volume.raw", "--compression", codec, "--object-size", &object];
    fs::create_dir(world.path("store")).unwrap();
    each("create", &mut |cgroup| drop(world.cinderfs(cgroup, &create)));
    let mut id = String::new();
    each("list", &mut |cgroup| id = ids(&world.cinderfs(cgroup, &["list", "store", "-f", "json"])).remove(0));
    // As Cinder writes it: nothing tells where reading may begin.
    forget_points(&world.path("store"));
    each("index", &mut |cgroup| drop(world.cinderfs(cgroup, &["index", "store"])));
    each("verify", &mut |cgroup| drop(world.cinderfs(cgroup, &["verify", "store"])));
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
    // For the table in docs/RELIABILITY.md.
    std::io::stdout().write_all(format!("{codec}: {}\n", peaks.join(", ")).as_bytes()).unwrap();
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
