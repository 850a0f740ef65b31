//! A read-only snapshot of the btrfs subvolume that holds the source.
//!
//! A reflink of the one file is simpler, needs no program and cannot be left behind, so `auto` takes that. It copies the list of
//! the file's extents, though, while all writers wait: for an image of a million fragments that is many seconds. A snapshot takes
//! the same moment whatever the size, and is therefore there for those who ask for it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::command::Call;
use super::marker::Marker;
use super::{Declined, Guard, Taken};
use crate::writer::source::host::{Host, names};
use crate::writer::source::in_use::cannot_open;

/// `f_type` of btrfs.
const BTRFS_MAGIC: u64 = 0x9123_683e;

/// The number of a subvolume's root folder, in every subvolume.
const ROOT_INODE: u64 = 256;

/// Takes a snapshot of the subvolume in which the regular file at `path` lies.
pub(super) fn take(host: &Host, path: &Path) -> Result<Taken, Declined> {
    let canonical = path.canonicalize().map_err(|e| cannot_open(path, e))?;
    let subvolume = subvolume(&canonical).ok_or_else(|| {
        Declined::Unfit("it does not lie in a btrfs subvolume whose root folder can be reached".into())
    })?;
    let relative = canonical.strip_prefix(&subvolume).unwrap_or(&canonical).to_owned();
    drop_leftovers(host, &subvolume);
    let name = Marker::new(host)?.name();
    let snapshot = subvolume.join(format!(".{name}"));
    let guard = Guard::new(host, delete(&snapshot));
    let arguments = [
        "subvolume".as_ref(),
        "snapshot".as_ref(),
        "-r".as_ref(),
        subvolume.as_os_str(),
        snapshot.as_os_str(),
    ];
    guard.make(Call::new("btrfs", arguments))?;
    Ok(Taken {
        path: snapshot.join(relative),
        file: None,
        undo: vec![guard],
        name: format!("btrfs snapshot {snapshot:?}"),
        room: None,
    })
}

fn delete(snapshot: &Path) -> Call {
    Call::new("btrfs", ["subvolume".as_ref(), "delete".as_ref(), snapshot.as_os_str()])
}

/// The root folder of the subvolume that holds a canonical path.
fn subvolume(canonical: &Path) -> Option<PathBuf> {
    let folder = canonical.parent()?;
    let device = fs::metadata(folder).ok()?.dev();
    let magic = rustix::fs::statfs(folder).ok()?.f_type;
    if u64::try_from(magic).ok()? != BTRFS_MAGIC {
        return None;
    }
    // Each subvolume has a device number of its own; a mount of a mere folder has no root above it.
    let mut folders = folder.ancestors().map(|folder| Some((folder, fs::symlink_metadata(folder).ok()?)));
    folders.find_map(|found| match found {
        Some((folder, metadata)) if metadata.dev() == device => {
            (metadata.ino() == ROOT_INODE).then(|| Some(folder.to_owned()))
        }
        _ => Some(None),
    })?
}

fn drop_leftovers(host: &Host, subvolume: &Path) {
    for name in names(subvolume) {
        let marker = name.to_str().and_then(|name| name.strip_prefix('.')).and_then(Marker::parse);
        let path = subvolume.join(&name);
        let is_root = || fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir() && m.ino() == ROOT_INODE);
        if marker.is_some_and(|marker| marker.is_abandoned(host)) && is_root() {
            super::drop_leftover(host, &delete(&path));
        }
    }
}
