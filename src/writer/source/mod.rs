//! What is backed up: a device or an image file.
//!
//! Problem: a backup of a volume that fails or shrinks half-way must not look like one of the whole. Idea: a source tells its
//! length once, when it is opened; every read delivers all that was asked for or an error that names the byte.
//!
//! Invariant: bytes that the source did not deliver are never made up.

// What changed since the parent, as somebody else tells it.
pub mod changed;
// Where the machine tells about itself.
pub mod host;
// Which volume it is.
pub mod identity;
// Whether it is an image file of a format of its own.
pub mod image_format;
// Who else uses it.
pub mod in_use;
mod lease;
mod file;

use std::ops::Range;

pub use self::file::FileSource;
use crate::error::Result;

/// A volume to be read, from any thread.
pub trait Source: Send + Sync {
    /// What people call it: its path.
    fn name(&self) -> &str;

    /// Its length in bytes when it was opened.
    fn len_bytes(&self) -> u64;

    /// Fills `buf` from `offset`. [`ErrorKind::Source`](crate::ErrorKind::Source) when it ends first or cannot be read;
    /// the error names the byte.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// The next bytes at or behind `offset` that may be other than zeros; `None` when there are none to the end. A source
    /// that does not know its holes tells all of it.
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        Ok((offset < self.len_bytes()).then(|| offset..self.len_bytes()))
    }

    /// Tells the system that a range will not be read again soon, so that reading terabytes leaves others their cache.
    fn forget(&self, _range: Range<u64>) {}

    /// To be asked when all was read: fails when the source has become shorter than it was when it was opened.
    fn check_len(&self) -> Result<()>;
}
