//! The store as a place to write to: where a container is or would be, and what in it is in the way.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Dir, OFlags};
use rustix::io::Errno;

use super::disk::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::{METADATA_SUFFIX, SHA256FILE_SUFFIX};
use crate::store::posix::beneath::{Beneath, Resolution};
use crate::store::posix::{HIDDEN_FOLDER_PREFIX, errno_kind};
use crate::types::{BackupId, ObjectName};
use crate::waiting::Waiting;

/// Longest prefix accepted, in bytes: what a file's name holds, less the longest that follows a prefix.
const PREFIX_BYTES_MAX: usize = 255 - 32;

/// How deep a container may be nested: less than what the reader looks into.
const CONTAINER_DEPTH_MAX: usize = 30;

/// A store's root folder.
#[derive(Debug)]
pub(super) struct StoreRoot {
    beneath: Beneath,
    root: OwnedFd,
    location: String,
    /// Whether a lock that is free here is free everywhere.
    pub(super) has_sure_locks: bool,
}

impl StoreRoot {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |errno: Errno| {
            let kind = match errno_kind(errno) {
                ErrorKind::ObjectNotFound => ErrorKind::StoreNotFound,
                kind => kind,
            };
            Error::caused_by(kind, format!("cannot open the store {path:?}"), errno)
        };
        let _waiting = Waiting::begin("its folder");
        let beneath = Beneath::open(path, Resolution::detect()).map_err(failed)?;
        let root = beneath.read_root().map_err(failed)?;
        let has_sure_locks = is_local(&root);
        Ok(Self { beneath, root, location: path.to_string_lossy().into_owned(), has_sure_locks })
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    pub(super) fn location(&self) -> &str {
        &self.location
    }

    /// Opens the container, or the nearest folder above it that exists; and how many components of the container's name
    /// that is.
    pub(super) fn nearest(&self, container: &ObjectName) -> Result<(usize, OwnedFd)> {
        let components: Vec<_> = container.as_str().split('/').collect();
        for depth in (0..=components.len()).rev() {
            let name = if depth == 0 { ".".into() } else { components[..depth].join("/") };
            match self.open_folder(&name) {
                Ok(folder) => return Ok((depth, folder)),
                Err(Errno::NOENT) if depth > 0 => {}
                Err(Errno::XDEV | Errno::LOOP) => {
                    let message = format!("container {container:?} leads out of the store through a link");
                    return Err(Error::new(ErrorKind::UnsafeName, message));
                }
                Err(Errno::NOTDIR) => {
                    let message = format!("container {container:?} is no folder, or lies below what is none");
                    return Err(Error::new(ErrorKind::Usage, message));
                }
                Err(errno) => return Err(failed(format!("cannot open container {container:?}"), errno)),
            }
        }
        Err(failed(format!("cannot open container {container:?}"), Errno::NOENT))
    }

    /// Opens a folder by its checked name for reading its entries and making it durable.
    pub(super) fn open_folder(&self, name: &str) -> Result<OwnedFd, Errno> {
        let _waiting = Waiting::begin(format_args!("folder {name:?}"));
        self.beneath.open_file(Path::new(name), OFlags::RDONLY | OFlags::DIRECTORY)
    }
}

/// Whether only this kernel writes to the file system. NFS (`nolock`, `local_lock`) and many file systems in user space keep
/// locks to each host, so that other hosts' cannot be seen; what is not known to be local is not taken for it.
#[cfg(target_os = "linux")]
fn is_local(folder: &OwnedFd) -> bool {
    /// ext2 to ext4, XFS, Btrfs, tmpfs, ZFS, F2FS, overlayfs, bcachefs.
    const LOCAL: [u64; 8] =
        [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x2fc1_2fc1, 0xf2f5_2010, 0x794c_7630, 0xca45_1a4e];
    rustix::fs::fstatfs(folder).is_ok_and(|stat| LOCAL.contains(&(stat.f_type as u64)))
}

#[cfg(not(target_os = "linux"))]
fn is_local(_: &OwnedFd) -> bool {
    false
}

/// [`ErrorKind::Usage`] unless the container's name can be one of ours.
pub(super) fn check_container(container: &ObjectName) -> Result<()> {
    let mut components = container.as_str().split('/');
    if components.clone().count() > CONTAINER_DEPTH_MAX {
        let message = format!("container {container:?} is nested over {CONTAINER_DEPTH_MAX} deep");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    if components.any(|component| component.starts_with(HIDDEN_FOLDER_PREFIX)) {
        let message = format!("container {container:?} would be hidden: {HIDDEN_FOLDER_PREFIX:?} begins it");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(())
}

/// [`ErrorKind::Usage`] unless the prefix can begin a file's name, and Cinder's POSIX driver would find the files by it.
pub(super) fn check_prefix(prefix: &str) -> Result<()> {
    let fits = ObjectName::parse(prefix).is_ok() && prefix.len() <= PREFIX_BYTES_MAX;
    // A dot would hide the files, and begins the names that they have until they are published.
    if fits && !prefix.contains('/') && !prefix.starts_with('.') {
        return Ok(());
    }
    let shown: String = prefix.chars().take(64).collect();
    let message = format!(
        "object prefix {shown:?} is not one: expected 1 to {PREFIX_BYTES_MAX} bytes, no '/', no '.' in front"
    );
    Err(Error::new(ErrorKind::Usage, message))
}

/// [`ErrorKind::Usage`] when the container holds this backup, or names that one of two backups' restores would stumble
/// over: Cinder counts what begins with a prefix.
pub(super) fn check_clash(
    folder: &OwnedFd,
    container: &ObjectName,
    prefix: &str,
    id: &BackupId,
) -> Result<()> {
    let refuse = |name: &str, why: String| {
        Err(Error::new(ErrorKind::Usage, format!("container {container:?} holds {name:?}: {why}")))
    };
    let read = |errno| failed(format!("cannot read container {container:?}"), errno);
    let by_id = format!("_backup_{id}");
    let is_own_folder = container.as_str().rsplit('/').next() == Some(id.as_str());
    let _waiting = Waiting::begin(format_args!("the names in container {container:?}"));
    for entry in Dir::read_from(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_name().to_bytes().starts_with(prefix.as_bytes()) {
            return refuse(&name, format!("names that begin with {prefix:?} are taken"));
        }
        let has_id = name.match_indices(&by_id).any(|(at, _)| {
            let rest = &name[at + by_id.len()..];
            let number = rest.strip_prefix('-').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
            number || rest == METADATA_SUFFIX || rest == SHA256FILE_SUFFIX
        });
        if has_id || (is_own_folder && name.ends_with(METADATA_SUFFIX)) {
            return refuse(&name, format!("backup {id} exists"));
        }
        let other = name.strip_suffix(METADATA_SUFFIX).filter(|other| !other.is_empty());
        if other.is_some_and(|other| prefix.starts_with(other)) {
            return refuse(&name, format!("{prefix:?} begins with that backup's prefix"));
        }
    }
    Ok(())
}
