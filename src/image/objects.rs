//! What an image reads from, object by object.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::engine::Engine;
use super::object_of;
use crate::backup::Backup;
use crate::chain::extent_map::{ExtentMap, ObjectIndex, Piece};
use crate::codec::Codec;
use crate::error::Result;
use crate::object::ObjectReader;
use crate::types::{BackupId, ObjectName};

/// An object of the store that an image reads from.
pub struct StoredObject<'a> {
    engine: &'a Engine,
    name: ObjectName,
    codec: Codec,
    len_bytes: u64,
    points: Option<Arc<str>>,
}

impl StoredObject<'_> {
    /// Its name in the store.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Its plain bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether a read in its middle is slow without restart points.
    pub fn needs_restart_points(&self) -> bool {
        self.engine.objects().indexing().spacing_bytes(self.codec, self.len_bytes).is_some()
    }

    /// Opens it.
    pub fn open(&self) -> Result<Arc<ObjectReader>> {
        self.engine.objects().get(self.name.clone(), self.codec, self.len_bytes, self.points.as_ref())
    }
}

/// An object of a chain, as its backup's metadata tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder<'a> {
    /// Whose object it is.
    pub backup: &'a BackupId,
    /// How many backups of the chain lie above that one: 0 for the image's own.
    pub depth: u32,
    /// The object's name in the store.
    pub name: ObjectName,
    /// How it is compressed.
    pub codec: Codec,
    /// Which bytes of the volume it was stored for; newer ones may hide some.
    pub volume: Range<u64>,
}

pub(super) fn holder(layers: &[Arc<Backup>], index: ObjectIndex) -> Result<Holder<'_>> {
    let (backup, object) = object_of(layers, index)?;
    Ok(Holder {
        backup: &backup.summary.id,
        depth: (layers.len() as u32).saturating_sub(index.layer + 1),
        name: backup.object_name(object)?,
        codec: object.codec,
        volume: object.offset..object.offset + object.len_bytes,
    })
}

/// The objects that `map` names, each once.
pub(super) fn of<'a>(engine: &'a Engine, layers: &[Arc<Backup>], map: &ExtentMap) -> Vec<StoredObject<'a>> {
    let mut seen = HashSet::new();
    let of_piece = |piece| match piece {
        Piece::Data { object, .. } if seen.insert(object) => {
            let (backup, data) = object_of(layers, object).ok()?;
            let name = backup.object_name(data).ok()?;
            let (codec, len_bytes, points) = (data.codec, data.len_bytes, data.points.clone());
            Some(StoredObject { engine, name, codec, len_bytes, points })
        }
        Piece::Data { .. } | Piece::Gap(_) => None,
    };
    map.pieces(0..map.len()).filter_map(of_piece).collect()
}
