//! zstd objects: frames, one after the other.
//!
//! Cinder writes one frame; frames of other writers are joined, with or without a content size, and skippable frames
//! are skipped. Bytes that are no frame are an error, as they are for Cinder.
//!
//! libzstd forgets what it wrote in a call that fails. So each call gets one frame header, one block header or one
//! block (at most 128 KiB of plain bytes) and no more: all whole blocks before a damaged one are delivered.
//!
//! Restart points: a frame has none by design, and an object is one frame of up to 2 GB. So they are made here
//! ([`recorder`] notes them, [`state`] tells how one is used, [`prune`] makes it small): at a block border what a decoder must
//! know is exactly what a dictionary can tell it. Frames that follow each other are points for nothing.

mod block;
mod context;
mod framing;
mod fse;
mod prune;
mod recorder;
mod sequences;
mod state;

use std::sync::Arc;

use ::zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;
use ::zstd::zstd_safe::{DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name, is_error_kind};

use self::context::Context;
use self::framing::Framing;
use self::recorder::Recorder;
use self::state::State;
use super::stream::{Next, Step, Stream};
use super::windows::{FREE_BYTES, HELD_BYTES_MAX, Held, WINDOWS};
use super::{Codec, Frames, Recording, RestartPoint};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectSource;

/// Largest window that a frame may ask for, as a power of two: 128 MiB, the most that `zstd` itself gives without being
/// asked, and that Cinder is known to restore. The window is memory that each cursor holds, so there must be a bound.
const WINDOW_LOG_MAX: u32 = 27;

/// Stored bytes that tell how long a frame's header is: the magic number and the descriptor.
const FRAME_START_BYTES: usize = 5;

/// What libzstd adds to its wishes so that a call may go on to the next block, whose header has this length.
const BLOCK_HEADER_BYTES: usize = 3;

/// Plain bytes that should lie between two points inside a frame. A point costs about 0.3 ms of a pass, as much in page faults, and 2
/// to 7 ms of another core to pack; some 40 KB of index in text, less elsewhere. At 16 MiB that was 6 to 11 % of the decoder's
/// time and more of a mounted pass; at 64 MiB it is hidden, and a random read decodes 32 MiB, 10 ms, on average, until readers
/// that come back have made points denser. (`examples/zstd_restarts.rs` measures it.)
pub(super) const SPACING_BYTES: u64 = 64 << 20;

/// Bytes of a frame's checksum.
const CHECKSUM_BYTES: usize = 4;

/// The state of a run of zstd frames.
pub(super) struct Zstd {
    context: Context,
    /// Room for the frame's window, where it is a large one. Dropped after the context.
    window: Option<Held<'static>>,
    /// Stored bytes of the next call.
    wanted: usize,
    /// The last call filled its output, so libzstd may hold more plain bytes.
    output_pending: bool,
    /// The last stored byte was a frame's last one.
    frame_ended: bool,
    /// Whether a frame was complete.
    any_complete: bool,
    /// Bytes to pass over before the next frame.
    skipped: usize,
    /// Plain bytes given, from the object's start.
    plain: u64,
    /// Where in the stored bytes that is.
    framing: Framing,
    recorder: Option<Box<Recorder>>,
    /// Points of a recorder that was stopped.
    last_points: Vec<RestartPoint>,
    resumed: Option<Resumed>,
}

/// What is left of a restart inside a frame, until that frame ends.
struct Resumed {
    /// What the point knew, for who records from there on.
    known: Option<(block::Tables, sequences::Offsets)>,
    /// The frame's checksum follows it; of all of its plain bytes, so it cannot be checked.
    has_checksum: bool,
}

impl Zstd {
    /// Fails with [`ErrorKind::LimitExceeded`] when there is no memory for the state.
    pub(super) fn new() -> Result<Self> {
        let no_memory = || Error::new(ErrorKind::LimitExceeded, "zstd: out of memory");
        let mut context = Context::take().ok_or_else(no_memory)?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(|_| no_memory())?;
        Ok(Self {
            context,
            window: None,
            wanted: FRAME_START_BYTES,
            output_pending: false,
            frame_ended: false,
            any_complete: false,
            plain: 0,
            framing: Framing::at_frame(0),
            recorder: None,
            last_points: Vec::new(),
            resumed: None,
            skipped: 0,
        })
    }

