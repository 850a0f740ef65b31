//! Notes restart points while a run of frames is decoded.
//!
//! Problem: a point needs the tables, the three last offsets and the window at a block border, and a decoder that notes
//! points should cost next to nothing. Idea: each block's table descriptions are kept (a few hundred bytes), the bits of the
//! last sequences are kept and only decoded when a point is due, and plain bytes are kept only when one is near.
//!
//! Invariants: what is not understood or not known gives no point, and decoding never notices; a point is only handed
//! out once nothing in it can be missing; one window and one point that is not yet sure are held, beside the points that
//! nobody has taken.

use std::sync::Arc;

use super::block::{Body, Known, Mode, Tables};
use super::framing::{BLOCK_BYTES_MAX, Event, Frame};
use super::sequences::{OFFSETS_AT_FRAME_START, Offsets, walk};
use super::state::{self, WINDOW_BYTES_MAX};
use crate::codec::{Recording, RestartPoint};

/// The window that the distance between two points is meant for, Cinder's. Larger ones have points farther apart, so that
/// their share of the plain bytes is the same.
const WINDOW_BYTES_USUAL: u64 = 2 << 20;

/// Least plain bytes between two starts of frames that are noted. They cost no state, but each has a place in an index.
const FRAME_SPACING_BYTES: u64 = 1 << 20;

/// How long before a point is due the offsets are followed, so that they are known in time.
const OFFSETS_AHEAD_BYTES: u64 = 2 * BLOCK_BYTES_MAX as u64;

/// Fewer sequences than these may not tell the offsets by themselves, so those before them count.
const SEQUENCES_FEW: u32 = 8;

/// The last plain bytes.
#[derive(Default)]
struct Ring {
    bytes: Vec<u8>,
    /// Where the next byte goes, once the ring is full.
    at: usize,
}

impl Ring {
    fn clear(&mut self) {
        self.bytes.clear();
        self.at = 0;
    }

    fn push(&mut self, plain: &[u8], capacity: usize) {
        let mut plain = &plain[plain.len().saturating_sub(capacity)..];
        if self.bytes.len() < capacity {
            let (fill, rest) = plain.split_at(plain.len().min(capacity - self.bytes.len()));
            self.bytes.reserve_exact(capacity - self.bytes.len());
            self.bytes.extend_from_slice(fill);
            plain = rest;
        }
        while !plain.is_empty() {
            let (now, rest) = plain.split_at(plain.len().min(capacity - self.at));
            self.bytes[self.at..self.at + now.len()].copy_from_slice(now);
            self.at = (self.at + now.len()) % capacity;
            plain = rest;
        }
    }

    /// Copies the last bytes, as many as `out` has and not more than there are.
    fn copy_to(&self, out: &mut [u8]) {
        let (new, old) = self.bytes.split_at(self.at);
        let new = &new[new.len().saturating_sub(out.len())..];
        let (before, after) = out.split_at_mut(out.len() - new.len());
        after.copy_from_slice(new);
        before.copy_from_slice(&old[old.len() - before.len()..]);
    }
}

/// A point that may still turn out to need a table that it cannot hold.
struct Unsure {
    point: RestartPoint,
    /// Which tables must not be taken over by the next sequences.
    missing: [bool; 3],
}

/// Notes restart points.
pub(super) struct Recorder {
    recording: Recording,
    /// Plain offset from which on a point is due, but for `extra_bytes`.
    due: u64,
    /// How much farther apart the points of this frame are than those of usual frames.
    extra_bytes: u64,
    points: Vec<RestartPoint>,
    /// Plain offset of the last point.
    last: Option<u64>,
    unsure: Option<Unsure>,
    tables: Tables,
    /// The offsets before the sequences in `bits`.
    offsets: Offsets,
    /// The last sequences and their number, 0 when they are decoded.
    bits: Vec<u8>,
    sequences: u32,
    /// A block of which a part has passed.
    gathered: Vec<u8>,
    is_gathering: bool,
    ring: Ring,
    /// Something was not understood.
    is_lost: bool,
}

impl Recorder {
    /// From the middle of a frame on, where `known` is known.
    pub(super) fn new(recording: Recording, known: Option<(Tables, Offsets)>) -> Self {
        let (tables, offsets) = known.unwrap_or((Tables::unknown(), [0; 3]));
        let mut recorder = Self {
            recording,
            due: 0,
            extra_bytes: 0,
            points: Vec::new(),
            last: None,
            unsure: None,
            tables,
            offsets,
            bits: Vec::new(),
            sequences: 0,
            gathered: Vec::new(),
            is_gathering: false,
            ring: Ring::default(),
            is_lost: false,
        };
        recorder.change(recording);
        recorder
    }

    /// Goes on with other wishes.
    pub(super) fn change(&mut self, recording: Recording) {
        self.recording = Recording { spacing_bytes: recording.spacing_bytes.max(1), ..recording };
        // Nobody needs a point just behind the start.
        self.due = if recording.from == 0 { self.recording.spacing_bytes } else { recording.from };
    }

    /// The points noted since the last call.
    pub(super) fn take_points(&mut self) -> Vec<RestartPoint> {
        std::mem::take(&mut self.points)
    }

