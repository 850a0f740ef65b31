//! Where a mount may stand.
//!
//! A mount inside its own store would make the store's scan walk into the mount, which waits for the scan; one above the
//! store would hide it. Links, bind mounts and `..` make paths lie, so places are compared by canonical path and
//! by device and inode.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Checks a mountpoint against the folders it must keep away from, each with what people call it, and returns its
/// canonical path.
///
/// [`ErrorKind::Usage`] when it overlaps one of them, is not a folder, or holds files and `nonempty` is not set;
/// [`ErrorKind::Target`] when it is missing, cannot be looked at, or is a mount whose daemon died.
pub fn check(mountpoint: &Path, keep_away: &[(&str, &Path)], nonempty: bool) -> Result<PathBuf> {
    let canonical = fs::canonicalize(mountpoint).map_err(|error| unusable(mountpoint, error))?;
    let stat = fs::metadata(&canonical).map_err(|error| unusable(mountpoint, error))?;
    if !stat.is_dir() {
        return Err(usage(format!("mountpoint {mountpoint:?} is not a directory")));
    }
    for (what, folder) in keep_away {
        // What is not a folder of this machine (a URL, a cache yet to be made) cannot overlap.
        let Ok(folder) = fs::canonicalize(folder) else { continue };
        let Ok(folder_stat) = fs::metadata(&folder) else { continue };
        let relation = if same(&stat, &folder_stat) || canonical == folder {
            "is"
        } else if within(&canonical, &folder, &folder_stat) {
            "lies inside"
        } else if within(&folder, &canonical, &stat) {
            "would hide"
        } else {
            continue;
        };
        return Err(usage(format!(
            "mountpoint {mountpoint:?} {relation} the {what} {folder:?}; choose a directory outside it"
        )));
    }
    let mut files = fs::read_dir(&canonical).map_err(|error| unusable(mountpoint, error))?;
    if !nonempty && files.next().is_some() {
        return Err(usage(format!(
            "mountpoint {mountpoint:?} is not empty; choose an empty directory, or hide its files with -o nonempty"
        )));
    }
    Ok(canonical)
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Whether `folder` is one of the folders above `path`.
fn within(path: &Path, folder: &Path, folder_stat: &Metadata) -> bool {
    let above = |ancestor: &Path| {
        ancestor == folder || fs::metadata(ancestor).is_ok_and(|stat| same(&stat, folder_stat))
    };
    path.ancestors().skip(1).any(above)
}

fn usage(message: String) -> Error {
    Error::new(ErrorKind::Usage, message)
}

fn unusable(mountpoint: &Path, error: io::Error) -> Error {
    let message = match error.raw_os_error() {
        Some(libc::ENOTCONN) => format!(
            "mountpoint {mountpoint:?} holds a mount whose daemon died; take it away with: cinderfs umount {mountpoint:?}"
        ),
        _ => format!("cannot use mountpoint {mountpoint:?}"),
    };
    Error::caused_by(ErrorKind::Target, message, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(mountpoint: &Path, store: &Path) -> String {
        let error = check(mountpoint, &[("store", store)], false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        error.to_string()
    }

    #[test]
    fn a_mountpoint_keeps_away_from_the_store() {
        let root = tempfile::tempdir().unwrap();
        let [store, inside, other] = ["a/store", "a/store/x/y", "other"].map(|name| {
            let path = root.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        });
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&inside, &link).unwrap();
        assert!(message(&store, &store).contains("is the store"));
        assert!(message(&inside, &store).contains("lies inside the store"));
        assert!(message(&link, &store).contains("lies inside the store"), "links are followed");
        assert!(message(&other.join("../a/store/x"), &store).contains("lies inside the store"));
        assert!(message(&root.path().join("a"), &store).contains("would hide the store"));
        assert_eq!(check(&other, &[("store", &store)], false).unwrap(), other.canonicalize().unwrap());
        assert!(check(&other, &[("cache", &root.path().join("none"))], false).is_ok());
    }

    #[test]
    fn a_mountpoint_is_an_empty_directory() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(message(&file, Path::new("/nonexistent")).contains("is not a directory"));
        assert!(message(root.path(), Path::new("/nonexistent")).contains("-o nonempty"));
        assert!(check(root.path(), &[], true).is_ok());
        let missing = check(&root.path().join("missing"), &[], false).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Target);
        assert!(missing.to_string().contains("missing"), "{missing}");
    }

    #[test]
    fn a_dead_mount_is_told_how_to_leave() {
        let error = unusable(Path::new("/mnt"), io::Error::from_raw_os_error(libc::ENOTCONN));
        assert!(error.to_string().contains("cinderfs umount \"/mnt\""), "{error}");
    }
}
