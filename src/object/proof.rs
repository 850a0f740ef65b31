//! Digests for an object that has none.
//!
//! Problem: a backup without `_sha256file` is only proven by one md5 for each whole object, and nothing unproven may be
//! served; but an object of 2 GB is not kept in memory, and decoding it twice for each read would be absurd. Idea: decode
//! it once, computing its md5 and on the way the sha256 of each of its blocks. If the md5 is right, so are those digests,
//! and from then on the object is read, cached and verified like any other.

use md5::{Digest, Md5 as Md5Hasher};

use super::ObjectReader;
use crate::backup::BlockHashTable;
use crate::block::hash_of;
use crate::error::{Error, ErrorKind, Result};
use crate::types::Md5;

/// The block of computed digests, in bytes: Cinder's own default.
pub const PROOF_BLOCK_BYTES: u64 = 32 << 10;

/// Reads an object whole and returns the digests of its blocks, if its plain bytes are `len_bytes` with this md5.
pub fn prove(reader: &ObjectReader, len_bytes: u64, expected: Option<Md5>) -> Result<BlockHashTable> {
    let refuse = |message: String| {
        Error::new(ErrorKind::HashMismatch, format!("object {:?}: {message}", reader.name()))
    };
    let Some(expected) = expected else {
        let message = "it has neither block digests nor an md5, so nothing proves its bytes";
        return Err(Error::new(ErrorKind::NoData, format!("object {:?}: {message}", reader.name())));
    };
    let mut pass = reader.whole()?;
    let mut md5 = Md5Hasher::new();
    let mut hashes = Vec::new();
    let mut block = vec![0; PROOF_BLOCK_BYTES as usize];
    let mut total = 0;
    loop {
        let mut filled = 0;
        while filled < block.len() {
            let n = pass.read(&mut block[filled..]).map_err(|error| error.of_object(reader.name()))?;
            if n == 0 {
                break;
            }
            filled += n;
        }
        total += filled as u64;
        if total > len_bytes {
            return Err(refuse(format!(
                "it holds more than the {len_bytes} plain bytes that the metadata tells"
            )));
        }
        if filled > 0 {
            md5.update(&block[..filled]);
            hashes.push(hash_of(&block[..filled]));
        }
        if filled < block.len() {
            break;
        }
    }
    if total < len_bytes {
        let message =
            format!("object {:?}: its plain bytes end at {total}, expected {len_bytes}", reader.name());
        return Err(Error::new(ErrorKind::Truncated, message));
    }
    let actual = Md5(md5.finalize().into());
    if actual != expected {
        return Err(refuse(format!("md5 is {actual}, expected {expected}")));
    }
    Ok(BlockHashTable::computed(PROOF_BLOCK_BYTES, hashes))
}