    /// About how much memory this holds, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let points = self.points.iter().chain(self.unsure.as_ref().map(|unsure| &unsure.point));
        points.map(|point| point.state.len()).sum::<usize>()
            + self.bits.capacity()
            + self.gathered.capacity()
            + self.ring.bytes.capacity()
    }

    /// Takes plain bytes of `frame`, the first of which is at `plain`.
    pub(super) fn output(&mut self, bytes: &[u8], plain: u64, frame: &Frame) {
        let capacity = frame.window_bytes.min(WINDOW_BYTES_MAX);
        let windows = frame.window_bytes.div_ceil(WINDOW_BYTES_USUAL);
        self.extra_bytes = self.recording.spacing_bytes.saturating_mul(windows.saturating_sub(1));
        let due = self.due.saturating_add(self.extra_bytes);
        if plain.saturating_add(capacity + 2 * BLOCK_BYTES_MAX as u64) < due || capacity < frame.window_bytes
        {
            self.ring.clear();
        } else if !bytes.is_empty() && capacity > 0 {
            self.ring.push(bytes, capacity as usize);
        }
    }

    /// Takes what passes in the stored bytes; `plain` plain bytes had been given before.
    pub(super) fn stored(&mut self, event: Event<'_>, plain: u64) {
        match event {
            Event::FrameStart => {
                (self.tables, self.offsets) = (Tables::at_frame_start(), OFFSETS_AT_FRAME_START);
                self.sequences = 0;
                self.is_gathering = false;
                self.ring.clear();
            }
            Event::FrameEnd => self.decide(|_| true),
            Event::Body { bytes, is_first: true, is_last: true } => self.block(bytes, plain),
            Event::Body { bytes, is_first, is_last } => {
                if is_first {
                    self.gathered.clear();
                    self.is_gathering = true;
                }
                if !self.is_gathering {
                    // Recording began inside this block, so nothing is known yet that it could change.
                    return;
                }
                if self.gathered.len() + bytes.len() > BLOCK_BYTES_MAX {
                    self.is_lost = true;
                    return;
                }
                self.gathered.extend_from_slice(bytes);
                if is_last {
                    let block = std::mem::take(&mut self.gathered);
                    self.block(&block, plain);
                    self.gathered = block;
                    self.is_gathering = false;
                }
            }
        }
    }

    /// Takes a compressed block that libzstd has accepted.
    fn block(&mut self, bytes: &[u8], plain: u64) {
        let Some(body) = Body::parse(bytes) else {
            self.is_lost = true;
            return;
        };
        if body.sequences > 0 {
            self.decide(|missing| {
                !missing
                    .iter()
                    .zip(body.modes)
                    .any(|(missing, mode)| *missing && matches!(mode, Mode::Repeat))
            });
            let is_far =
                plain.saturating_add(OFFSETS_AHEAD_BYTES) < self.due.saturating_add(self.extra_bytes);
            if self.sequences > 0 && is_far && body.sequences >= SEQUENCES_FEW {
                (self.sequences, self.offsets) = (0, [0; 3]);
            } else {
                self.follow_offsets();
            }
            self.sequences = body.sequences;
            self.bits.clear();
            self.bits.extend_from_slice(body.bits);
        }
        self.tables.update(&body);
    }

    /// Keeps the point that was not sure if `is_good` finds so.
    fn decide(&mut self, is_good: impl FnOnce(&[bool; 3]) -> bool) {
        if let Some(unsure) = self.unsure.take() {
            if is_good(&unsure.missing) {
                self.points.push(unsure.point);
            } else {
                // Another one, at the next border where that is possible.
                self.due = unsure.point.plain_offset;
            }
        }
    }

    /// Brings the offsets up to the last sequences; `tables` are still those of their block.
    fn follow_offsets(&mut self) {
        let sequences = std::mem::take(&mut self.sequences);
        if sequences > 0 {
            let mut offsets = self.offsets;
            let walked = self
                .tables
                .decoding()
                .and_then(|tables| walk(&tables, &self.bits, sequences, &mut offsets, |_| ()));
            self.offsets = walked.map_or([0; 3], |()| offsets);
        }
    }

    /// Whether a point is wanted at plain offset `plain`, a block border.
    pub(super) fn is_due(&self, plain: u64, is_first_block: bool) -> bool {
        let spacing = FRAME_SPACING_BYTES.min(self.recording.spacing_bytes);
        let due = if is_first_block {
            self.due
                .min(self.last.map_or(self.recording.from.max(spacing), |last| last.saturating_add(spacing)))
        } else {
            self.due.saturating_add(self.extra_bytes)
        };
        !self.is_lost && self.unsure.is_none() && plain >= due
    }

    /// Notes the block border at which the decoder is, if that is possible. All plain bytes before it have come.
    pub(super) fn note(&mut self, plain: u64, stored: u64, frame: &Frame, is_first_block: bool) {
        let stored = if is_first_block { frame.stored_start } else { stored };
        let state = if is_first_block { Some(Vec::new().into()) } else { self.state(plain, frame) };
        let Some(state) = state else { return };
        let Some(stored_bits) = stored.checked_mul(8) else { return };
        let point = RestartPoint { plain_offset: plain, stored_bits, state };
        let missing = [0, 1, 2].map(|n| !is_first_block && matches!(self.tables.codes[n], Known::Single(_)));
        if missing.contains(&true) {
            self.unsure = Some(Unsure { point, missing });
        } else {
            self.points.push(point);
        }
        self.last = Some(plain);
        self.due = plain.saturating_add(self.recording.spacing_bytes);
    }

    fn state(&mut self, plain: u64, frame: &Frame) -> Option<Arc<[u8]>> {
        let bytes = usize::try_from(frame.window_bytes.min(plain - frame.plain_start)).ok()?;
        if self.ring.bytes.len() < bytes || !self.tables.are_known() {
            return None;
        }
        self.follow_offsets();
        state::write(frame, &self.tables, &self.offsets, bytes, |window| self.ring.copy_to(window))
    }
}
