//! Other copies of a block that is lost.
//!
//! Problem: a full backup of last week and one of yesterday hold most blocks twice, and so do volumes made from one
//! template; when an object rots, the bytes are often still there. Idea: before a block is given up, whoever knows the
//! store is asked for a backup with the same digest at the same place, and that backup's objects are tried.
//!
//! Invariants: a copy is verified like any other block; looking for one never looks for copies of copies; it happens for
//! damage only, not while the store fails to answer.

use std::sync::Arc;

use crate::backup::Backup;
use crate::block::VerifiedBlock;
use crate::types::{BackupId, BlockHash, BlockIndex, ObjectName};

/// A block that its own backup cannot give.
pub struct LostBlock<'a> {
    /// The newest backup of the chain that lost it.
    pub backup: &'a Backup,
    /// Which block.
    pub block: BlockIndex,
    /// The backup's block size in bytes.
    pub block_bytes: u64,
    /// This block's length in bytes; the last one may be shorter.
    pub len_bytes: u64,
    /// The digest it must have.
    pub hash: BlockHash,
    /// Objects and the plain offsets in them that were tried in vain.
    pub tried: &'a [(ObjectName, u64)],
}

/// Somebody who knows the other backups of a store.
pub trait Copies: Send + Sync {
    /// A copy of the block, and the backup it was found in.
    fn find(&self, lost: &LostBlock<'_>) -> Option<(Arc<VerifiedBlock>, BackupId)>;
}
