//! A wrong block, read again before it is believed to be damaged.
//!
//! Wrong bytes may be the fault of whoever decoded them: its decoder ran through damage before them, or began at a restart
//! point of an earlier run that leads astray. So they are decoded again from the nearest point, and then once from the object's
//! start ([`SecondLook`]). Invariant: what the objects say after that stands; only then other backups are asked.

use std::ops::Range;
use std::sync::Arc;

use super::{View, Wanted, within};
use crate::block::VerifiedBlock;
use crate::chain::extent_map::Piece;
use crate::error::{Error, Result};
use crate::object::{ObjectReader, SecondLook};
use crate::types::ObjectName;

impl View {
    /// Reads a wrong block again, in case restart points of an earlier run led astray.
    pub(super) fn look_again(
        &self,
        wanted: &Wanted<'_>,
        error: Error,
        read_from: &[(Arc<ObjectReader>, u64)],
    ) -> Result<Arc<VerifiedBlock>> {
        if !error.kind().is_damage() {
            return Err(error);
        }
        let range = self.range_of(wanted.block);
        let mut pieces: Vec<(ObjectName, Range<u64>, u64)> = Vec::new();
        for piece in self.map.pieces(range.clone()) {
            let Piece::Data { image, object, object_offset } = piece else { continue };
            let Ok(name) = self.name_of(object) else { return Err(error) };
            pieces.push((name, image, object_offset));
        }
        // By id, so that two who look at the same objects do not wait for each other.
        let mut readers: Vec<_> = read_from
            .iter()
            .filter(|(reader, _)| pieces.iter().any(|(name, ..)| name == reader.name()))
            .collect();
        readers.sort_by_key(|(reader, seen)| (reader.id(), *seen));
        readers.dedup_by_key(|(reader, _)| reader.id());
        let mut looks: Vec<_> = readers.iter().map(|(reader, seen)| reader.look_again(*seen)).collect();
        let mut plain = vec![0; (range.end - range.start) as usize];
        // Whoever decoded it may have come through damage that lies before the next place to begin from.
        let places: Vec<_> = pieces
            .iter()
            .filter_map(|(name, image, offset)| {
                let look = looks.iter().find(|look| look.object().name() == name)?;
                Some((look, image, *offset))
            })
            .collect();
        if places.iter().any(|(look, _, offset)| look.may_enter_anew(*offset)) {
            let is_read = places.iter().all(|(look, image, offset)| {
                look.read_anew(&mut plain[within(image, &range)], *offset).is_ok()
            });
            if let Some(verified) = is_read.then(|| self.verify(wanted, &plain).ok()).flatten() {
                return Ok(verified);
            }
            places.iter().for_each(|(look, _, offset)| look.is_lost_from(*offset));
        }
        if !looks.iter().any(SecondLook::may_help) {
            return Err(error);
        }
        plain.fill(0);
        let is_read = pieces.iter().all(|(name, image, object_offset)| {
            let out = &mut plain[within(image, &range)];
            let look = looks.iter_mut().find(|look| look.object().name() == name);
            look.is_some_and(|look| look.read_at(out, *object_offset).is_ok())
        });
        let verified = if is_read { self.verify(wanted, &plain) } else { Err(error.clone()) };
        looks.into_iter().for_each(|look| look.end(verified.is_ok()));
        verified.map_err(|_| error)
    }
}
