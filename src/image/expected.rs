//! What is asked of a store far away before an image is opened.
//!
//! Problem: who restores a backup knows from its documents which object comes first, but its digests are opened before that object is,
//! and each takes journeys. Idea: the first objects are opened by other threads meanwhile, and the store begins to send them.
//!
//! Invariant: advice only. Nothing here fails, nobody waits for it, and what it does is bounded.

use std::sync::Arc;

use super::engine::Engine;
use super::{extents, open_object};
use crate::backup::Backup;
use crate::chain::extent_map::{ExtentMap, ObjectIndex, Piece};

/// How much of an image is expected to be read soon, in bytes: three objects of the default size for an object store.
const EXPECTED_BYTES: u64 = 128 << 20;

/// Pieces of objects that are looked at to find its first objects.
const PIECES_MAX: usize = 1024;

/// Objects that are opened ahead of time, at most.
const OBJECTS_MAX: usize = 4;

/// Chains of more objects begin without: to find out which comes first takes as long as a journey does.
const CHAIN_OBJECTS_MAX: usize = 100_000;

/// Tells that the image of the newest backup of `layers`, which are a whole chain, the full backup first, will be read from its beginning on.
pub fn expect(engine: &Arc<Engine>, layers: Vec<Arc<Backup>>) {
    let count: usize = layers.iter().map(|layer| layer.objects.len()).sum();
    if engine.store().calls_at_once() <= 1 || count > CHAIN_OBJECTS_MAX {
        return;
    }
    let (own, layers) = (engine.clone(), Arc::<[_]>::from(layers));
    engine.workers().submit(move || {
        for (object, offset) in first_objects(&layers) {
            let (engine, layers) = (own.clone(), layers.clone());
            own.workers().submit(move || {
                // Whoever reads it finds out why it cannot be.
                if let Ok(reader) = open_object(&engine, &layers, object) {
                    reader.read_on(offset);
                }
            });
        }
    });
}

/// The objects that the image shows something of at its beginning, and from where on.
fn first_objects(layers: &[Arc<Backup>]) -> Vec<(ObjectIndex, u64)> {
    // Where the image ends says only its digests, but not what lies at its beginning.
    let map = ExtentMap::paint(extents(layers), EXPECTED_BYTES);
    let mut first: Vec<(ObjectIndex, u64)> = Vec::new();
    for piece in map.pieces(0..EXPECTED_BYTES).take(PIECES_MAX) {
        if let Piece::Data { object, object_offset, .. } = piece
            && first.iter().all(|(known, _)| *known != object)
        {
            first.push((object, object_offset));
            if first.len() == OBJECTS_MAX {
                break;
            }
        }
    }
    first
}
