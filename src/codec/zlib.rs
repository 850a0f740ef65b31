//! zlib objects: exactly one RFC 1950 stream.
//!
//! Cinder's restore stops at the end of the first stream: what follows it, junk or another stream, is ignored, so it
//! is ignored here. An RFC 1952 gzip file is refused by both, although `gzip` is another name of this codec.
//!
//! The Adler-32 at the end is compared when a read reaches it. By then the bytes have been delivered; the block
//! digests are what decides about them.

use flate2::{Decompress, FlushDecompress, Status};

use super::Codec;
use super::stream::{Next, Step, Stream};
use crate::error::ErrorKind;

/// Memory of a running inflater: the window of 32 KiB with its padding, and the code tables of about 15 KiB. The
/// stream cannot raise it.
const STATE_BYTES: usize = 56 * 1024;

/// The state of one zlib stream.
pub(super) struct Zlib {
    inflate: Decompress,
}

impl Zlib {
    pub(super) fn new() -> Self {
        Self { inflate: Decompress::new(true) }
    }
}

impl Stream for Zlib {
    const CODEC: Codec = Codec::Zlib;

    fn step(&mut self, input: &[u8], out: &mut [u8]) -> Step {
        let (in_before, out_before) = (self.inflate.total_in(), self.inflate.total_out());
        let next = match self.inflate.decompress(input, out, FlushDecompress::None) {
            Ok(Status::Ok | Status::BufError) => Next::More,
            Ok(Status::StreamEnd) => Next::End,
            Err(error) if error.needs_dictionary().is_some() => {
                Next::Fail(ErrorKind::Codec, "it needs a preset dictionary, expected none".to_owned())
            }
            Err(error) => {
                // The library often says only that it had failed before, though this is the first failure.
                let why = error.message().filter(|why| !why.starts_with("repeated call"));
                Next::Fail(ErrorKind::Codec, why.unwrap_or("invalid data").to_owned())
            }
        };
        Step {
            consumed: (self.inflate.total_in() - in_before) as usize,
            produced: (self.inflate.total_out() - out_before) as usize,
            next,
        }
    }

    fn may_end(&self) -> bool {
        false // The stream says its own end.
    }

    fn memory_bytes(&self) -> usize {
        STATE_BYTES
    }
}
