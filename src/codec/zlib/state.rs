//! The state of a restart point: the window, the up to 32 KiB of plain bytes before it.
//!
//! A state is one tag byte and a body; each tag is a format for good, and a new one gets a new tag:
//!
//! | tag | body |
//! | --- | --- |
//! | none, the state is empty | no window: no block after the point refers to plain bytes before it |
//! | 1 | the window as it is |
//! | 2 | the window as one zstd frame |
//! | 3 | the window's length (2 bytes, little-endian), the window as it is, and stored bytes from the one that holds the point's bit on; never in a file |
//!
//! In a packed state the window bytes that nothing refers to are zeros, and those at its beginning are left out: its last
//! byte is the one just before the point in any case.
//!
//! A state comes from a file, so it is hostile: whatever it claims, it becomes at most 32 KiB.

use std::sync::Arc;

use ::zstd::zstd_safe::{CCtx, DCtx};

use super::inflate::{Inflate, WINDOW_BYTES_MAX};

const TAG_RAW: u8 = 1;
const TAG_ZSTD: u8 = 2;
const TAG_FOLLOWED: u8 = 3;

/// Bytes before the window of a state with stored bytes.
const FOLLOWED_HEAD_BYTES: usize = 3;

/// Level 1: windows are packed beside a decoder that runs at over 1 GB/s, and higher levels save little of 32 KiB.
const ZSTD_LEVEL: i32 = 1;

/// The state of the place where `inflate` stands, as it is.
pub(super) fn of(inflate: &Inflate) -> Arc<[u8]> {
    let mut state = Vec::with_capacity(1 + WINDOW_BYTES_MAX);
    state.push(TAG_RAW);
    inflate.append_window(&mut state);
    state.into()
}

/// The same state with the stored bytes that follow its point; `None` when it is not one as [`of`] makes it.
pub(super) fn followed(state: &[u8], stored: &[u8]) -> Option<Arc<[u8]>> {
    let (window, _) = unpacked(state).filter(|(_, known)| known.is_empty())?;
    let len = u16::try_from(window.len()).ok()?;
    let mut followed = Vec::with_capacity(FOLLOWED_HEAD_BYTES + window.len() + stored.len());
    followed.push(TAG_FOLLOWED);
    followed.extend(len.to_le_bytes());
    followed.extend(window);
    followed.extend(stored);
    Some(followed.into())
}

/// The window of a state that is not packed, and what is known of the stored bytes that follow its point.
pub(super) fn unpacked(state: &[u8]) -> Option<(&[u8], &[u8])> {
    let (window, stored) = match state {
        [TAG_RAW, window @ ..] => (window, &[][..]),
        [TAG_FOLLOWED, low, high, rest @ ..] => {
            rest.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?
        }
        _ => return None,
    };
    (window.len() <= WINDOW_BYTES_MAX).then_some((window, stored))
}

/// The window of any state; `None` for what is not a state.
pub(super) fn window(state: &[u8]) -> Option<Vec<u8>> {
    match state.split_first() {
        None => Some(Vec::new()),
        Some((&(TAG_RAW | TAG_FOLLOWED), _)) => unpacked(state).map(|(window, _)| window.to_vec()),
        Some((&TAG_ZSTD, frame)) => {
            let mut window = vec![0; WINDOW_BYTES_MAX];
            // Into a buffer of this size libzstd keeps no window of its own, so the frame cannot ask for memory.
            let len = DCtx::try_create()?.decompress(&mut window[..], frame).ok()?;
            window.truncate(len);
            Some(window)
        }
        Some(_) => None,
    }
}

/// The packed state of `window`, from the first byte that something refers to.
pub(super) fn packed(window: &[u8]) -> Arc<[u8]> {
    if window.is_empty() {
        return Arc::new([]);
    }
    let mut state = vec![TAG_ZSTD; 1 + window.len()];
    // There is no more room than for the window itself, so a frame that would be larger fails.
    let packed =
        CCtx::try_create().and_then(|mut zstd| zstd.compress(&mut state[1..], window, ZSTD_LEVEL).ok());
    match packed {
        Some(len) => state.truncate(1 + len),
        None => {
            state[0] = TAG_RAW;
            state[1..].copy_from_slice(window);
        }
    }
    state.into()
}
