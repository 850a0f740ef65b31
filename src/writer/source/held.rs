//! A source that holds still, or is seen not to have.
//!
//! Problem: a file or device that is written to while it is read gives a backup of no moment at all. Idea: what is read is a
//! snapshot where there can be one; else the source itself, which nobody may be using, and which is looked at again in the end.
//!
//! Invariant: the snapshot is gone when this is, in every outcome.

use std::ops::Range;
use std::path::Path;

use super::{FileSource, Source};
use crate::error::Result;
use crate::writer::snapshot::{Prepared, SnapshotKind, prepare};

/// A file or block device, or a snapshot of it.
pub struct HeldSource {
    // Closed before the snapshot is dropped: what is open cannot be removed.
    file: FileSource,
    prepared: Prepared,
}

impl HeldSource {
    /// Opens the source at `path` after taking a snapshot of that kind. A source in use is refused without one, unless `force`
    /// is given. The caller watches for signals by now.
    pub fn open(path: &Path, kind: SnapshotKind, force: bool) -> Result<Self> {
        let prepared = prepare(path, kind, force)?;
        let file = FileSource::open_as(prepared.path_to_read(), &path.to_string_lossy())?;
        Ok(Self { file, prepared })
    }

    /// The snapshot that is read, for people; `None` when the source itself is.
    pub fn snapshot(&self) -> Option<&str> {
        self.prepared.snapshot()
    }

    /// What the user should be told.
    pub fn warnings(&self) -> &[String] {
        self.prepared.warnings()
    }

    /// Drops the snapshot, and tells when that failed.
    pub fn finish(self) -> Result<()> {
        drop(self.file);
        self.prepared.finish()
    }
}

impl Source for HeldSource {
    fn name(&self) -> &str {
        self.file.name()
    }

    fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.file.next_data(offset)
    }

    fn check_len(&self) -> Result<()> {
        self.file.check_len()?;
        self.prepared.check_unchanged()
    }
}
