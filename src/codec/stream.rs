//! Drives a compressed stream over an object's stored bytes.
//!
//! Problem: three libraries speak the same protocol (some bytes in, some bytes out) with different ends, and each can
//! be led to stand still or to fail after good bytes. Idea: a codec is one [`Stream::step`], and everything that must
//! hold for all of them is here, once.
//!
//! Invariants:
//! - each step consumes or produces something, or the stream ends in an error: no loop spins;
//! - a stream of empty blocks or frames does not keep one read busy for long: steps without a plain byte are counted;
//! - plain bytes decoded before a failure are delivered first, the failure is what the next read gets;
//! - after the end or a failure the codec's memory is gone but for points that were not taken, and no more data comes.

use std::mem::take;
use std::sync::Arc;

use super::input::StoredInput;
use super::{Codec, Decoder, Frames, Needed, Recording, RestartPoint};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectSource;

/// How many steps without a plain byte may follow each other. A writer's longest run is a zstd skippable frame: 4 GiB
/// are 32,768 steps of a full input buffer, and there is room for stores that read in small pieces. A hostile run of
/// empty zstd blocks, three stored bytes each, ends after a fraction of a second.
const IDLE_STEPS_MAX: u32 = 1 << 20;

/// What one step did.
pub(super) struct Step {
    /// Stored bytes used up.
    pub(super) consumed: usize,
    /// Plain bytes written.
    pub(super) produced: usize,
    /// What follows.
    pub(super) next: Next,
}

/// What follows a step.
pub(super) enum Next {
    /// More steps.
    More,
    /// Nothing: the plain bytes are complete, whatever the object still holds.
    End,
    /// Nothing: the stream cannot go on. The plain bytes that the step produced are good all the same.
    Fail(ErrorKind, String),
}

/// One codec's decoding state.
pub(super) trait Stream: Send {
    /// Which codec, for messages.
    const CODEC: Codec;

    /// Decodes from `input` into `out`, which is never empty. An empty `input` means that the object has ended; what
    /// the codec still holds back comes then.
    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Step;

    /// Whether the plain bytes are complete if the object ends here.
    fn may_end(&self) -> bool;

    /// As [`Decoder::frames`], of frames that have ended.
    fn frames(&self) -> Option<Frames> {
        None
    }

    /// About how much memory the state holds, in bytes.
    fn memory_bytes(&self) -> usize;

    /// As [`Decoder::holds_large_window`].
    fn holds_large_window(&self) -> bool {
        false
    }

    /// As [`Decoder::record`].
    fn record(&mut self, _recording: Option<Recording>) {}

    /// As [`Decoder::take_points`].
    fn take_points(&mut self) -> Vec<RestartPoint> {
        Vec::new()
    }

    /// As [`Decoder::take_followed`].
    fn take_followed(&mut self) -> Vec<RestartPoint> {
        Vec::new()
    }
}

/// A cursor over the plain bytes of a compressed object.
pub(super) struct StreamDecoder<S> {
    state: State<S>,
    /// Points that the stream noted in the read in which it ended.
    last_points: Vec<RestartPoint>,
    /// Those of before of which it came to know then what follows them.
    last_followed: Vec<RestartPoint>,
    /// What the stream's frames were like.
    frames: Option<Frames>,
}

enum State<S> {
    Running {
        stream: S,
        input: StoredInput,
        idle_steps: u32,
    },
    /// Before this stored byte.
    Ended(u64),
    Failed(Error),
}

impl<S: Stream> StreamDecoder<S> {
    /// At the stored byte `offset`, where `stream` goes on; `needed` is what is known of how far.
    pub(super) fn at(stream: S, source: Arc<dyn ObjectSource>, offset: u64, needed: Option<Needed>) -> Self {
        let input = StoredInput::at(source, offset, needed, S::CODEC == Codec::Zlib);
        let state = State::Running { stream, input, idle_steps: 0 };
        Self { state, last_points: Vec::new(), last_followed: Vec::new(), frames: None }
    }
}

/// One step, with the rules for all codecs. Returns the plain bytes written, and the last state if this was the end.
fn advance<S: Stream>(stream: &mut S, input: &mut StoredInput, out: &mut [u8]) -> (usize, Option<State<S>>) {
    let stored = match input.fill() {
        Ok(stored) => stored,
        Err(error) => return (0, Some(State::Failed(error))),
    };
    let object_ended = stored.is_empty();
    if object_ended && stream.may_end() {
        return (0, Some(State::Ended(input.offset())));
    }
    let step = stream.step(stored, out);
    input.consume(step.consumed);
    let (kind, why) = match step.next {
        Next::End => return (step.produced, Some(State::Ended(input.offset()))),
        Next::More if step.consumed > 0 || step.produced > 0 => return (step.produced, None),
        Next::More if object_ended => {
            (ErrorKind::Truncated, "the object ends here, before the end of the stream".to_owned())
        }
        Next::More => (ErrorKind::Codec, "the decoder makes no progress".to_owned()),
        Next::Fail(kind, why) => (kind, why),
    };
    let message = format!("{} stream near stored byte {}: {why}", S::CODEC, input.offset());
    (step.produced, Some(State::Failed(Error::new(kind, message))))
}

impl<S: Stream> Decoder for StreamDecoder<S> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            let State::Running { stream, input, idle_steps } = &mut self.state else { break };
            let (produced, last) = advance(stream, input, &mut out[filled..]);
            filled += produced;
            *idle_steps = if produced == 0 { *idle_steps + 1 } else { 0 };
            if let Some(last) = last {
                self.last_points = stream.take_points();
                self.last_followed = stream.take_followed();
                self.frames = stream.frames();
                self.state = last;
            } else if *idle_steps > IDLE_STEPS_MAX {
                let message = format!(
                    "{} stream near stored byte {}: over {IDLE_STEPS_MAX} empty pieces in a row",
                    S::CODEC,
                    input.offset()
                );
                self.state = State::Failed(Error::new(ErrorKind::LimitExceeded, message));
            }
        }
        match &self.state {
            State::Failed(error) if filled == 0 => Err(error.clone()),
            _ => Ok(filled),
        }
    }

    fn record(&mut self, recording: Option<Recording>) {
        if let State::Running { stream, .. } = &mut self.state {
            stream.record(recording);
        }
    }

    fn take_points(&mut self) -> Vec<RestartPoint> {
        match &mut self.state {
            State::Running { stream, .. } => stream.take_points(),
            State::Ended(_) | State::Failed(_) => take(&mut self.last_points),
        }
    }

    fn take_followed(&mut self) -> Vec<RestartPoint> {
        match &mut self.state {
            State::Running { stream, .. } => stream.take_followed(),
            State::Ended(_) | State::Failed(_) => take(&mut self.last_followed),
        }
    }

    fn stored_end(&self) -> Option<u64> {
        match self.state {
            State::Ended(offset) => Some(offset),
            State::Running { .. } | State::Failed(_) => None,
        }
    }

    fn frames(&self) -> Option<Frames> {
        self.frames.filter(|_| matches!(self.state, State::Ended(_)))
    }

    fn holds_large_window(&self) -> bool {
        matches!(&self.state, State::Running { stream, .. } if stream.holds_large_window())
    }

    fn memory_bytes(&self) -> usize {
        match &self.state {
            State::Running { stream, input, .. } => stream.memory_bytes() + input.memory_bytes(),
            State::Ended(_) | State::Failed(_) => {
                let left = self.last_points.iter().chain(&self.last_followed);
                left.map(|point| size_of_val(point) + point.state.len()).sum()
            }
        }
    }
}