    /// Goes on from `point`; also gives the stored offset of the next byte.
    ///
    /// Fails with [`ErrorKind::Codec`] when the point cannot be one.
    pub(super) fn resume(point: &RestartPoint) -> Result<(Self, u64)> {
        let refused = || {
            let message = format!("zstd: the restart point at plain offset {} is none", point.plain_offset);
            Error::new(ErrorKind::Codec, message)
        };
        let stored = point.stored_bits / 8;
        if !point.stored_bits.is_multiple_of(8) {
            return Err(refused());
        }
        let mut stream =
            Self { plain: point.plain_offset, framing: Framing::at_frame(stored), ..Self::new()? };
        if point.state.is_empty() {
            stream.any_complete = stored > 0;
            return Ok((stream, stored));
        }
        let state = State::read(&point.state).ok_or_else(refused)?;
        stream.framing = Framing::at_block(stored, state.frame());
        if !state.dictionary().is_empty() {
            stream.context.load_dictionary(state.dictionary()).map_err(|_| refused())?;
        }
        let header = state.frame_header();
        let mut input = InBuffer::around(&header);
        match stream.context.decompress_stream(&mut OutBuffer::around(&mut [0; 0][..]), &mut input) {
            Ok(wanted) if wanted > 0 && input.pos() == header.len() => stream.wanted = BLOCK_HEADER_BYTES,
            _ => return Err(refused()),
        }
        stream.resumed = Some(Resumed { known: state.tables(), has_checksum: state.frame().has_checksum });
        Ok((stream, stored))
    }

    /// Before libzstd takes the end of a frame's header, and the memory for its window: room for that. `None` when there was none for too long.
    fn make_room(&mut self, stored: &[u8]) -> Option<()> {
        let frame = self.framing.frame_begun_by(stored);
        let wanted = frame.map_or(0, |frame| frame.window_bytes);
        // Above the bound libzstd refuses.
        if wanted > FREE_BYTES && wanted <= HELD_BYTES_MAX && self.window.is_none() {
            self.window = Some(WINDOWS.hold(wanted)?);
        }
        Some(())
    }

    /// Gives back what a frame with a large window took.
    fn give_room_back(&mut self) {
        if self.window.is_some()
            && let Some(context) = Context::take()
        {
            self.context = context;
            // Cannot fail: nothing was decoded with it yet.
            let _ = self.context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX));
            self.window = None;
        }
    }

    /// One call of libzstd.
    fn call(&mut self, stored: &[u8], out: &mut [u8]) -> Step {
        if self.make_room(stored).is_none() {
            let why = "no room for the frame's window: others hold theirs for too long".to_owned();
            return Step { consumed: 0, produced: 0, next: Next::Fail(ErrorKind::LimitExceeded, why) };
        }
        let room = out.len();
        let (mut input, mut output) = (InBuffer::around(stored), OutBuffer::around(out));
        let result = self.context.decompress_stream(&mut output, &mut input);
        let (consumed, produced) = (input.pos(), output.pos());
        self.output_pending = produced == room && result != Ok(0);
        if result.is_ok() {
            self.follow(&stored[..consumed], &output.as_slice()[..produced]);
        }
        let next = match result {
            Ok(0) => {
                self.end_resumed_frame();
                self.give_room_back();
                self.wanted = FRAME_START_BYTES;
                self.frame_ended = true;
                self.any_complete = true;
                Next::More
            }
            Ok(wanted) => {
                self.wanted = match wanted.saturating_sub(BLOCK_HEADER_BYTES) {
                    0 => wanted,
                    this_block => this_block,
                };
                self.frame_ended &= consumed == 0;
                Next::More
            }
            Err(code) => self.failure(code),
        };
        Step { consumed, produced, next }
    }

    /// Takes note of what libzstd has taken and given.
    fn follow(&mut self, stored: &[u8], plain: &[u8]) {
        let Self { recorder, framing, .. } = self;
        if let Some(recorder) = recorder {
            recorder.output(plain, self.plain, framing.frame());
        }
        framing.push(stored, self.plain, |event| {
            if let Some(recorder) = recorder {
                recorder.stored(event, self.plain);
            }
        });
        self.plain += plain.len() as u64;
    }

    /// Notes a restart point if one is due here; libzstd holds no plain bytes.
    fn note(&mut self) {
        if let Some(recorder) = &mut self.recorder
            && let Some((frame, is_first_block)) = self.framing.border()
            && recorder.is_due(self.plain, is_first_block)
        {
            recorder.note(self.plain, self.framing.stored(), frame, is_first_block);
        }
    }

    /// The next frame, if there is one, has no dictionary.
    fn end_resumed_frame(&mut self) {
        if let Some(resumed) = self.resumed.take() {
            if resumed.has_checksum {
                self.skipped = CHECKSUM_BYTES;
            }
            // Neither can fail: the context exists, and between two frames it may be changed.
            let _ = self.context.reset(ResetDirective::SessionAndParameters);
            let _ = self.context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX));
        }
    }

    fn failure(&self, code: usize) -> Next {
        let is = |kind| is_error_kind(code, kind);
        if is(ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge) {
            let bound_mib = (1u64 << WINDOW_LOG_MAX) >> 20;
            Next::Fail(
                ErrorKind::LimitExceeded,
                format!("a frame asks for a window over the bound of {bound_mib} MiB"),
            )
        } else if is(ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
            Next::Fail(ErrorKind::LimitExceeded, "out of memory".to_owned())
        } else if is(ZSTD_ErrorCode::ZSTD_error_prefix_unknown) && self.any_complete {
            Next::Fail(ErrorKind::Codec, "expected the end or another frame, found neither".to_owned())
        } else {
            Next::Fail(ErrorKind::Codec, get_error_name(code).to_owned())
        }
    }
}

