//! Lost blocks, looked for by digest in the whole store.
//!
//! Reads of an image have tried every backup that has the block at the same offset already. What is left may stand elsewhere: in a volume
//! cloned from the same template, or at another place of the same one. All digests of the store are passed once, for all lost blocks together.
//!
//! Invariants: what comes out has the wanted digest; memory is that of the lost blocks, of which there are at most [`WANTED_MAX`].

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::backup::{Backup, DigestFile};
use crate::block::hash_of;
use crate::catalog::{Catalog, Entry};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Part;
use crate::types::{BlockHash, BlockIndex};

/// Most lost blocks looked for, 32 GiB of them. Each takes some 150 bytes.
const WANTED_MAX: usize = 1 << 20;

/// Places tried for one block. Each may cost decoding to it.
const PLACES_MAX: usize = 16;

/// Lost blocks, and where copies of them may be.
pub(super) struct Wanted {
    block_bytes: u64,
    blocks: HashMap<BlockHash, Block>,
}

#[derive(Default)]
struct Block {
    /// Where it is lost: there no copy is looked for.
    lost_at: Vec<u64>,
    places: Vec<(Arc<Entry>, u64)>,
}

impl Wanted {
    pub(super) fn new(block_bytes: u64) -> Self {
        Self { block_bytes, blocks: HashMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Notes a lost block. [`ErrorKind::LimitExceeded`] when there are too many.
    pub(super) fn add(&mut self, block: u64, hash: BlockHash) -> Result<()> {
        if self.blocks.len() >= WANTED_MAX {
            let message = format!("more than {WANTED_MAX} blocks are lost; restore what is left instead");
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        let lost_at = &mut self.blocks.entry(hash).or_default().lost_at;
        if lost_at.len() < PLACES_MAX {
            lost_at.push(block);
        }
        Ok(())
    }

    /// Notes where other backups of the store have these blocks. A backup that cannot be read offers none.
    pub(super) fn look_for(&mut self, catalog: &Catalog, stop: &dyn Fn() -> Result<()>) -> Result<()> {
        for entry in catalog.snapshot().entries().rev().filter(|entry| entry.problem.is_none()) {
            stop()?;
            let store = &**catalog.store();
            let digests = Backup::open(store, &entry.metadata_name).and_then(|backup| backup.digests(store));
            let Ok(DigestFile::Usable(table)) = digests else { continue };
            if table.block_bytes() != self.block_bytes {
                continue;
            }
            let scanned = table.scan(BlockIndex(0), &mut |BlockIndex(index), digest| {
                if let Some(block) = digest.and_then(|digest| self.blocks.get_mut(&digest))
                    && block.places.len() < PLACES_MAX
                    && !block.lost_at.contains(&index)
                {
                    block.places.push((entry.clone(), index));
                }
                ControlFlow::Continue(())
            });
            if let Err(error) = scanned {
                tracing::warn!(backup = %entry.id, "its digests cannot be searched: {error}");
            }
        }
        Ok(())
    }

    /// The bytes of a lost block, if they are to be had.
    pub(super) fn get(&self, catalog: &Catalog, hash: &BlockHash) -> Option<Vec<u8>> {
        let block = self.blocks.get(hash)?;
        block.places.iter().find_map(|(entry, index)| {
            let image = catalog.image(entry).ok()?;
            let start = index.checked_mul(self.block_bytes)?;
            let mut bytes = Vec::new();
            let visited = image.visit(start..start.checked_add(self.block_bytes)?, &mut |part, what| {
                match what {
                    Part::Data(data) => bytes.extend_from_slice(data),
                    Part::Zeros => bytes.resize(bytes.len() + (part.end - part.start) as usize, 0),
                    Part::Lost(error) => return Err(error.clone()),
                }
                Ok(())
            });
            visited.ok().filter(|()| hash_of(&bytes) == *hash).map(|()| bytes)
        })
    }
}
