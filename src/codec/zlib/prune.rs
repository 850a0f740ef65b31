//! Which bytes of a window the stream refers to, and restart points without the others.
//!
//! Problem: a window is 32 KiB, and most of it is never used: what follows copies some words from it, and of random data
//! nothing at all. Kept whole, the windows of a 2 GB object at 4 MiB are 16 MB. Idea: do not read the stream's codes here a
//! second time, ask the inflater. Given a made-up window in which each byte names its own place, it copies those names
//! into the plain bytes. A byte cannot name 32,768 places, so it runs twice: the first window says the lower half of
//! the place, the second one the lower half changed by a number that is never 0 and says the upper half. A plain byte that
//! is the same in both runs came from the stream itself.
//!
//! No distance reaches further than 32 KiB, so the first 32 KiB of plain bytes show every use. The decoder that starts
//! with zeros in the unused places can in turn note points whose windows hold those zeros: at such a place there is
//! again nothing that refers to them.

use super::inflate::{Inflate, Status, WINDOW_BYTES_MAX};
use super::state;
use crate::codec::RestartPoint;
use crate::store::ObjectSource;

/// Stored bytes that are looked at. 32 KiB of plain bytes that a sane writer stored do not take more than 33 KiB; of one
/// that wrote thousands of empty blocks the whole window is kept.
const STORED_BYTES_MAX: usize = 48 * 1024;

/// The same point with only the bytes that the stream refers to, or whole when this cannot be found out; in any case
/// compressed. A state that is packed already stays as it is.
pub(crate) fn pack(source: &dyn ObjectSource, point: RestartPoint) -> RestartPoint {
    let Some(window) = state::raw_window(&point.state) else { return point };
    let state = match referenced_in(source, point.stored_bits, window.len()) {
        Some(uses) => {
            let first = uses.iter().position(|used| *used).unwrap_or(uses.len());
            let pruned: Vec<u8> =
                window.iter().zip(&uses).map(|(byte, used)| if *used { *byte } else { 0 }).collect();
            state::packed(&pruned[first..])
        }
        None => state::packed(window),
    };
    RestartPoint { state, ..point }
}

/// For each byte of a window of `window_bytes`, whether the blocks from `stored_bits` on refer to it; `None` when the
/// object cannot be read or is damaged there.
fn referenced_in(source: &dyn ObjectSource, stored_bits: u64, window_bytes: usize) -> Option<Vec<bool>> {
    let mut stored = vec![0; STORED_BYTES_MAX];
    let mut filled = 0;
    while filled < stored.len() {
        match source.read_at(&mut stored[filled..], stored_bits / 8 + filled as u64).ok()? {
            0 => break,
            read => filled += read,
        }
    }
    referenced(&stored[..filled], (stored_bits % 8) as u32, window_bytes)
}

/// The same for blocks that begin after the first `skip_bits` (0 to 7) bits of `stored`.
fn referenced(stored: &[u8], skip_bits: u32, window_bytes: usize) -> Option<Vec<bool>> {
    let lower = |place: usize| place as u8;
    // 1 to 128, as a place has 15 bits.
    let upper = |place: usize| (place >> 8) as u8 + 1;
    let first: Vec<u8> = (0..window_bytes).map(lower).collect();
    let second: Vec<u8> = (0..window_bytes).map(|place| lower(place) ^ upper(place)).collect();
    let (first, second) = (plain_after(&first, stored, skip_bits)?, plain_after(&second, stored, skip_bits)?);

    let mut uses = vec![false; window_bytes];
    for (a, b) in first.into_iter().zip(second) {
        if a != b {
            let place = usize::from((a ^ b) - 1) << 8 | usize::from(a);
            *uses.get_mut(place)? = true;
        }
    }
    Some(uses)
}

/// The first 32 KiB of plain bytes that follow `window`, or all if the stream ends before; `None` when it does not get
/// so far.
fn plain_after(window: &[u8], stored: &[u8], skip_bits: u32) -> Option<Vec<u8>> {
    let mut inflate = Inflate::raw(window)?;
    let mut input = stored;
    if skip_bits > 0 {
        let (byte, rest) = stored.split_first()?;
        inflate.prime(8 - skip_bits, *byte);
        input = rest;
    }
    let mut plain = vec![0; WINDOW_BYTES_MAX];
    let mut filled = 0;
    while filled < plain.len() {
        let step = inflate.step(input, &mut plain[filled..], false);
        input = &input[step.consumed..];
        filled += step.produced;
        match step.status {
            Status::End => break,
            Status::More if step.consumed > 0 || step.produced > 0 => {}
            _ => return None,
        }
    }
    plain.truncate(filled);
    Some(plain)
}
