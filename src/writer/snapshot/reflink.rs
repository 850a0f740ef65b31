//! A reflink: a file that shares all its bytes with the source, until the source is written to (XFS, btrfs, bcachefs, …).
//!
//! It is made into a file without a name, which the kernel removes with our last descriptor, however we end. Where there are
//! no such files (NFS, OCFS2), it gets a name, which is taken away before the file holds anything.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;
use rustix::io::Errno;

use super::marker::Marker;
use super::{Declined, Taken};
use crate::error::Error;
use crate::writer::source::host::{FAILED, Host, names};
use crate::writer::source::in_use::cannot_open;

/// Makes a reflink of the regular file at `path`, beside it.
pub(super) fn take(host: &Host, path: &Path) -> Result<Taken, Declined> {
    let canonical = path.canonicalize().map_err(|e| cannot_open(path, e))?;
    let source = File::open(&canonical).map_err(|e| cannot_open(path, e))?;
    let folder = canonical.parent().unwrap_or(Path::new("/"));
    let failed = |what: &str, error: io::Error| {
        Declined::Failed(Error::caused_by(FAILED, format!("cannot {what} beside the source"), error))
    };
    let clone = match nameless(host, folder) {
        Ok(clone) => clone,
        // What cannot be written to needs no snapshot of this kind.
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
            return Err(Declined::Unfit("its file system is mounted read-only".into()));
        }
        Err(error) => return Err(failed("make a file", error)),
    };
    match_nocow(&source, &clone);
    match rustix::fs::ioctl_ficlone(&clone, &source) {
        Ok(()) => {}
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV | Errno::INVAL) => {
            return Err(Declined::Unfit("its file system has no reflinks".into()));
        }
        Err(errno) => return Err(failed("make a reflink", errno.into())),
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", clone.as_raw_fd()));
    Ok(Taken { path, file: Some(clone), undo: Vec::new(), name: "a reflink".into(), room: None })
}

/// An empty file without a name in `folder`.
fn nameless(host: &Host, folder: &Path) -> io::Result<File> {
    let options = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    };
    match options().custom_flags(libc::O_TMPFILE).open(folder) {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
        other => return other,
    }
    drop_leftovers(host, folder);
    let name = Marker::new(host).map_err(io::Error::other)?.name();
    let path = folder.join(format!(".{name}"));
    let file = options().create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Removes names that runs killed at just the wrong moment left: empty files.
fn drop_leftovers(host: &Host, folder: &Path) {
    for name in names(folder) {
        let marker = name.to_str().and_then(|name| name.strip_prefix('.')).and_then(Marker::parse);
        if !marker.is_some_and(|marker| marker.is_abandoned(host)) {
            continue;
        }
        let path = folder.join(&name);
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// On btrfs, files of disk images are often exempt from copy-on-write, and a reflink joins only files that are alike in it.
fn match_nocow(source: &File, clone: &File) {
    let (Ok(wanted), Ok(flags)) = (rustix::fs::ioctl_getflags(source), rustix::fs::ioctl_getflags(clone))
    else {
        return;
    };
    if (wanted ^ flags).contains(IFlags::NOCOW) {
        // Else the reflink fails, and tells why.
        let _ = rustix::fs::ioctl_setflags(clone, flags ^ IFlags::NOCOW);
    }
}
