//! The cache directory, from the environment to what commands take from it.

use std::fs;
#[cfg(feature = "fuse")]
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::exit::Failure;
use crate::cache_dir::CacheDir;
#[cfg(feature = "fuse")]
use crate::cache_dir::blocks::BlockRing;
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

/// The disk cache, for a mount that is only quicker with it. Without one there is a line in the log, unless the user named the
/// directory: then he means that one, and a mistake in its name is not passed over. A disk that is full or read-only is none.
#[cfg(feature = "fuse")]
pub(crate) fn blocks_if_any(dir: &Path, bytes_max: u64) -> Result<Option<Arc<BlockRing>>, Failure> {
    let error = match CacheDir::open(dir).and_then(|dir| BlockRing::open(&dir, bytes_max)) {
        Ok(blocks) => return Ok(Some(Arc::new(blocks))),
        Err(error) => error,
    };
    let has_no_room = matches!(
        error.io_kind(),
        Some(io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    );
    if !has_no_room && CacheDir::is_named() {
        return Err(Failure::from(error).hint("without disk_cache= the mount needs no cache directory"));
    }
    tracing::warn!("mounting without the disk cache that was asked for: {error}");
    Ok(None)
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
