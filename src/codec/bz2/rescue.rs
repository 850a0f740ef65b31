//! Where a stream can be entered behind damage.
//!
//! Problem: a block that fails to decode does not tell where the next one begins, nor how many plain bytes it held. Idea: the next
//! magic behind it that begins a block whose CRC is right begins the rest; decoded to its end, the rest tells its length, and the
//! object's length is known. So its first plain byte lies as far before the object's end.
//!
//! Invariants: what comes out is where restart points should be, and as little trusted as other points; it is told only where the rest
//! goes on to the last stored byte. With several damaged blocks it is what follows the last of them. Everything behind the damage is decoded
//! once, and at most [`TRIES_MAX`] blocks in vain.

use std::sync::Arc;

use super::ahead::Ahead;
use super::{Bz2Decoder, Object, POINT_SPACING_BYTES};
use crate::codec::{Decoder, Recording, RestartPoint};
use crate::error::Result;

/// The level of the largest blocks, which decodes those of all levels.
const LEVEL_MAX: u8 = 9;

/// Beginnings that may lead nowhere: damaged blocks, and bits that only look like a beginning.
const TRIES_MAX: u32 = 64;

/// Decoded at once, in bytes.
const STEP_BYTES: usize = 256 << 10;

/// What stands before the first block of a stream, in bits: `BZh` and the level.
const HEAD_BITS: u64 = 32;

/// Restart points of the rest behind damage, in order; none where the rest cannot be found. `from_bits` is where a block begins at or before the
/// damage, `len_bytes` the plain length of the object. Fails only where the store does.
pub(in crate::codec) fn points_behind_damage(
    object: &Arc<Object>,
    from_bits: u64,
    len_bytes: u64,
) -> Result<Vec<RestartPoint>> {
    let mut scan = Ahead::new(object, LEVEL_MAX);
    scan.look_from(from_bits);
    let mut buffer = vec![0; STEP_BYTES];
    for _ in 0..TRIES_MAX {
        let Some(at) = scan.next_place(u64::MAX) else { break };
        let first = RestartPoint { plain_offset: 0, stored_bits: at, state: Arc::new([LEVEL_MAX]) };
        let mut decoder = Bz2Decoder::resume(object.clone(), &first)?;
        decoder.record(Some(Recording { from: 0, spacing_bytes: POINT_SPACING_BYTES }));
        let (mut points, mut total) = (vec![first], 0);
        loop {
            match decoder.read(&mut buffer) {
                // From the first block on it is whole: nothing is damaged, the stream is shorter than it should be.
                Ok(0) if decoder.ended_whole && at <= from_bits + HEAD_BITS => return Ok(Vec::new()),
                Ok(0) if decoder.ended_whole => {
                    return Ok(len_bytes.checked_sub(total).map_or(Vec::new(), |base| placed(points, base)));
                }
                Ok(n) if n > 0 && total + n as u64 <= len_bytes => {
                    total += n as u64;
                    points.append(&mut decoder.take_points());
                }
                Err(error) if !error.kind().is_damage() => return Err(error),
                Ok(_) | Err(_) => break,
            }
        }
        scan.look_from(decoder.last_block + 1);
    }
    Ok(Vec::new())
}

/// The points of a rest that begins at plain offset `base`. At the object's start one starts anyway.
fn placed(points: Vec<RestartPoint>, base: u64) -> Vec<RestartPoint> {
    let moved =
        points.into_iter().map(|point| RestartPoint { plain_offset: point.plain_offset + base, ..point });
    moved.filter(|point| point.plain_offset > 0).collect()
}
