//! zstd objects: frames, one after the other.
//!
//! Cinder writes one frame; frames of other writers are joined, with or without a content size, and skippable frames
//! are skipped. Bytes that are no frame are an error, as they are for Cinder.
//!
//! libzstd forgets what it wrote in a call that fails. So each call gets one frame header, one block header or one
//! block (at most 128 KiB of plain bytes) and no more: all whole blocks before a damaged one are delivered.

use ::zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;
use ::zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name, is_error_kind};

use super::Codec;
use super::stream::{Next, Step, Stream};
use crate::error::{Error, ErrorKind, Result};

/// Largest window that a frame may ask for, as a power of two: 128 MiB, the most that `zstd` itself gives without being
/// asked, and that Cinder is known to restore. The window is memory that each cursor holds, so there must be a bound.
const WINDOW_LOG_MAX: u32 = 27;

/// Stored bytes that tell how long a frame's header is: the magic number and the descriptor.
const FRAME_START_BYTES: usize = 5;

/// What libzstd adds to its wishes so that a call may go on to the next block, whose header has this length.
const BLOCK_HEADER_BYTES: usize = 3;

/// The state of a run of zstd frames.
pub(super) struct Zstd {
    context: DCtx<'static>,
    /// Stored bytes of the next call.
    wanted: usize,
    /// The last call filled its output, so libzstd may hold more plain bytes.
    output_pending: bool,
    /// The last stored byte was a frame's last one.
    frame_ended: bool,
    /// Whether a frame was complete.
    any_complete: bool,
}

impl Zstd {
    /// Fails with [`ErrorKind::LimitExceeded`] when there is no memory for the state.
    pub(super) fn new() -> Result<Self> {
        let no_memory = || Error::new(ErrorKind::LimitExceeded, "zstd: out of memory");
        let mut context = DCtx::try_create().ok_or_else(no_memory)?;
        context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(|_| no_memory())?;
        Ok(Self {
            context,
            wanted: FRAME_START_BYTES,
            output_pending: false,
            frame_ended: false,
            any_complete: false,
        })
    }

    /// One call of libzstd.
    fn call(&mut self, input: &[u8], out: &mut [u8]) -> Step {
        let room = out.len();
        let (mut input, mut output) = (InBuffer::around(input), OutBuffer::around(out));
        let result = self.context.decompress_stream(&mut output, &mut input);
        let (consumed, produced) = (input.pos(), output.pos());
        self.output_pending = produced == room && result != Ok(0);
        let next = match result {
            Ok(0) => {
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
        self.call(&input[..input.len().min(self.wanted)], out)
    }

    fn may_end(&self) -> bool {
        self.frame_ended
    }

    fn memory_bytes(&self) -> usize {
        // libzstd counts its buffers, the window among them, as soon as a frame asks for them.
        self.context.sizeof()
    }
}
