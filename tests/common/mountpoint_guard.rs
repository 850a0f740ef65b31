//! A real mount that goes away with its value, also when the test fails.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The binary under test with its arguments still to come.
pub(crate) fn cinderfs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
    command.env_remove("CINDERFS_LOG").stdin(Stdio::null());
    command.env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command
}

/// Runs a command that must succeed; what it printed.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A mounted store. Needs /dev/fuse; without it the test fails.
pub(crate) struct Mountpoint {
    // Removed after the unmount in `drop`.
    folder: TempDir,
}

impl Mountpoint {
    /// Mounts `store` at a new folder.
    #[track_caller]
    pub(crate) fn new(store: &Path) -> Self {
        Self::with(store, &[])
    }

    /// Mounts with further words, as `-o` and its options.
    #[track_caller]
    pub(crate) fn with(store: &Path, words: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("cinderfs-test-").tempdir().unwrap();
        run(cinderfs().arg("mount").args(words).arg(store).arg(folder.path()));
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where the image of this backup is.
    pub(crate) fn image(&self, id: &str) -> PathBuf {
        self.path().join("backups").join(id).join("volume.img")
    }

    /// Unmounts, and fails where something still uses the mount.
    #[track_caller]
    pub(crate) fn unmount(self) {
        let output = unmount_soon(self.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!is_mountpoint(self.path()), "still mounted");
    }
}

/// Unmounts. A sibling test that starts a process makes a copy of our open files for a moment, until the process has
/// become another program; so a mount may be in use for a moment after it no longer is.
fn unmount_soon(path: &Path) -> Output {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let output = cinderfs().arg("umount").arg(path).output().unwrap();
        if output.status.success() || Instant::now() >= deadline {
            return output;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        if !is_mountpoint(self.path()) || unmount_soon(self.path()).status.success() {
            return;
        }
        let lazily = cinderfs().args(["umount", "--lazy"]).arg(self.path()).output();
        assert!(std::thread::panicking(), "the mount was still in use; lazily: {lazily:?}");
    }
}

/// Whether something is mounted exactly there.
pub(crate) fn is_mountpoint(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.to_string_lossy();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(&*path))
}
