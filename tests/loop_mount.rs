//! Are the file systems and partitions inside of images there for loop devices?
//!
//! Needs root, /dev/fuse and /dev/loop-control.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/mountpoint_guard.rs"]
mod mountpoint_guard;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use genuine::{backups_of, root};
use mountpoint_guard::{Mountpoint, is_mountpoint, run};
use tempfile::TempDir;

/// A mounted file system; unmounted with its value.
struct FileSystem {
    // Removed after the unmount in `drop`.
    folder: TempDir,
}

impl FileSystem {
    #[track_caller]
    fn mount(options: &str, device: &Path) -> Self {
        let folder = tempfile::Builder::new().prefix("cinderfs-loop-").tempdir().unwrap();
        run(Command::new("mount").args(["-o", options]).arg(device).arg(folder.path()));
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // As with a mount of cinderfs, a process that is just being started may have our files open for a moment.
        let deadline = Instant::now() + Duration::from_secs(5);
        while is_mountpoint(self.folder.path()) {
            let output = Command::new("umount").arg(self.folder.path()).output();
            if output.as_ref().is_ok_and(|output| output.status.success()) {
                return;
            }
            if Instant::now() >= deadline {
                assert!(std::thread::panicking(), "not unmounted: {output:?}");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A loop device; detached with its value.
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// As the README says, with what follows where the kernel does not know the partition table.
    #[track_caller]
    fn with_partitions(image: &Path) -> Self {
        let words = ["-P", "--read-only", "--find", "--show"];
        let output = run(Command::new("losetup").args(words).arg(image));
        let device = Self { path: String::from_utf8(output.stdout).unwrap().trim().into() };
        if !device.partition(1).exists() {
            // A kernel without CONFIG_EFI_PARTITION finds nothing; `partx` reads the table itself.
            let partx = Command::new("partx").arg("--add").arg(&device.path).output().unwrap();
            // It fails where the kernel was merely slower.
            let deadline = Instant::now() + Duration::from_secs(10);
            while !device.partition(1).exists() {
                assert!(Instant::now() < deadline, "no partition on {}: {partx:?}", device.path.display());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        device
    }

    fn partition(&self, number: u32) -> PathBuf {
        format!("{}p{number}", self.path.display()).into()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let output = Command::new("losetup").arg("--detach").arg(&self.path).output();
        let detached = output.as_ref().is_ok_and(|output| output.status.success());
        assert!(detached || std::thread::panicking(), "not detached: {output:?}");
    }
}

/// What every backup of the file system has.
#[track_caller]
fn check_common_files(fs: &FileSystem) {
    assert_eq!(fs::read(fs.path("etc/hostname")).unwrap(), b"fixture\n");
    assert_eq!(fs::read_link(fs.path("link")).unwrap(), Path::new("hello.txt"));
    assert_eq!(fs::read(fs.path("empty")).unwrap(), b"");
    assert_eq!(fs::read(fs.path("var/log/big.log")).unwrap().len(), 409_600);
    assert_eq!(fs::read(fs.path("var/log/deep/er/x")).unwrap().len(), 5000);
}

#[test]
fn an_ext4_image_mounts_and_shows_each_backups_files() {
    let mount = Mountpoint::new(&root());
    let backups = backups_of("ext4");
    assert_eq!(backups.len(), 3);
    // All three at once, as one looks for when a file went away.
    let mounted: Vec<_> =
        backups.iter().map(|backup| FileSystem::mount("loop,ro,noload", &mount.image(&backup.id))).collect();
    for (n, fs) in mounted.iter().enumerate() {
        check_common_files(fs);
        match fs::read(fs.path("new.txt")) {
            Ok(bytes) => {
                assert!(n >= 1 && bytes.len() == 42_000, "backup {}: {} bytes", n + 1, bytes.len());
                assert!(bytes.chunks(14).all(|line| line == b"second backup\n"));
            }
            Err(error) => assert!(n == 0 && error.kind() == std::io::ErrorKind::NotFound, "{error}"),
        }
        match fs::read(fs.path("hello.txt")) {
            Ok(bytes) => assert!(n <= 1 && bytes == b"hello\n", "backup {}", n + 1),
            Err(error) => assert!(n == 2 && error.kind() == std::io::ErrorKind::NotFound, "{error}"),
        }
        let refused = fs::write(fs.path("etc/hostname"), "changed").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(30), "{refused}"); // EROFS
    }
    drop(mounted);
    mount.unmount();
}

#[test]
fn the_newest_image_mounts_by_its_volumes_name() {
    let mount = Mountpoint::new(&root().join("ext4"));
    let fs = FileSystem::mount("loop,ro,noload", &mount.path().join("names/vol-ext4-0/latest/volume.img"));
    check_common_files(&fs);
    assert!(!fs.path("hello.txt").exists());
    drop(fs);
    mount.unmount();
}

#[test]
fn partitions_of_a_disk_mount_from_a_loop_device() {
    let mount = Mountpoint::new(&root());
    let backups = backups_of("gpt");
    assert_eq!(backups.len(), 2);
    for backup in &backups {
        let image = mount.image(&backup.id);
        let device = LoopDevice::with_partitions(&image);
        let fs = FileSystem::mount("ro,noload", &device.partition(1));
        check_common_files(&fs);
        assert_eq!(fs::read(fs.path("hello.txt")).unwrap(), b"hello\n");
        drop(fs);

        // The second partition is raw: the device must give what the image has there.
        let raw = fs::read(device.partition(2)).unwrap();
        let mut expected = vec![0; 3 << 20];
        fs::File::open(&image).unwrap().read_exact_at(&mut expected, 9 << 20).unwrap();
        assert!(raw == expected, "partition 2 of {backup}");
        let whole = fs::read(&device.path).unwrap();
        backup.check("through a loop device", &whole);
        drop(device);
    }
    mount.unmount();
}

/// Where there is no loop device with partitions, an offset does as well.
#[test]
fn a_partition_mounts_by_its_offset() {
    let mount = Mountpoint::new(&root());
    let backup = &backups_of("gpt")[0];
    let fs = FileSystem::mount("loop,ro,noload,offset=1048576,sizelimit=8388608", &mount.image(&backup.id));
    check_common_files(&fs);
    drop(fs);
    mount.unmount();
}

/// A file system without root: debugfs reads the image itself.
#[test]
fn debugfs_prints_a_file_out_of_an_image() {
    let mount = Mountpoint::new(&root());
    for backup in backups_of("ext4") {
        let output =
            run(Command::new("debugfs").args(["-R", "cat /etc/hostname"]).arg(mount.image(&backup.id)));
        assert_eq!(output.stdout, b"fixture\n", "{backup}");
    }
    mount.unmount();
}

/// A test that stops halfway must leave neither loop devices nor mounts.
#[test]
fn a_panic_takes_everything_away() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = std::panic::catch_unwind(move || {
        let mount = Mountpoint::new(&root().join("gpt"));
        let device = LoopDevice::with_partitions(&mount.image(&backups_of("gpt")[0].id));
        let fs = FileSystem::mount("ro,noload", &device.partition(1));
        sender.send((mount.path().to_owned(), device.path.clone(), fs.folder.path().to_owned())).unwrap();
        // As `assert!` does, without the noise.
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(outcome.is_err());
    let (mount, device, fs) = receiver.recv().unwrap();
    assert!(!is_mountpoint(&fs) && !fs.exists());
    assert!(!is_mountpoint(&mount) && !mount.exists());
    let name = device.file_name().unwrap().to_str().unwrap();
    let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default();
    assert!(!backing.contains(mount.to_str().unwrap()), "{name} is still attached to {backing}");
}
