//! zlib objects: exactly one RFC 1950 stream.
//!
//! Cinder's restore stops at the end of the first stream: what follows it, junk or another stream, is ignored, so it
//! is ignored here. An RFC 1952 gzip file is refused by both, although `gzip` is another name of this codec.
//!
//! The Adler-32 at the end is compared when a read reaches it. By then the bytes have been delivered; the block
//! digests are what decides about them. A decoder that was started at a restart point has not seen all bytes and cannot
//! compare it: its end is the end of the last block.
//!
//! Problem: a stream of 2 GB has no places to start from, but between any two blocks (zlib writes one every 30 to 200
//! KiB of text) a decoder needs only the bit where the next one begins and the last 32 KiB of plain bytes. Idea: inflate as if
//! nothing were to be noted until the place where the next point is wanted; only from there stop at the next border. So
//! recording costs one copy of 32 KiB per point, and a stream of giant blocks has its points later than wanted.
//!
//! The inflater is zlib-rs through its C-level interface, in one small module ([`inflate`]). `rapidgzip-core` 0.3.1 drives
//! the same zlib-rs, and as fast (2.0 GB/s of the benchmark's mixed data on one thread, no more on two), but gives its
//! index only after the whole stream, decodes on threads of its own that read ahead at their own pace, and compresses
//! whole windows on the way: a pass with points every 4 MiB took 1.26 times one without, every 1 MiB 2.0 times. A cursor
//! that may stop, be dropped or be resumed anywhere is what mounts need.

pub(crate) mod inflate;
mod state;
mod prune;
mod tail;

use std::mem::take;

pub(super) use self::prune::pack;

use self::inflate::{Inflate, Status};
use self::tail::Tail;
use super::stream::{Next, Step, Stream};
use super::{Codec, Recording, RestartPoint};
use crate::error::{Error, ErrorKind, Result};

/// Memory of a running inflater: the window of 32 KiB with its padding, and the code tables of about 15 KiB. The
/// stream cannot raise it.
const STATE_BYTES: usize = 56 * 1024;

/// Points that wait to be taken; while there are so many, no more are noted. A stream of tiny blocks, read in one go by
/// someone who wants them all, would fill memory with windows: this is 8 MiB, and what follows those that are 32 KiB apart.
const POINTS_MAX: usize = 256;

/// The state of one zlib stream.
pub(super) struct Zlib {
    inflate: Inflate,
    /// Bits of the first stored byte that belong to what was before a restart point, until that byte has come.
    skip_bits: u32,
    /// Stored offset of the next byte that the inflater has not consumed.
    stored_offset: u64,
    /// Plain offset of the next byte.
    plain_offset: u64,
    /// Plain offset of the last point noted, or of where this decoder began.
    noted_offset: u64,
    spacing_bytes: u64,
    /// Plain offset from which on the next border is to be noted, at least 1; `u64::MAX` when none is.
    wanted_offset: u64,
    points: Vec<RestartPoint>,
    tail: Tail,
    /// Points that were taken before it was known what follows them.
    followed: Vec<RestartPoint>,
}

impl Zlib {
    /// At the stream's header. Fails with [`ErrorKind::LimitExceeded`] when there is no memory.
    pub(super) fn new() -> Result<Self> {
        Self::at(Inflate::zlib(), 0, 0)
    }

    /// At `point`, and the stored offset where the input must begin.
    ///
    /// Fails with [`ErrorKind::Codec`] when the point cannot be one of an object of `stored_bytes`, and with
    /// [`ErrorKind::LimitExceeded`] when there is no memory.
    pub(super) fn resume(point: &RestartPoint, stored_bytes: u64) -> Result<(Self, u64)> {
        let refuse = |why: &str| {
            let message = format!("zlib: the restart point at plain offset {} {why}", point.plain_offset);
            Error::new(ErrorKind::Codec, message)
        };
        let stored_offset = point.stored_bits / 8;
        if stored_offset >= stored_bytes {
            return Err(refuse("lies behind the object's end"));
        }
        let window = state::window(&point.state).ok_or_else(|| refuse("has no valid window"))?;
        Ok((Self::at(Inflate::raw(&window), point.stored_bits, point.plain_offset)?, stored_offset))
    }

    fn at(inflate: Option<Inflate>, stored_bits: u64, plain_offset: u64) -> Result<Self> {
        let inflate = inflate.ok_or_else(|| Error::new(ErrorKind::LimitExceeded, "zlib: out of memory"))?;
        Ok(Self {
            inflate,
            skip_bits: (stored_bits % 8) as u32,
            stored_offset: stored_bits / 8,
            plain_offset,
            noted_offset: plain_offset,
            spacing_bytes: 0,
            wanted_offset: u64::MAX,
            points: Vec::new(),
            tail: Tail::default(),
            followed: Vec::new(),
        })
    }

