//! What does a mount do whose disk cache cannot be opened? It is quicker with one, and right without.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, reason = "helpers of tests; a panic is the report")]

#[path = "common/mount.rs"]
mod mount;
#[path = "common/store.rs"]
mod store;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mount::*;
use store::*;

const SAYS: &str = "mounting without the disk cache";

struct World {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let (folder, bytes) = (open_folder(), noise(1, 2 << 20));
        Backup::new("b", "v", bytes.clone()).put(&folder.path().join("store"));
        Self { folder, bytes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn setup() -> Setup {
        Setup::default().options("disk_cache=64M")
    }

    /// The mount works, and says why it has no disk cache.
    #[track_caller]
    fn goes_on(&self, setup: Setup, why: &str) {
        let mount = setup.mount(&self.path("store"));
        assert!(fs::read(mount.image("b")).unwrap() == self.bytes);
        let log = mount.log();
        let line = log.lines().find(|line| line.contains(SAYS)).unwrap_or_default();
        assert!(line.contains(why), "{log}");
    }
}

/// Takes a file system away again.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Self {
        fs::create_dir(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(at).status();
        assert!(mounted.unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

// > A disk cache that cannot be opened stops the mount where `CINDERFS_CACHE_DIR` names its directory; elsewhere, and where the disk is read-only or full, the mount says so and works without it; one that fails later fails no read.
#[test]
fn a_named_disk_cache_that_cannot_be_opened_stops_the_mount() {
    let world = World::new();
    let (blocked, mountpoint) = (world.path("blocked"), world.path("mnt"));
    fs::create_dir(&blocked).unwrap();
    fs::create_dir(&mountpoint).unwrap();
    fs::write(blocked.join("blocks"), b"a file in its way").unwrap();
    let output = run(cinderfs()
        .env("CINDERFS_CACHE_DIR", &blocked)
        .args(["mount", "-f", "-o", "disk_cache=64M"])
        .arg(world.path("store"))
        .arg(&mountpoint));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("disk cache") && said.contains(blocked.to_str().unwrap()), "{said}");
    assert!(said.contains("\nhint: without disk_cache="), "{said}");
}

// > A disk cache that cannot be opened stops the mount where `CINDERFS_CACHE_DIR` names its directory; elsewhere, and where the disk is read-only or full, the mount says so and works without it; one that fails later fails no read.
#[test]
fn a_disk_cache_in_the_usual_place_that_cannot_be_opened_is_done_without() {
    let world = World::new();
    let home = world.path("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("cinderfs"), b"a file in its way").unwrap();
    // Root's usual place is the machine's; an empty variable is none.
    let setup = World::setup()
        .options("allow_other")
        .by_nobody()
        .cache_dir(Path::new(""))
        .env("XDG_CACHE_HOME", &home);
    world.goes_on(setup, home.to_str().unwrap());
}

// > A disk cache that cannot be opened stops the mount where `CINDERFS_CACHE_DIR` names its directory; elsewhere, and where the disk is read-only or full, the mount says so and works without it; one that fails later fails no read.
#[test]
fn a_disk_that_is_read_only_or_full_is_no_reason_not_to_mount() {
    let world = World::new();
    let cache = world.path("read-only");
    let _mounted = Mounted::tmpfs(&cache, "ro,mode=700");
    world.goes_on(World::setup().cache_dir(&cache), "Read-only file system");
    let cache = world.path("full");
    let _mounted = Mounted::tmpfs(&cache, "size=1M,nr_inodes=1,mode=700");
    world.goes_on(World::setup().cache_dir(&cache), "No space left on device");
}
