//! A chain with zeros over data, what Cinder 28 makes of it, and devices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::store::posix::PosixStore;
use serde_json::Value;
use tempfile::TempDir;

use crate::store::{BLOCK, Backup, noise};

pub(crate) const MIB: usize = 1 << 20;

/// What Cinder leaves out at once when it is zeros.
const PIECE: usize = MIB;

/// A process that a test starts has, for a moment, all files open that another test just writes; they are in use then.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Four backups of a volume of 12 MiB and a bit (no whole sector).
///
/// `i2` writes over 6 MiB to 7 MiB, and over the block at 9 MiB. `i3` zeroes 2 to 4 MiB and the first half of 6 MiB to 7 MiB as objects of
/// their own, and one block at 1 MiB within an object that holds data as well. `i4` changes a block at 11 MiB.
pub(crate) struct Chain {
    _turn: MutexGuard<'static, ()>,
    folder: TempDir,
    pub(crate) backups: Vec<Backup>,
}

impl Chain {
    pub(crate) fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let mut image = noise(1, 12 * MIB + 700);
        let mut backups = vec![Backup::new("f1", "v1", image.clone())];
        let mut add = |id: &str, image: &[u8], extents: &[std::ops::Range<usize>]| {
            let parent = backups.last().unwrap().id.clone();
            let backup = Backup::new(id, "v1", image.to_vec());
            backups.push(
                backup.at(&format!("2024-03-0{} 01:01:07+00:00", backups.len() + 1)).on(&parent, extents),
            );
        };
        image[6 * MIB..7 * MIB].copy_from_slice(&noise(2, MIB));
        image[9 * MIB..9 * MIB + BLOCK].copy_from_slice(&noise(3, BLOCK));
        add("i2", &image, &[6 * MIB..7 * MIB, 9 * MIB..9 * MIB + BLOCK]);
        image[2 * MIB..4 * MIB].fill(0);
        image[6 * MIB..6 * MIB + MIB / 2].fill(0);
        image[MIB..MIB + BLOCK].fill(0);
        image[MIB + BLOCK..MIB + 2 * BLOCK].copy_from_slice(&noise(4, BLOCK));
        add("i3", &image, &[2 * MIB..4 * MIB, 6 * MIB..6 * MIB + MIB / 2, MIB..MIB + 2 * BLOCK]);
        image[11 * MIB..11 * MIB + BLOCK].copy_from_slice(&noise(5, BLOCK));
        add("i4", &image, std::slice::from_ref(&(11 * MIB..11 * MIB + BLOCK)));
        let chain = Self { _turn: turn, folder, backups };
        for backup in &chain.backups {
            backup.put(&chain.store());
        }
        chain
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn catalog(&self) -> Catalog {
        let store = Arc::new(PosixStore::open(&self.store()).unwrap());
        Catalog::open(store, CatalogOptions { workers: 0, ..CatalogOptions::default() }).unwrap()
    }

    /// The volume as of the newest backup.
    pub(crate) fn volume(&self) -> &[u8] {
        &self.backups[3].image
    }

    /// What Cinder 22 to 28 restore to a new volume: pieces of zeros are left out, also of incremental backups.
    pub(crate) fn restored_by_cinder_28(&self) -> Vec<u8> {
        let mut restored = vec![0; self.volume().len()];
        for backup in &self.backups {
            let whole = 0..backup.image.len();
            let extents =
                if backup.extents.is_empty() { std::slice::from_ref(&whole) } else { &backup.extents[..] };
            for extent in extents {
                for start in extent.clone().step_by(PIECE) {
                    let piece = start..extent.end.min(start + PIECE);
                    if backup.image[piece.clone()].iter().any(|&byte| byte != 0) {
                        restored[piece.clone()].copy_from_slice(&backup.image[piece]);
                    }
                }
            }
        }
        assert!(restored != self.volume());
        restored
    }

    pub(crate) fn target_path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn target(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.target_path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn run(&self, backup: &str, target: &Path, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        command.arg("audit").arg(self.store()).arg(backup).arg(target).args(words).stdin(Stdio::null());
        command.env_remove("CINDERFS_LOG").env("CINDERFS_CACHE_DIR", self.target_path("cache"));
        command.output().unwrap()
    }

    /// An audit with the newest backup, that ends.
    pub(crate) fn audit(&self, target: &Path, words: &[&str]) -> Told {
        let output = self.run("i4", target, &[words, &["-f", "json"]].concat());
        let code = output.status.code().unwrap();
        let json = serde_json::from_slice(&output.stdout);
        Told {
            code,
            json: json.unwrap_or_else(|_| panic!("{code}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// One that does not; what it says.
    pub(crate) fn fails(&self, target: &Path, words: &[&str], code: i32) -> String {
        self.fails_of("i4", target, words, code)
    }

    pub(crate) fn fails_of(&self, backup: &str, target: &Path, words: &[&str], code: i32) -> String {
        let output = self.run(backup, target, words);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(output.stdout.is_empty());
        text
    }
}

/// What an audit says.
pub(crate) struct Told {
    pub(crate) code: i32,
    pub(crate) json: Value,
}

impl Told {
    /// Start, length, what, of which backup.
    pub(crate) fn findings(&self) -> Vec<(u64, u64, &str, Option<&str>)> {
        let of = |finding: &'_ Value| -> (u64, u64) {
            (finding["start"].as_u64().unwrap(), finding["length"].as_u64().unwrap())
        };
        let findings = self.json["findings"].as_array().unwrap();
        findings
            .iter()
            .map(|f| (of(f).0, of(f).1, f["found"].as_str().unwrap(), f["backup"].as_str()))
            .collect()
    }
}

/// A loop device over a file, detached when the test ends in whatever way.
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
}

impl LoopDevice {
    pub(crate) fn over(backing: &Path) -> Self {
        // Devices have whole sectors.
        let len = fs::metadata(backing).unwrap().len().next_multiple_of(512);
        fs::OpenOptions::new().write(true).open(backing).unwrap().set_len(len).unwrap();
        let path = run("losetup", &["--find", "--show", backing.to_str().unwrap()]);
        Self { path: path.trim_end().into() }
    }

    /// What it holds, past the page cache of whoever wrote it, as far as the volume goes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        run("blockdev", &["--flushbufs", self.path.to_str().unwrap()]);
        let mut bytes = fs::read(&self.path).unwrap();
        bytes.truncate(12 * MIB + 700);
        bytes
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// A mounted file system, unmounted when the test ends in whatever way.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn of(device: &LoopDevice, at: &Path) -> Self {
        fs::create_dir(at).unwrap();
        run("mount", &[device.path.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The output of a program that must succeed.
pub(crate) fn run(program: &str, words: &[&str]) -> String {
    let output =
        Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
