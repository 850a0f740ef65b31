//! A snapshot of a ZFS volume, or of the file system that holds the source.
//!
//! A file is read under `.zfs/snapshot`, which is there even where it is not listed. The snapshot of a volume has no device unless the
//! property `snapdev` is changed, which is not ours to do; so a read-only clone of it is made and read.

use std::fs;
use std::path::{Path, PathBuf};

use super::command::Call;
use super::marker::Marker;
use super::{Declined, Guard, Taken, await_device};
use crate::error::Result;
use crate::writer::source::host::{Host, Mount, names};
use crate::writer::source::in_use::cannot_open;

/// Most links below `/dev/zvol` looked at, and how deep.
const LINKS_MAX: usize = 100_000;
const DEPTH_MAX: usize = 32;

/// What the links have for a space of the name; no name has it.
const LINKED_SPACE: &str = "+";

/// Takes a snapshot of the file system in which the regular file at `path` lies.
pub(super) fn take_of_file(host: &Host, path: &Path) -> Result<Taken, Declined> {
    let canonical = path.canonicalize().map_err(|e| cannot_open(path, e))?;
    let mount = mount_of(host.mounts(), &canonical).filter(|mount| mount.kind == "zfs");
    let dataset = mount.as_ref().and_then(|mount| dataset_name(mount.source.to_str()?));
    let (Some(mount), Some(dataset)) = (&mount, dataset) else {
        return Err(Declined::Unfit("it does not lie on ZFS".into()));
    };
    let Ok(relative) = canonical.strip_prefix(&mount.at) else {
        return Err(Declined::Unfit("only a part of its file system is mounted".into()));
    };
    drop_leftovers(host, dataset, None);
    let name = Marker::new(host)?.name();
    let guard = snapshot(host, dataset, &name)?;
    let path = mount.at.join(".zfs/snapshot").join(&name).join(relative);
    Ok(Taken {
        path,
        file: None,
        undo: vec![guard],
        name: format!("ZFS snapshot {dataset}@{name}"),
        room: None,
    })
}

/// Takes a snapshot of the ZFS volume at `path`, a block device.
pub(super) fn take_of_volume(host: &Host, path: &Path) -> Result<Taken, Declined> {
    let volume = volume_of(host, path);
    let (Some(volume), Some((parent, _))) =
        (&volume, volume.as_deref().and_then(|name| name.rsplit_once('/')))
    else {
        return Err(Declined::Unfit("it is no ZFS volume".into()));
    };
    drop_leftovers(host, volume, Some(parent));
    let name = Marker::new(host)?.name();
    let guard = snapshot(host, volume, &name)?;
    let clone = format!("{parent}/{name}");
    let clone_guard = Guard::new(host, destroy(&clone));
    let origin = format!("{volume}@{name}");
    clone_guard
        .make(Call::new("zfs", ["clone", "-o", "readonly=on", "-o", "volmode=dev", &origin, &clone]))?;
    let path = host.dev.join("zvol").join(clone.replace(' ', LINKED_SPACE));
    await_device(&path)?;
    // The last is dropped first.
    Ok(Taken {
        path,
        file: None,
        undo: vec![guard, clone_guard],
        name: format!("ZFS snapshot {origin}"),
        room: None,
    })
}

fn snapshot(host: &Host, dataset: &str, name: &str) -> Result<Guard> {
    let snapshot = format!("{dataset}@{name}");
    let guard = Guard::new(host, destroy(&snapshot));
    guard.make(Call::new("zfs", ["snapshot", &snapshot]))?;
    Ok(guard)
}

fn destroy(name: &str) -> Call {
    Call::new("zfs", ["destroy", name])
}

/// The mounted file system that a canonical path lies in: the deepest, and of those at one place the latest.
fn mount_of(mounts: Vec<Mount>, canonical: &Path) -> Option<Mount> {
    let found = mounts.into_iter().filter(|mount| canonical.starts_with(&mount.at));
    let deepest = found.max_by_key(|mount| mount.at.components().count())?;
    (deepest.root == Path::new("/")).then_some(deepest)
}

/// A name that ZFS gives a file system or volume; nothing else becomes an argument.
fn dataset_name(name: &str) -> Option<&str> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || "_-.: ".contains(c);
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('-') && part.chars().all(is_fine);
    name.split('/').all(is_part).then_some(name)
}

/// The volume that a device is: its path below `/dev/zvol`.
fn volume_of(host: &Host, path: &Path) -> Option<String> {
    let folder = host.dev.join("zvol");
    let name = |link: &Path| {
        let name = link.strip_prefix(&folder).ok()?.to_str()?.replace(LINKED_SPACE, " ");
        dataset_name(&name).map(ToOwned::to_owned)
    };
    let absolute = std::path::absolute(path).ok()?;
    if absolute.starts_with(&folder) {
        return name(&absolute);
    }
    let device = path.canonicalize().ok()?;
    let is_volume = device
        .file_name()?
        .to_str()?
        .strip_prefix("zd")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()));
    if !is_volume {
        return None;
    }
    let mut waiting: Vec<(PathBuf, usize)> = vec![(folder.clone(), 0)];
    let mut seen = 0;
    while let Some((place, depth)) = waiting.pop() {
        for entry in names(&place) {
            seen += 1;
            if seen > LINKS_MAX {
                return None;
            }
            let link = place.join(entry);
            let Ok(metadata) = fs::symlink_metadata(&link) else { continue };
            if metadata.is_dir() && depth < DEPTH_MAX {
                waiting.push((link, depth + 1));
            } else if metadata.is_symlink() && link.canonicalize().is_ok_and(|target| target == device) {
                return name(&link);
            }
        }
    }
    None
}

/// `parent` holds the clones of a volume's snapshots.
fn drop_leftovers(host: &Host, dataset: &str, parent: Option<&str>) {
    let list = |kind: &str, of: &str| {
        let arguments = ["list", "-H", "-o", "name", "-t", kind, "-d", "1", of];
        Call::new("zfs", arguments).run(host).unwrap_or_default()
    };
    let clones = parent.map(|parent| list("volume", parent)).unwrap_or_default();
    for (names, separator) in [(clones, '/'), (list("snapshot", dataset), '@')] {
        for name in names.lines() {
            let marker = name.rsplit_once(separator).and_then(|(_, name)| Marker::parse(name));
            if marker.is_some_and(|marker| marker.is_abandoned(host)) {
                super::drop_leftover(host, &destroy(name));
            }
        }
    }
}
