//! A real GlusterFS volume, as `scripts/services` starts it, and what `cinderfs` does with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use md5::{Digest, Md5};

#[track_caller]
pub(crate) fn told(name: &str) -> String {
    std::env::var(format!("TEST_GLUSTER_{name}"))
        .unwrap_or_else(|_| panic!("no TEST_GLUSTER_{name}; run scripts/services/test.sh"))
}

/// The volume, empty, and for one test at a time, since mounts are everybody's.
pub(crate) struct World {
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    pub(crate) fn new() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let world = Self { folder, _alone: alone };
        fs::create_dir(world.path("mnt")).unwrap();
        let mounted = world.mount_as_cinder();
        for entry in fs::read_dir(&mounted.0).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
        }
        drop(mounted);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// As cinder-backup has it: beneath its folder for mounts, called by the share's MD5.
    pub(crate) fn mount_as_cinder(&self) -> Mounted {
        let share = told("SHARE");
        let name: String = Md5::digest(&share).iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.path("backup_mount").join(name);
        fs::create_dir_all(&path).unwrap();
        let status = inside("mount").args(["-t", "glusterfs", &share]).arg(&path).status().unwrap();
        assert!(status.success());
        Mounted(path)
    }

    pub(crate) fn conf(&self) -> String {
        let text = format!(
            "[DEFAULT]\nbackup_driver = cinder.backup.drivers.glusterfs.GlusterfsBackupDriver\nglusterfs_backup_share = {}\n",
            told("SHARE")
        );
        fs::write(self.path("cinder.conf"), text).unwrap();
        self.text("cinder.conf")
    }

    pub(crate) fn mount(&self, words: &[&str]) -> Mounted {
        let (conf, mountpoint) = (self.conf(), self.text("mnt"));
        ends(&[&["mount"], words, &[&conf, &mountpoint]].concat(), 0);
        Mounted(mountpoint.into())
    }
}

/// A mount of any kind, gone at the end whatever happens.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// In the network that the servers are in.
pub(crate) fn inside(program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", told("NETWORK"))).arg(program).stdin(Stdio::null());
    command
}

pub(crate) fn cinderfs() -> Command {
    let mut command = inside(env!("CARGO_BIN_EXE_cinderfs"));
    command.env_remove("CINDERFS_LOG").env("CINDERFS_CACHE_DIR", "/nonexistent/cache");
    command
}

/// What it prints on stdout and stderr.
#[track_caller]
pub(crate) fn ends(words: &[&str], code: i32) -> (String, String) {
    let Output { status, stdout, stderr } = cinderfs().args(words).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert_eq!(status.code(), Some(code), "{words:?}: {stderr}");
    (stdout.trim().to_owned(), stderr)
}
