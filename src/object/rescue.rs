//! What lies behind damage, found without an index.
//!
//! Problem: damage in a stream takes all that follows with it, up to the next restart point; and on the first read of an object none is
//! known. Idea: where the codec's blocks stand for themselves (bz2), the rest is found by its own marks, once for each object, and its
//! beginnings become restart points like others. zlib and zstd have no such marks: each byte may refer to those before it.
//!
//! Invariant: the points are believed as others are: bytes from them are compared, and points that lead astray are forgotten.

use std::sync::PoisonError;

use super::ObjectReader;
use super::passes::Pass;
use super::seek_index::Entry;
use crate::error::{Error, ErrorKind};

impl ObjectReader {
    /// After reading from `offset` failed at `failed_at` with `error`: whether it should be tried again, because all of it lies behind
    /// the damage and a way past that is known by now. What else is lost by that damage can be read then as well.
    pub(super) fn rescue(&self, offset: u64, failed_at: u64, error: &Error) -> bool {
        if !matches!(error.kind(), ErrorKind::Codec | ErrorKind::Truncated) || !self.stream.has_marks() {
            return false;
        }
        let Some(damage) = self.failures.start_of(failed_at) else { return false };
        let mut rest = self.rescued.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begin) = *rest {
            return offset >= begin;
        }
        let nearest = self.turns.lock().index.nearest(damage);
        let (from, from_bits) = nearest.map_or((0, 0), |entry| (entry.plain_offset, entry.stored_bits));
        let points = match self.stream.points_behind_damage(from_bits, self.len_bytes) {
            Ok(points) => points,
            Err(error) => {
                tracing::debug!(object = ?self.name, "cannot look behind the damage: {error}");
                return false;
            }
        };
        // It may begin before the place where decoding failed: a damaged block may give more bytes than it ever held.
        let begin = points.first().map(|point| point.plain_offset).filter(|&begin| begin > from);
        *rest = Some(begin.unwrap_or(u64::MAX));
        let Some(begin) = begin else { return false };
        tracing::warn!(object = ?self.name, damage, begin, "the stream is damaged; what follows was found by its blocks' marks");
        let pass = Pass::new();
        self.change_index(|index| {
            points.into_iter().for_each(|point| _ = index.add(Entry::raw(point, pass)));
        });
        self.failures.clear();
        if damage < begin {
            self.failures.add(damage..begin, error);
        } else {
            self.failures.suspect(error);
        }
        offset >= begin
    }

    /// Whether a decoder that came from `from` and failed at `at` says nothing of what lies there: the damage may have made it run past
    /// the place where the rest begins.
    pub(super) fn ran_past_the_rest(&self, from: u64, at: u64) -> bool {
        // While somebody is looking for it nobody knows; what is noted meanwhile is forgotten when it is found.
        let rest = self.rescued.try_lock().ok().and_then(|rest| *rest);
        rest.is_some_and(|begin| from < begin && begin <= at)
    }
}
