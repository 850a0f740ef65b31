//! Does a restore to a block device write every byte, and refuse a device that it must not touch?
//!
//! Needs root, a loop device and mkfs.ext4, and fails without them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/painted.rs"]
mod painted;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use painted::paint;
use store_kit::{BackupSpec, ObjectSpec, Packing, digests_of};
use tempfile::TempDir;

const FULL: &str = "10000000-bbbb-4bbb-8bbb-000000000001";
const TIP: &str = "20000000-bbbb-4bbb-8bbb-000000000002";

/// Length of the volume in bytes: whole sectors, and no whole hash block at its end.
const VOLUME_BYTES: usize = (3 << 20) + 512 * 5;

/// A loop device over a file, detached when the test ends in whatever way.
struct LoopDevice {
    path: PathBuf,
    backing: PathBuf,
}

impl LoopDevice {
    fn over(backing: &Path) -> Self {
        let output = run(Command::new("losetup").args(["--find", "--show"]).arg(backing));
        assert!(output.status.success(), "{output:?}");
        let path = String::from_utf8(output.stdout).unwrap().trim_end().into();
        Self { path, backing: backing.into() }
    }

    /// A device of `bytes` full of garbage.
    fn of_garbage(folder: &TempDir, name: &str, bytes: usize) -> Self {
        let backing = folder.path().join(name);
        fs::write(&backing, garbage(bytes)).unwrap();
        Self::over(&backing)
    }

    fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// What the device holds, past the page cache of the process that wrote it.
    fn bytes(&self) -> Vec<u8> {
        let flushed = run(Command::new("blockdev").arg("--flushbufs").arg(&self.path));
        assert!(flushed.status.success(), "{flushed:?}");
        fs::read(&self.path).unwrap()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

/// A mounted file system, unmounted when the test ends in whatever way.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn garbage(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i % 251) as u8 | 1).collect()
}

/// A full backup and an incremental that zeroes a part of it; returns the volume as of the incremental.
fn write_store(root: &Path) -> Vec<u8> {
    let noise = |seed: usize, len: usize| (0..len).map(|i| (i * i / 7 + seed) as u8).collect::<Vec<u8>>();
    let mut volume = noise(1, VOLUME_BYTES);
    volume[1 << 20..(1 << 20) + 300_000].fill(0);
    volume[VOLUME_BYTES - 100_000..VOLUME_BYTES - 60_000].fill(0);
    let layers = [
        vec![(0, volume)],
        vec![(65536, vec![0; 131_072]), (2 << 20, vec![0; 32768]), (VOLUME_BYTES - 2560, noise(9, 2560))],
    ];
    for (index, id) in [FULL, TIP].into_iter().enumerate() {
        let mut spec = BackupSpec::new(id, "30000000-aaaa-4aaa-8aaa-000000000003");
        spec.parent_id = (index > 0).then(|| FULL.into());
        let packing = Packing::Zlib { level: 6, junk: 0 };
        let objects = layers[index].iter();
        spec.objects = objects
            .map(|(offset, plain)| ObjectSpec { offset: *offset, plain: plain.clone(), packing })
            .collect();
        let volume = paint(&layers[..=index]).0;
        spec.digests = Some((32768, digests_of(&volume, 32768)));
        spec.write_to_folder(root);
    }
    paint(&layers).0
}

struct Bench {
    folder: TempDir,
    volume: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let volume = write_store(&folder.path().join("store"));
        Self { folder, volume }
    }

    fn restore(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        command.env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
        run(command.arg("restore").arg(self.folder.path().join("store")).arg(TIP).args(words))
    }

    /// The restore fails like this and leaves the device's garbage as it is.
    #[track_caller]
    fn refuses(&self, device: &LoopDevice, words: &[&str], code: i32, message: &str) {
        let before = device.bytes();
        let output = self.restore(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(message), "{stderr}");
        assert!(device.bytes() == before, "the refused device was written to");
    }
}

#[test]
fn every_byte_is_written_and_what_lies_behind_the_image_stays() {
    let bench = Bench::new();
    for behind in [0, 512 * 9] {
        let device = LoopDevice::of_garbage(&bench.folder, "device", VOLUME_BYTES + behind);
        let output = bench.restore(&[device.name(), "--force"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes = device.bytes();
        assert!(bytes[..VOLUME_BYTES] == bench.volume, "the image");
        assert!(bytes[VOLUME_BYTES..] == garbage(VOLUME_BYTES + behind)[VOLUME_BYTES..], "what lies behind");
        // It was made durable as well.
        assert!(fs::read(&device.backing).unwrap() == bytes);
    }
}

#[test]
fn zeros_are_written_also_where_the_device_cannot_discard() {
    let bench = Bench::new();
    let device = LoopDevice::of_garbage(&bench.folder, "device", VOLUME_BYTES);
    let queue = format!("/sys/block/{}/queue/discard_max_bytes", &device.name()["/dev/".len()..]);
    // Now the device offers no way to punch a hole, and zeros have to be sent to it.
    fs::write(&queue, "0").unwrap();
    let output = bench.restore(&[device.name(), "--force"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(device.bytes() == bench.volume);
}

#[test]
fn a_device_is_only_overwritten_by_force() {
    let bench = Bench::new();
    let device = LoopDevice::of_garbage(&bench.folder, "device", VOLUME_BYTES);
    bench.refuses(&device, &[device.name()], 2, "--force");
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let bench = Bench::new();
    let device = LoopDevice::of_garbage(&bench.folder, "device", VOLUME_BYTES - 512);
    bench.refuses(&device, &[device.name(), "--force"], 1, "bytes, the image");
}

#[test]
fn a_mounted_device_is_refused() {
    let bench = Bench::new();
    let device = LoopDevice::of_garbage(&bench.folder, "device", 8 << 20);
    let made = run(Command::new("mkfs.ext4").arg("-q").arg(&device.path));
    assert!(made.status.success(), "{made:?}");
    let mountpoint = bench.folder.path().join("mounted");
    fs::create_dir(&mountpoint).unwrap();
    // Read-only without a journal's replay, so that nobody but a restore could write.
    let mounted = run(Command::new("mount").args(["-o", "ro,noload"]).arg(&device.path).arg(&mountpoint));
    assert!(mounted.status.success(), "{mounted:?}");
    let _mounted = Mounted(mountpoint);
    bench.refuses(&device, &[device.name(), "--force"], 1, "busy");
}
