//! bz2 objects: one or more bzip2 streams, one after the other.
//!
//! Cinder's restore calls Python's `bz2.decompress`: all streams are joined, and what follows a complete stream and is
//! not one itself is ignored. Python holds all bytes back until it knows; a cursor cannot, so the line is drawn at a
//! stream's head. Bytes that do not get through the head of a stream are junk and the end; damage behind a good head
//! is an error.

use bzip2::{Decompress, Error as Bz2Error, Status};

use super::Codec;
use super::stream::{Next, Step, Stream};
use crate::error::ErrorKind;

/// Stored bytes of a stream's head: `BZh`, the level, and six bytes that open a block or close the stream. Bytes that
/// fail within it are not a damaged stream but something else.
const HEAD_BYTES: u64 = 10;

/// How many streams without a plain byte may follow each other. Nobody writes them in numbers, each takes 14 stored
/// bytes and an allocation of megabytes, and so 2 GB of them would keep one read busy for an hour.
const EMPTY_STREAMS_MAX: u32 = 1024;

/// Memory of the state before a stream's head is read.
const STATE_BYTES: usize = 66 * 1024;

/// Memory of the block being decoded: four bytes for each of the 900,000 of the highest level, which is the one that
/// Cinder writes. Lower levels hold less.
const BLOCK_BYTES: usize = 4 * 900_000;

/// The state of a run of bzip2 streams.
pub(super) struct Bz2 {
    /// The current stream; `None` between two streams, where the next one's memory is not wanted yet.
    stream: Option<Decompress>,
    /// Whether a stream was complete.
    any_complete: bool,
    empty_streams: u32,
}

impl Bz2 {
    pub(super) fn new() -> Self {
        Self { stream: None, any_complete: false, empty_streams: 0 }
    }
}

impl Stream for Bz2 {
    const CODEC: Codec = Codec::Bz2;

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Step {
        let stream = self.stream.get_or_insert_with(|| Decompress::new(false));
        let (in_before, out_before) = (stream.total_in(), stream.total_out());
        let result = stream.decompress(input, out);
        let (in_after, out_after) = (stream.total_in(), stream.total_out());
        let next = match result {
            Ok(Status::StreamEnd) => {
                self.stream = None;
                self.any_complete = true;
                self.empty_streams = if out_after == 0 { self.empty_streams + 1 } else { 0 };
                if self.empty_streams > EMPTY_STREAMS_MAX {
                    let why = format!("more than {EMPTY_STREAMS_MAX} empty streams in a row");
                    Next::Fail(ErrorKind::LimitExceeded, why)
                } else {
                    Next::More
                }
            }
            Ok(Status::MemNeeded) => Next::Fail(ErrorKind::LimitExceeded, "out of memory".to_owned()),
            Ok(_) => Next::More,
            Err(Bz2Error::Data | Bz2Error::DataMagic) if self.any_complete && in_after <= HEAD_BYTES => {
                Next::End
            }
            Err(Bz2Error::DataMagic) => {
                Next::Fail(ErrorKind::Codec, "incorrect header, expected \"BZh1\" to \"BZh9\"".to_owned())
            }
            Err(Bz2Error::Data) => Next::Fail(ErrorKind::Codec, "invalid data or wrong CRC".to_owned()),
            Err(error) => Next::Fail(ErrorKind::Codec, error.to_string()),
        };
        Step { consumed: (in_after - in_before) as usize, produced: (out_after - out_before) as usize, next }
    }

    fn may_end(&self) -> bool {
        self.stream.is_none() && self.any_complete
    }

    fn memory_bytes(&self) -> usize {
        match &self.stream {
            None => 0,
            Some(stream) if stream.total_in() < 4 => STATE_BYTES,
            Some(_) => STATE_BYTES + BLOCK_BYTES,
        }
    }
}
