//! Digests as 32 bytes each, in memory or, where they are many, in a mapped temporary file.
//!
//! Problem: a digest file that does not have Cinder's layout must be parsed whole, and 1 TiB of volume has 1 GiB of
//! digests even then. Idea: beyond a bound they go to a file, and the kernel decides which pages stay in memory.
//!
//! Invariant: the file is unlinked and was never visible under a name, so nobody but us can change or truncate it while
//! it is mapped. That is what makes the mapping sound; a mapping of a file *of the store* would not be.

use std::io::{BufWriter, Write as _};

use memmap2::Mmap;

use crate::error::{Error, ErrorKind, Result};
use crate::types::BlockHash;

/// Digests kept in memory before they go to a file: 8 MiB of them, a volume of 8 GiB at 32 KiB.
const IN_MEMORY_MAX: usize = 8 << 20 >> 5;

const HASH_BYTES: usize = size_of::<BlockHash>();

/// An immutable list of digests.
pub(super) enum PackedHashes {
    Memory(Vec<BlockHash>),
    File(Mmap),
}

impl PackedHashes {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(hashes) => hashes.len() as u64,
            Self::File(map) => (map.len() / HASH_BYTES) as u64,
        }
    }

    pub(super) fn get(&self, index: u64) -> Option<BlockHash> {
        let index = usize::try_from(index).ok()?;
        match self {
            Self::Memory(hashes) => hashes.get(index).copied(),
            Self::File(map) => {
                let start = index.checked_mul(HASH_BYTES)?;
                let bytes = map.get(start..start.checked_add(HASH_BYTES)?)?;
                Some(BlockHash(bytes.try_into().ok()?))
            }
        }
    }
}

/// Collects digests one by one.
pub(super) struct Packer {
    memory: Vec<BlockHash>,
    memory_max: usize,
    file: Option<BufWriter<std::fs::File>>,
}

impl Packer {
    pub(super) fn new() -> Self {
        Self::with_memory_max(IN_MEMORY_MAX)
    }

    fn with_memory_max(memory_max: usize) -> Self {
        Self { memory: Vec::new(), memory_max, file: None }
    }

    pub(super) fn push(&mut self, hash: BlockHash) -> Result<()> {
        if self.memory.len() == self.memory_max {
            let file = match &mut self.file {
                Some(file) => file,
                None => {
                    self.file.insert(BufWriter::with_capacity(1 << 20, tempfile::tempfile().map_err(failed)?))
                }
            };
            for hash in self.memory.drain(..) {
                file.write_all(&hash.0).map_err(failed)?;
            }
        }
        self.memory.push(hash);
        Ok(())
    }

    pub(super) fn finish(self) -> Result<PackedHashes> {
        let Some(mut file) = self.file else { return Ok(PackedHashes::Memory(self.memory)) };
        for hash in &self.memory {
            file.write_all(&hash.0).map_err(failed)?;
        }
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        Ok(PackedHashes::File(map(&file).map_err(failed)?))
    }
}

#[expect(unsafe_code, reason = "mapping a file is unsafe unless nobody can truncate it")]
fn map(file: &std::fs::File) -> std::io::Result<Mmap> {
    // SAFETY: the file was made by `tempfile::tempfile`, which leaves no name behind, and this process has just written
    // it and does so no more: nobody can open, change or truncate it while it is mapped.
    unsafe { Mmap::map(file) }
}

fn failed(error: std::io::Error) -> Error {
    Error::caused_by(ErrorKind::StoreIo, "cannot keep digests in a temporary file", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_file_hold_the_same() {
        for (count, memory_max) in [(0u8, 4), (3, 4), (4, 4), (5, 4), (9, 4), (200, 7)] {
            let mut packer = Packer::with_memory_max(memory_max);
            for i in 0..count {
                packer.push(BlockHash([i; 32])).unwrap();
            }
            let packed = packer.finish().unwrap();
            assert_eq!(matches!(packed, PackedHashes::File(_)), usize::from(count) > memory_max);
            assert_eq!(packed.len(), u64::from(count));
            for i in 0..count {
                assert_eq!(packed.get(u64::from(i)), Some(BlockHash([i; 32])));
            }
            assert_eq!(packed.get(u64::from(count)), None);
            assert_eq!(packed.get(u64::MAX), None);
        }
    }
}
