//! Where the machine tells about itself: `/proc`, `/sys`, `/dev`, `/etc`, and its programs.
//!
//! In one value, so that tests can show a machine with LVM or ZFS where there is none.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::Dev;

use crate::error::ErrorKind;

/// Longest file of `/proc` or `/sys` that is read, in bytes: a `mountinfo` of 10,000 containers.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Where programs are looked for after the caller's own `PATH`: those for storage are not on that of every user.
const PROGRAMS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The kind of a failure of the source.
pub(crate) const FAILED: ErrorKind = ErrorKind::Source;

/// A machine.
#[derive(Clone, Debug)]
pub struct Host {
    pub(crate) proc: PathBuf,
    pub(crate) sys: PathBuf,
    pub(crate) dev: PathBuf,
    pub(crate) etc: PathBuf,
    pub(crate) programs: Vec<PathBuf>,
}

impl Default for Host {
    /// This machine.
    fn default() -> Self {
        let own = std::env::var_os("PATH").unwrap_or_default();
        // A relative entry would run what lies in the current folder.
        let own = std::env::split_paths(&own).filter(|folder| folder.is_absolute());
        Self {
            proc: "/proc".into(),
            sys: "/sys".into(),
            dev: "/dev".into(),
            etc: "/etc".into(),
            programs: own.chain(PROGRAMS.iter().map(PathBuf::from)).collect(),
        }
    }
}

impl Host {
    /// A machine whose `sys` and `dev` are folders of `root`, and whose only programs lie in its `bin`. For tests.
    pub fn with_root(root: &Path) -> Self {
        Self {
            sys: root.join("sys"),
            dev: root.join("dev"),
            programs: vec![root.join("bin")],
            ..Self::default()
        }
    }

    /// What stands in a small file, without the white space around it. `None` when there is no such file, or it is not text.
    pub(crate) fn text(path: &Path) -> Option<String> {
        let mut text = String::new();
        File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text.trim().to_owned())
    }

    /// Where the kernel tells about a block device.
    pub(crate) fn block(&self, device: Dev) -> PathBuf {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        self.sys.join(format!("dev/block/{major}:{minor}"))
    }

    /// The file systems mounted in this process's view.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let text = Self::text(&self.proc.join("self/mountinfo")).unwrap_or_default();
        text.lines().filter_map(Mount::parse).collect()
    }
}

/// A mounted file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mount {
    pub(crate) device: Dev,
    /// Which folder of the file system is mounted.
    pub(crate) root: PathBuf,
    pub(crate) at: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
}

impl Mount {
    /// `36 35 8:1 /root /at options - ext4 /dev/sda1 options`; between options and `-` there may be more.
    fn parse(line: &str) -> Option<Self> {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ').skip(2);
        let mut tail = tail.split(' ');
        let (major, minor) = head.next()?.split_once(':')?;
        Some(Self {
            device: rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?),
            root: unescape(head.next()?),
            at: unescape(head.next()?),
            kind: tail.next()?.to_owned(),
            source: unescape(tail.next()?),
        })
    }
}

/// A path of `/proc`, in which white space and backslashes stand as `\040`.
pub(crate) fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let digits =
            behind.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match digits {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push((value & 0xff) as u8);
                rest = &behind[3..];
            }
            None => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

/// The names in a folder; none when it cannot be read.
pub(crate) fn names(folder: &Path) -> impl Iterator<Item = std::ffi::OsString> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name())
}

/// Whether a path leads to a block device.
pub(crate) fn is_block(metadata: &fs::Metadata) -> bool {
    metadata.file_type().is_block_device()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_odd_names() {
        let line =
            r"36 35 98:0 /mnt1 /mnt\0402\134 rw,noatime master:1 - ext3 /dev/root\040x rw,errors=continue";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((rustix::fs::major(mount.device), rustix::fs::minor(mount.device)), (98, 0));
        assert_eq!((mount.at, mount.root), (r"/mnt 2\".into(), "/mnt1".into()));
        assert_eq!((mount.kind.as_str(), mount.source), ("ext3", "/dev/root x".into()));
        assert_eq!(Mount::parse("36 35 98:0 /mnt1"), None);
        assert_eq!(unescape(r"a\9\04"), PathBuf::from(r"a\9\04"));
    }
}
