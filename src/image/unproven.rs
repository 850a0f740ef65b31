//! Images of backups without `_sha256file`.
//!
//! Each object must be read whole and have its md5 before any byte of it is served; then its blocks have digests that we
//! computed ourselves ([`crate::object::proof`]), and the object is a [`View`] like that of a backup with digests. A range
//! that no object covers is lost: nothing proves that it is zeros.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::engine::Engine;
use super::view::View;
use super::{Part, object_of, open_object};
use crate::backup::Backup;
use crate::byte_lru::ByteLru;
use crate::chain::extent_map::{Extent, ExtentMap, ObjectIndex, Piece};
use crate::error::{Error, ErrorKind, Result};
use crate::object::{FAILURE_BELIEVED, proof};
use crate::types::BlockHash;

/// Computed digests are kept up to this, in bytes: those of 32 GiB of volume.
const PROOF_BYTES_MAX: u64 = 32 << 20;

pub(super) struct UnprovenView {
    engine: Arc<Engine>,
    layers: Arc<[Arc<Backup>]>,
    map: ExtentMap,
    proofs: Mutex<ByteLru<ObjectIndex, Arc<Mutex<Proof>>>>,
}

/// The lock on it is held while the object is read, so that readers of one object share one proof.
#[derive(Default)]
enum Proof {
    #[default]
    None,
    Proven(Arc<View>),
    Refuted(Error, Instant),
}

/// Memory that the digests of an object of this length take, in bytes.
fn proof_cost(len_bytes: u64) -> u64 {
    let digests = len_bytes.div_ceil(proof::PROOF_BLOCK_BYTES) * size_of::<BlockHash>() as u64;
    (digests + 512).min(PROOF_BYTES_MAX) // one object is always kept, or each read would prove it anew
}

impl UnprovenView {
    pub(super) fn new(engine: Arc<Engine>, layers: Arc<[Arc<Backup>]>, map: ExtentMap) -> Self {
        Self { engine, layers, map, proofs: Mutex::new(ByteLru::new(PROOF_BYTES_MAX)) }
    }

    pub(super) fn map(&self) -> &ExtentMap {
        &self.map
    }

    pub(super) fn visit(
        &self,
        range: Range<u64>,
        visitor: &mut dyn FnMut(Range<u64>, Part<'_>) -> Result<()>,
    ) -> Result<()> {
        for piece in self.map.pieces(range) {
            match piece {
                Piece::Gap(image) => {
                    let message =
                        "no object covers these bytes, and without digests nothing says that they are zeros";
                    visitor(image, Part::Lost(&Error::new(ErrorKind::NoData, message)))?;
                }
                Piece::Data { image, object, object_offset, .. } => match self.proven(object) {
                    Err(error) => visitor(image, Part::Lost(&error))?,
                    Ok(view) => {
                        let end = object_offset + (image.end - image.start);
                        view.visit(object_offset..end, &mut |part, what| {
                            let start = image.start + (part.start - object_offset);
                            visitor(start..start + (part.end - part.start), what)
                        })?;
                    }
                },
            }
        }
        Ok(())
    }

    /// Gets the blocks of a range into the cache, as far as their objects are proven already: a proof reads all of an object.
    pub(super) fn fetch(&self, range: Range<u64>) {
        for piece in self.map.pieces(range) {
            let Piece::Data { image, object, object_offset } = piece else { continue };
            let slot = self.proofs.lock().unwrap_or_else(PoisonError::into_inner).get(&object).cloned();
            let view = slot.and_then(|slot| match &*slot.try_lock().ok()? {
                Proof::Proven(view) => Some(view.clone()),
                Proof::Refuted(..) | Proof::None => None,
            });
            if let Some(view) = view {
                view.fetch(object_offset..object_offset + (image.end - image.start));
            }
        }
    }

    fn proven(&self, index: ObjectIndex) -> Result<Arc<View>> {
        let (_, object) = object_of(&self.layers, index)?;
        let slot = {
            let mut proofs = self.proofs.lock().unwrap_or_else(PoisonError::into_inner);
            match proofs.get(&index) {
                Some(slot) => slot.clone(),
                None => {
                    let slot: Arc<Mutex<Proof>> = Arc::default();
                    proofs.insert(index, slot.clone(), proof_cost(object.len_bytes));
                    slot
                }
            }
        };
        let mut proof = slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*proof {
            Proof::Proven(view) => return Ok(view.clone()),
            Proof::Refuted(error, since) if since.elapsed() < FAILURE_BELIEVED => return Err(error.clone()),
            Proof::Refuted(..) | Proof::None => {}
        }
        let result = self.prove(index);
        *proof = match &result {
            Ok(view) => Proof::Proven(view.clone()),
            Err(error) => Proof::Refuted(error.clone(), Instant::now()),
        };
        result
    }

    fn prove(&self, index: ObjectIndex) -> Result<Arc<View>> {
        let (_, object) = object_of(&self.layers, index)?;
        let reader = open_object(&self.engine, &self.layers, index)?;
        let table =
            proof::prove(&reader, object.len_bytes, object.md5).inspect_err(|error| reader.suspect(error))?;
        let whole = Extent { start: 0, len: object.len_bytes, object: index, object_offset: 0 };
        let map = ExtentMap::paint([whole], object.len_bytes);
        Ok(Arc::new(View::new(self.engine.clone(), self.layers.clone(), map, Arc::new(table))))
    }
}