/// As [`ObjectStream::state_of_nothing`](super::ObjectStream::state_of_nothing).
pub(super) fn state_of_nothing(source: &dyn ObjectSource) -> Result<Arc<[u8]>> {
    let mut header = [0; framing::HEADER_BYTES_MAX];
    let mut filled = 0;
    while filled < header.len() {
        match source.read_at(&mut header[filled..], filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    let state = framing::frame_of(&header[..filled]).and_then(|frame| state::of_nothing(&frame));
    state.ok_or_else(|| Error::new(ErrorKind::Codec, "zstd: the object's first frame has no restart points"))
}

/// The same point with a smaller state, which the bytes of `source` that follow it decide.
pub(super) fn pack(source: &dyn ObjectSource, point: RestartPoint) -> RestartPoint {
    let packed = State::read(&point.state).and_then(|mut state| {
        prune::prune(&mut state, source, point.stored_bits / 8);
        state.packed()
    });
    match packed {
        Some(packed) if packed.len() < point.state.len() => RestartPoint { state: packed.into(), ..point },
        _ => point,
    }
}

impl Stream for Zstd {
    const CODEC: Codec = Codec::Zstd;

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Step {
        if self.output_pending {
            // First only what libzstd holds, without input: the next block may be damaged, and then this would be lost.
            let step = self.call(&[], out);
            if step.produced > 0 || !matches!(step.next, Next::More) {
                return step;
            }
        }
        if self.skipped > 0 {
            let consumed = input.len().min(self.skipped);
            self.skipped -= consumed;
            self.follow(&input[..consumed], &[]);
            return Step { consumed, produced: 0, next: Next::More };
        }
        self.note();
        self.call(&input[..input.len().min(self.wanted)], out)
    }

    fn may_end(&self) -> bool {
        self.frame_ended && self.skipped == 0
    }

    fn frames(&self) -> Option<Frames> {
        Some(self.framing.frames())
    }

    fn record(&mut self, recording: Option<Recording>) {
        match (recording, &mut self.recorder) {
            (Some(recording), Some(recorder)) => recorder.change(recording),
            (Some(recording), recorder @ None) => {
                let resumed = self.resumed.as_ref().filter(|_| self.framing.is_untouched());
                let known = resumed.and_then(|resumed| resumed.known.clone());
                *recorder = Some(Box::new(Recorder::new(recording, known)));
            }
            (None, recorder) => {
                self.last_points.extend(recorder.take().into_iter().flat_map(|mut old| old.take_points()));
            }
        }
    }

    fn take_points(&mut self) -> Vec<RestartPoint> {
        let mut points = std::mem::take(&mut self.last_points);
        if let Some(recorder) = &mut self.recorder {
            points.append(&mut recorder.take_points());
        }
        points
    }

    fn holds_large_window(&self) -> bool {
        self.window.is_some()
    }

    fn memory_bytes(&self) -> usize {
        // libzstd counts its buffers, the window among them, as soon as a frame asks for them.
        self.context.sizeof()
            + self.recorder.as_ref().map_or(0, |recorder| recorder.memory_bytes())
            + self.last_points.iter().map(|point| point.state.len()).sum::<usize>()
    }
}
