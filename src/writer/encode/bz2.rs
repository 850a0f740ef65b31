//! Pieces as bzip2 streams.
//!
//! A bzip2 block of level 9 holds 900,000 bytes less 19, counted after runs of four and more equal bytes were shortened (and runs
//! of exactly four lengthened by one). Blocks share nothing, so a stream for each block costs 14 bytes and a piece that is
//! just below a block loses nothing. Longer pieces are cut into streams of about the same length.

use ::bzip2::{Action, Compress, Compression, Status};

use super::Encoded;
use crate::error::{Error, ErrorKind, Result};

/// What the block sorter allocates, while it works: 7.6 MB at level 9.
pub(super) const CONTEXT_BYTES: usize = 10 << 20;

/// Bytes of a stream beside its blocks, and of its only block's header: more than there are.
const STREAM_EXTRA_BYTES: usize = 64;

/// Plain bytes of a stream that suit one block.
pub(super) fn plain_bytes_max(level: i32) -> usize {
    level as usize * 100_000 - 19
}

/// The state in which one thread compresses.
pub(super) struct Bz2 {
    level: i32,
    stored: Vec<u8>,
    entries: Vec<(u32, u32)>,
}

impl Bz2 {
    pub(super) fn new(level: i32) -> Self {
        Self { level, stored: Vec::new(), entries: Vec::new() }
    }

    /// Compresses `plain`.
    pub(super) fn encode(&mut self, plain: &[u8]) -> Result<Encoded<'_>> {
        self.stored.clear();
        self.entries.clear();
        let streams = plain.len().div_ceil(plain_bytes_max(self.level)).max(1);
        let stream_bytes = plain.len().div_ceil(streams).max(1);
        let mut plain_offset = 0;
        for part in plain.chunks(stream_bytes) {
            self.entries.push((plain_offset as u32, self.stored.len() as u32));
            self.stream(part)?;
            plain_offset += part.len();
        }
        Ok(Encoded { stored: &self.stored, entries: &self.entries, adler: 0 })
    }

    fn stream(&mut self, mut plain: &[u8]) -> Result<()> {
        // The library cannot be set back, so each stream has a state of its own.
        let mut compress = Compress::new(Compression::new(self.level as u32), 0);
        loop {
            // Never longer than the plain bytes and 1 %, by its documentation; asked for again if it is.
            self.stored.reserve(plain.len() + plain.len() / 64 + STREAM_EXTRA_BYTES);
            let before = compress.total_in();
            let status = compress
                .compress_vec(plain, &mut self.stored, Action::Finish)
                .map_err(|error| Error::new(ErrorKind::Codec, format!("bz2: cannot compress: {error}")))?;
            let taken = usize::try_from(compress.total_in() - before).unwrap_or(usize::MAX);
            plain = plain.get(taken..).unwrap_or_default();
            match status {
                Status::StreamEnd => return Ok(()),
                Status::Ok | Status::FinishOk | Status::FlushOk | Status::RunOk => {}
                Status::MemNeeded => return Err(Error::new(ErrorKind::LimitExceeded, "bz2: out of memory")),
            }
        }
    }
}