    /// Begins with the rest of the byte in which the restart point lies.
    fn prime(&mut self, input: &[u8]) -> usize {
        match input.first() {
            Some(byte) if self.skip_bits > 0 => {
                self.inflate.prime(8 - take(&mut self.skip_bits), *byte);
                self.stored_offset += 1;
                1
            }
            _ => 0,
        }
    }

    /// Inflates up to the next place that matters: the end of `input` or `out`, just before where a point is wanted, or a
    /// border behind that.
    ///
    /// Stopping at borders begins one byte early. Otherwise a border that lies just where the point is wanted would be
    /// passed or not by how much the caller reads at a time.
    fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> inflate::Inflated {
        let recording = self.wanted_offset != u64::MAX && self.points.len() < POINTS_MAX;
        let before_wanted = (self.wanted_offset - 1).saturating_sub(self.plain_offset);
        let at_border = recording && before_wanted == 0;
        let room = match usize::try_from(before_wanted) {
            Ok(bytes) if recording && !at_border => out.len().min(bytes),
            _ => out.len(),
        };
        let step = self.inflate.step(input, &mut out[..room], at_border);
        self.stored_offset += step.consumed as u64;
        self.plain_offset = self.plain_offset.saturating_add(step.produced as u64);
        step
    }

    /// Notes the border where the inflater stands, if it is wanted.
    fn note(&mut self, unused_bits: u32) {
        if self.plain_offset < self.wanted_offset {
            return;
        }
        let point = RestartPoint {
            plain_offset: self.plain_offset,
            stored_bits: self.stored_offset.saturating_mul(8).saturating_sub(u64::from(unused_bits)),
            state: state::of(&self.inflate),
        };
        self.tail.follow(&point, self.stored_offset);
        self.points.push(point);
        self.noted_offset = self.plain_offset;
        self.wanted_offset = self.plain_offset.saturating_add(self.spacing_bytes);
    }
}

impl Zlib {
    /// Gives a point what follows it, once that is known; `is_end` tells that no more comes.
    fn keep_tail(&mut self, is_end: bool) {
        let Some(point) = self.tail.take(self.plain_offset, is_end) else { return };
        match self.points.iter_mut().find(|noted| noted.plain_offset == point.plain_offset) {
            Some(noted) => *noted = point,
            None if self.followed.len() < POINTS_MAX => self.followed.push(point),
            None => {}
        }
    }
}

impl Stream for Zlib {
    const CODEC: Codec = Codec::Zlib;

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Step {
        let mut consumed = self.prime(input);
        let mut produced = 0;
        self.tail.consumed(&input[..consumed]);
        let next = loop {
            let step = self.inflate(&input[consumed..], &mut out[produced..]);
            self.tail.consumed(&input[consumed..consumed + step.consumed]);
            self.keep_tail(matches!(step.status, Status::End));
            consumed += step.consumed;
            produced += step.produced;
            match step.status {
                // Go on in any case: a border may be reached with neither a stored nor a plain byte, which a caller
                // would take for the end of the input.
                Status::Border { last: true, .. } => self.wanted_offset = u64::MAX,
                Status::Border { unused_bits, last: false } => self.note(unused_bits),
                Status::More => break Next::More,
                Status::End => break Next::End,
                Status::NeedsDictionary => {
                    let why = "it needs a preset dictionary, expected none".to_owned();
                    break Next::Fail(ErrorKind::Codec, why);
                }
                Status::Failed(why) => {
                    // The library often says only that it had failed before, though this is the first failure.
                    let why = why.filter(|why| !why.starts_with("repeated call"));
                    break Next::Fail(ErrorKind::Codec, why.unwrap_or_else(|| "invalid data".to_owned()));
                }
            }
            if produced == out.len() {
                break Next::More;
            }
        };
        Step { consumed, produced, next }
    }

    fn may_end(&self) -> bool {
        false // The stream says its own end.
    }

    fn memory_bytes(&self) -> usize {
        let state_bytes = |point: &RestartPoint| point.state.len() + size_of::<RestartPoint>();
        let points: usize = self.points.iter().chain(&self.followed).map(state_bytes).sum();
        STATE_BYTES + points + self.tail.memory_bytes()
    }

    fn record(&mut self, recording: Option<Recording>) {
        self.wanted_offset = match recording {
            // Nobody needs a point at the start, nor a second one at the same place.
            Some(Recording { from, spacing_bytes }) => {
                self.spacing_bytes = spacing_bytes.max(1);
                let first = if from == 0 { self.spacing_bytes } else { from };
                first.max(self.noted_offset.saturating_add(1))
            }
            None => u64::MAX,
        };
    }

    fn take_points(&mut self) -> Vec<RestartPoint> {
        take(&mut self.points)
    }

    fn take_followed(&mut self) -> Vec<RestartPoint> {
        take(&mut self.followed)
    }
}
