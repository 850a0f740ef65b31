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
//!
//! The stored bytes come with the point, from the decoder that noted it and went on ([`tail`](super::tail)).

use super::inflate::{Inflate, Status, WINDOW_BYTES_MAX};
use super::state;
use crate::codec::RestartPoint;

/// The same point with only the bytes that the stream refers to, or whole when the stored bytes that follow are not known or are
/// damaged; in any case compressed. A state that is packed already stays as it is. Reads nothing.
pub(crate) fn pack(point: RestartPoint) -> RestartPoint {
    let Some((window, stored)) = state::unpacked(&point.state) else { return point };
    let state = match referenced(stored, (point.stored_bits % 8) as u32, window.len()) {
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

/// For each byte of a window of `window_bytes`, whether the blocks that begin after the first `skip_bits` (0 to 7) bits of `stored`
/// refer to it; `None` when these are damaged, or too few to tell.
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
