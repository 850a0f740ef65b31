//! The cache directory, from the environment to what commands take from it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::exit::Failure;
use crate::cache_dir::CacheDir;
use crate::cache_dir::seek_indexes::SeekIndexStore;
use crate::error::{ErrorKind, Result};

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
    indexes.inspect_err(|error| tracing::warn!("restart points are not kept: {error}")).ok()
}
