//! How the file is divided.
//!
//! ```text
//! 0     magic (16), buckets (u64), data bytes (u64), sha256 of these 32 bytes (32)       written once
//! 512   how much of the ring was ever given away (u64), its complement (u64)             see `ring`
//! 4096  the table
//! …     the data
//! ```
//!
//! All numbers are little-endian. The layout follows from the file's length alone; the header only proves that it is meant.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

/// What records of a page and more are aligned to, and the size of a bucket, in bytes.
pub(super) const PAGE: u64 = 4096;

/// Where the count of what was given away stands.
pub(super) const GIVEN_AT: u64 = 512;

/// The table's share of the file: an entry of 32 bytes for each 4 KiB of data. Blocks of 8 KiB and more leave at least half of
/// it free, so no bucket overflows before the ring does; of blocks of 512 bytes an eighth of the ring finds room.
const TABLE_SHARE: u64 = 128;

const MAGIC: &[u8; 16] = b"cinderfs ring 1\n";
const FIXED_BYTES: usize = 32;
const HEADER_BYTES: usize = FIXED_BYTES + 32;

/// How a file is divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Buckets in the table, at least one.
    pub(super) buckets: u64,
    /// Bytes in the ring, a multiple of [`PAGE`], at least one.
    pub(super) data_bytes: u64,
}

impl Layout {
    /// For a file of at most `bytes_max` bytes; `None` when nothing fits.
    pub(super) fn of_size(bytes_max: u64) -> Option<Self> {
        let pages = bytes_max.min(i64::MAX as u64) / PAGE;
        let buckets = (pages / TABLE_SHARE).max(1);
        let data_pages = pages.checked_sub(1 + buckets).filter(|pages| *pages > 0)?;
        Some(Self { buckets, data_bytes: data_pages * PAGE })
    }

    pub(super) fn table_at(&self) -> u64 {
        PAGE
    }

    pub(super) fn data_at(&self) -> u64 {
        PAGE + self.buckets * PAGE
    }

    /// Length of the whole file, in bytes.
    pub(super) fn file_bytes(&self) -> u64 {
        self.data_at() + self.data_bytes
    }

    /// The layout of a file that is there; `None` when its header is not what its length calls for.
    pub(super) fn of_file(file: &File) -> Option<Self> {
        let layout = Self::of_size(file.metadata().ok()?.len())?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).ok()?;
        (header == layout.header()).then_some(layout)
    }

    /// What the file begins with.
    pub(super) fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..16].copy_from_slice(MAGIC);
        header[16..24].copy_from_slice(&self.buckets.to_le_bytes());
        header[24..FIXED_BYTES].copy_from_slice(&self.data_bytes.to_le_bytes());
        let digest = Sha256::digest(&header[..FIXED_BYTES]);
        header[FIXED_BYTES..].copy_from_slice(&digest);
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_layout_is_larger_than_asked_for() {
        for bytes_max in [0, 4096, 8191, 12287] {
            assert_eq!(Layout::of_size(bytes_max), None);
        }
        for bytes_max in [12288, 12289, 1 << 20, 64 << 20, (10 << 30) + 17, 1 << 44, u64::MAX] {
            let layout = Layout::of_size(bytes_max).unwrap();
            assert!(layout.file_bytes() <= bytes_max && layout.data_bytes >= PAGE && layout.buckets >= 1);
            assert!(bytes_max < 1 << 20 || layout.data_bytes > bytes_max / 16 * 15 || bytes_max == u64::MAX);
            assert_eq!(Layout::of_size(layout.file_bytes()), Some(layout), "the file's length says it all");
        }
    }
}
