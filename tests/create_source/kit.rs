//! Loop devices and mounts that go away with their value.

use std::path::{Path, PathBuf};
use std::process::Command;

use cinderfs::Result;
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text.trim().to_owned()
}

pub(crate) fn call(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    run(Command::new(program).args(arguments))
}

pub(crate) fn image(folder: &Path, name: &str, mib: u64) -> PathBuf {
    let path = folder.join(name);
    std::fs::File::create(&path).unwrap().set_len(mib * MIB).unwrap();
    path
}

/// What `attempt` gives when it succeeds. A program that another test starts at this moment holds all files of this process
/// open until it runs, and a file that was just closed is then still in use.
#[track_caller]
pub(crate) fn soon<T>(attempt: impl Fn() -> Result<T>) -> T {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A loop device.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    pub(crate) fn new(image: &Path, options: &[&str]) -> Self {
        let mut command = Command::new("losetup");
        Self(PathBuf::from(run(command.args(["--find", "--show"]).args(options).arg(image))))
    }

    pub(crate) fn name(&self) -> String {
        self.0.file_name().unwrap().to_string_lossy().into_owned()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A mounted file system.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn new(device: &Path, at: PathBuf, options: &str) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        call("mount", &[&"-o", &options, &device, &at]);
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A file system of its own on a file of its own. Fields are dropped in this order.
pub(crate) struct Disk {
    mounted: Mounted,
    pub(crate) device: Loop,
    _folder: TempDir,
}

impl Disk {
    pub(crate) fn new(kind: &str, mib: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path(), "disk", mib);
        let force = if kind == "ext4" { "-F" } else { "-f" };
        call(&format!("mkfs.{kind}"), &[&"-q", &force, &image]);
        let device = Loop::new(&image, &[]);
        let mounted = Mounted::new(&device.0, folder.path().join("mnt"), "noatime");
        Self { mounted, device, _folder: folder }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mounted.0
    }

    /// What lies in the root folder.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name != "lost+found");
        names.sort();
        names
    }
}
