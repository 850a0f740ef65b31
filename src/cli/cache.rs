//! The cache directory, from the environment to what commands take from it.

use std::fs;
#[cfg(feature = "fuse")]
use std::io;
#[cfg(feature = "fuse")]
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(feature = "fuse")]
use indicatif::BinaryBytes;

use super::exit::Failure;
use crate::cache_dir::CacheDir;
#[cfg(feature = "fuse")]
use crate::cache_dir::images::Images;
use crate::cache_dir::seek_indexes::SeekIndexStore;
use crate::error::{Error, ErrorKind, Result};

/// Where the cache directory is or would be.
pub(crate) fn location() -> Result<PathBuf, Failure> {
    CacheDir::location().ok_or_else(|| {
        Failure::new(
            ErrorKind::Usage,
            "there is no cache directory: neither a home nor XDG_CACHE_HOME is known",
        )
        .hint("set CINDERFS_CACHE_DIR to a directory of your own")
    })
}

/// Cinder counts the files of a container, and a store is only ever read.
pub(crate) fn refuse_inside_store(cache: &Path, store: &Path) -> Result<(), Failure> {
    let existing = cache.ancestors().find_map(|folder| fs::canonicalize(folder).ok());
    match (existing, fs::canonicalize(store)) {
        (Some(cache), Ok(store)) if cache.starts_with(&store) => Err(Failure::new(
            ErrorKind::Usage,
            format!("the cache directory {cache:?} lies inside the store"),
        )
        .hint("set CINDERFS_CACHE_DIR to a directory elsewhere")),
        _ => Ok(()),
    }
}

/// The index store, for a command that is about indexes.
pub(crate) fn seek_indexes() -> Result<Arc<SeekIndexStore>, Failure> {
    Ok(open(&CacheDir::open(&location()?)?)?)
}

fn open(dir: &CacheDir) -> Result<Arc<SeekIndexStore>> {
    Ok(Arc::new(SeekIndexStore::open(dir, SeekIndexStore::bytes_max_default(dir))?))
}

/// The index store, for a command that is only quicker with it: without one there is a line in the log.
pub(crate) fn seek_indexes_if_any() -> Option<Arc<SeekIndexStore>> {
    let indexes = CacheDir::open(&CacheDir::location()?).and_then(|dir| open(&dir));
    let tell = |error: &Error| {
        tracing::warn!(
            "random reads in large compressed objects will be slow again in the next run, which has to decode them from their \
             start: {error}"
        );
    };
    indexes.inspect_err(tell).ok()
}

/// Where to look for hydrated images, unless nobody can look there. What somebody hydrates later is found as well, so the folder
/// need not exist. With `is_told` it was said already that the cache directory is of no use.
#[cfg(feature = "fuse")]
pub(crate) fn images_if_any(is_told: bool) -> Option<Images> {
    let images = Images::below(&CacheDir::location()?);
    match fs::read_dir(images.folder()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let folder = images.folder();
            if is_told {
                tracing::debug!("hydrated images are not used: cannot open {folder:?}: {error}");
            } else {
                tracing::warn!("hydrated images are not used: cannot open {folder:?}: {error}");
            }
            None
        }
        _ => Some(images),
    }
}

/// What to tell whoever asks for a larger disk cache than there is room for, if so.
#[cfg(feature = "fuse")]
pub(crate) fn room_warning(dir: &CacheDir, bytes_max: u64) -> Option<String> {
    let disk = rustix::fs::statvfs(dir.path()).ok()?;
    let taken = fs::read_dir(dir.path().join("blocks")).into_iter().flatten().flatten();
    let taken: u64 = taken.filter_map(|file| Some(file.metadata().ok()?.blocks() * 512)).sum();
    let room = disk.f_bavail.saturating_mul(disk.f_frsize).saturating_add(taken);
    let (asked, has, dir) = (BinaryBytes(bytes_max), BinaryBytes(room), dir.path());
    (room < bytes_max).then(|| {
        format!(
            "cinderfs: disk_cache may grow to {asked}, but {dir:?} has room for {has}; once that disk is full, further blocks \
             are not kept\n"
        )
    })
}

#[cfg(all(test, feature = "fuse"))]
mod tests {
    use super::*;

    #[test]
    fn a_disk_cache_larger_than_its_disk_is_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CacheDir::open(&folder.path().join("cache")).unwrap();
        assert_eq!(room_warning(&dir, 1), None);
        let warning = room_warning(&dir, 1 << 62).unwrap();
        assert!(warning.contains("4.00 EiB") && warning.contains("has room for"), "{warning}");
    }
}
