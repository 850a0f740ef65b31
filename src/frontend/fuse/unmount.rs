//! Taking mounts away, alive or dead.
//!
//! A mount whose daemon was killed answers every look at it with ENOTCONN, so nothing here looks at the mountpoint itself:
//! the kernel's mount table tells what stands where, and only the folder above is resolved.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::{Error, ErrorKind, Result};

/// The file system type that our mounts show, as in `mount -t fuse.cinderfs`.
pub const MOUNT_TYPE: &str = "fuse.cinderfs";

/// Begins the source that our mounts show; the store follows.
pub const SOURCE_PREFIX: &str = "cinderfs:";

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountLine {
    /// `major:minor` of the mounted file system.
    pub device: String,
    /// Where it stands.
    pub mountpoint: PathBuf,
    /// Its type.
    pub kind: String,
    /// What it shows as its source.
    pub source: String,
}

impl MountLine {
    /// Whether it is one of ours.
    pub fn is_cinderfs(&self) -> bool {
        self.kind == MOUNT_TYPE || (self.kind == "fuse" && self.source.starts_with(SOURCE_PREFIX))
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        let mountpoint = fields.nth(1)?;
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
        Some(Self {
            device: text(device),
            mountpoint: std::ffi::OsString::from_vec(unescape(mountpoint)).into(),
            kind: text(rest.next()?),
            source: text(rest.next()?),
        })
    }
}

/// Undoes the kernel's `\040` for space, tab, line feed and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|digits| byte == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(value as u8);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

/// What stands on top at a canonical path, if anything.
pub fn mounted_at(path: &Path) -> Result<Option<MountLine>> {
    let table = fs::read("/proc/self/mountinfo").map_err(|error| {
        Error::caused_by(ErrorKind::Target, "cannot read the mount table /proc/self/mountinfo", error)
    })?;
    // Later lines stand above earlier ones.
    let mut lines = table.split(|byte| *byte == b'\n').filter_map(MountLine::parse);
    Ok(lines.rfind(|line| line.mountpoint == path))
}

/// Unmounts a cinderfs mount, also one whose daemon died; `lazy` takes it out of the tree now even when it is in use.
///
/// [`ErrorKind::Usage`] when no cinderfs mount stands there, [`ErrorKind::Target`] when it is in use or may not be unmounted.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let (path, found) = find(mountpoint)?;
    match found {
        Some(line) if line.is_cinderfs() => {}
        Some(line) => {
            return Err(usage(format!(
                "{mountpoint:?} is a mount of type {:?}, not one of cinderfs",
                line.kind
            )));
        }
        None => return Err(usage(format!("nothing is mounted at {mountpoint:?}"))),
    }
    detach(&path, if lazy { How::Lazily } else { How::Now }).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => Error::new(
            ErrorKind::Target,
            format!(
                "the mount at {mountpoint:?} is in use; end what uses it (fuser -vm {mountpoint:?} tells processes, losetup -a loop devices) or use --lazy"
            ),
        ),
        _ => Error::caused_by(ErrorKind::Target, format!("cannot unmount {mountpoint:?}"), error),
    })
}

/// The canonical path of a mountpoint, found without looking at the mountpoint, and what stands there.
fn find(mountpoint: &Path) -> Result<(PathBuf, Option<MountLine>)> {
    let absolute = std::path::absolute(mountpoint).map_err(|error| {
        Error::caused_by(ErrorKind::Target, format!("cannot resolve {mountpoint:?}"), error)
    })?;
    if let (Some(folder), Some(name)) = (absolute.parent(), absolute.file_name())
        && let Ok(folder) = fs::canonicalize(folder)
        && let path = folder.join(name)
        && let Some(line) = mounted_at(&path)?
    {
        return Ok((path, Some(line)));
    }
    // A link to a mountpoint, or a path that ends in `..`.
    let path = fs::canonicalize(&absolute).map_err(|error| {
        Error::caused_by(ErrorKind::Target, format!("cannot resolve {mountpoint:?}"), error)
    })?;
    let line = mounted_at(&path)?;
    Ok((path, line))
}

/// What was found where a mount was to be taken away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// The mount, which is gone now, or nothing.
    Gone,
    /// Another mount, of this type; it stays.
    Hidden(String),
}

