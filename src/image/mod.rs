//! The virtual disk, the one type that front-ends see.
//! (interface draft)

use crate::error::Result;

/// What proves an image's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verification {
    /// Each block has its sha256 in the backup's `_sha256file`.
    Sha256,
    /// There is no `_sha256file`: each object is checked whole against its md5 before any byte of it is served.
    Md5,
}

/// Damage seen so far in one image.
#[derive(Clone, Debug, Default)]
pub struct Damage {
    /// How many blocks could not be served.
    pub blocks: u64,
    /// Damaged ranges of the image, in bytes, sorted, disjoint; at most the first few thousand.
    pub ranges: Vec<std::ops::Range<u64>>,
}

/// The whole volume as of one backup.
pub struct Image {}

impl Image {
    /// Exact length in bytes.
    pub fn len_bytes(&self) -> u64 {
        0
    }

    /// Hash block in bytes.
    pub fn block_bytes(&self) -> u64 {
        0
    }

    /// What proves the bytes.
    pub fn verification(&self) -> Verification {
        Verification::Sha256
    }

    /// The ids of the chain, this backup first, the full one last.
    pub fn chain(&self) -> &[crate::types::BackupId] {
        &[]
    }

    /// Fills `buf` with verified bytes from `offset`; returns how many, less than asked only at the end of the image.
    pub fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<usize> {
        Ok(0)
    }

    /// The first offset >= `offset` that is data; `None` when only holes follow.
    pub fn seek_data(&self, _offset: u64) -> Result<Option<u64>> {
        Ok(None)
    }

    /// The first offset >= `offset` that is in a hole; the image's length when data goes on to the end.
    pub fn seek_hole(&self, offset: u64) -> Result<u64> {
        Ok(offset)
    }

    /// Bytes that are not holes, once that is known: small images know at once, large ones count in the background
    /// after the first call and say `None` until then.
    pub fn data_bytes(&self) -> Option<u64> {
        None
    }

    /// Damage seen so far.
    pub fn damage(&self) -> Damage {
        Damage::default()
    }
}