/// Takes the file system `device` away from `mountpoint` if it stands there on top. [`ErrorKind::Target`] when it is in use or
/// may not be unmounted.
pub(super) fn take_away(mountpoint: &Path, device: &str, lazy: bool) -> Result<Taken> {
    match mounted_at(mountpoint)? {
        Some(line) if line.device == device => {
            let how = if lazy { How::Abort } else { How::Now };
            detach(mountpoint, how).map(|()| Taken::Gone).map_err(|error| {
                Error::caused_by(ErrorKind::Target, format!("cannot unmount {mountpoint:?}"), error)
            })
        }
        Some(line) => Ok(Taken::Hidden(line.kind)),
        None => Ok(Taken::Gone),
    }
}

/// How a mount is taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// Unless it is in use.
    Now,
    /// Out of the tree; what is open goes on.
    Lazily,
    /// The same, and who waits for an answer gets an error now. A daemon that is about to end cannot leave that to its own end: a
    /// thread of it that is stuck in a store may keep the process, and with it the connection, for as long as the store likes.
    /// For other users than root there is no such call.
    Abort,
}

/// Asks the kernel, or for other users than root the setuid helper of libfuse.
fn detach(path: &Path, how: How) -> io::Result<()> {
    let flags = UnmountFlags::NOFOLLOW
        | match how {
            How::Now => UnmountFlags::empty(),
            How::Lazily => UnmountFlags::DETACH,
            How::Abort => UnmountFlags::DETACH | UnmountFlags::FORCE,
        };
    match rustix::mount::unmount(path, flags) {
        Err(Errno::PERM) => detach_by_helper(path, how != How::Now),
        outcome => Ok(outcome?),
    }
}

fn detach_by_helper(path: &Path, lazy: bool) -> io::Result<()> {
    for helper in ["fusermount3", "fusermount"] {
        let mut command = Command::new(helper);
        command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(path);
        match command.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) if output.stderr.windows(4).any(|word| word == b"busy") => {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(io::Error::other(format!("{helper} said {said:?}")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("only root may, or the helper fusermount3, which is not installed"))
}

fn usage(message: String) -> Error {
    Error::new(ErrorKind::Usage, message)
}

/// `path` as the mount table shows a source: what would break the options' syntax is escaped by a backslash.
pub(super) fn escape_source(source: &Path) -> String {
    let text = String::from_utf8_lossy(source.as_os_str().as_bytes());
    text.replace('\\', "\\\\").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_with_its_escapes() {
        let line = br"36 35 0:57 / /mnt/a\040b\134c ro,nosuid shared:1 master:2 - fuse.cinderfs cinderfs:/s\040t ro,user_id=0";
        let line = MountLine::parse(line).unwrap();
        assert_eq!(line.device, "0:57");
        assert_eq!(line.mountpoint, Path::new("/mnt/a b\\c"));
        assert_eq!((line.kind.as_str(), line.source.as_str()), (MOUNT_TYPE, "cinderfs:/s t"));
        assert!(line.is_cinderfs());
        for torn in ["", "36 35", "36 35 0:57 / /mnt ro", "36 35 0:57 / /mnt ro - ext4"] {
            assert_eq!(MountLine::parse(torn.as_bytes()), None, "{torn:?}");
        }
    }

    #[test]
    fn only_our_mounts_are_taken_for_ours() {
        let line = |kind: &str, source: &str| MountLine {
            device: "0:1".into(),
            mountpoint: "/mnt".into(),
            kind: kind.into(),
            source: source.into(),
        };
        assert!(line("fuse", "cinderfs:/store").is_cinderfs());
        assert!(!line("fuse.sshfs", "cinderfs:/store").is_cinderfs());
        assert!(!line("ext4", "/dev/sda1").is_cinderfs());
    }

    #[test]
    fn what_is_not_a_cinderfs_mount_stays_mounted() {
        let error = unmount(Path::new("/proc"), true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("\"proc\""), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let error = unmount(folder.path(), false).unwrap_err();
        assert!(error.to_string().contains("nothing is mounted"), "{error}");
    }

    #[test]
    fn commas_in_a_source_are_escaped() {
        assert_eq!(escape_source(Path::new("/a,b\\c")), "/a\\,b\\\\c");
    }
}
