//! Pieces of a zstd frame.
//!
//! Problem: many frames are unsafe for genuine Cinder, so pieces must become one frame. But a block inside a frame may use what
//! blocks before it left behind: plain bytes, entropy tables, and the three last offsets. Compressed as a frame of
//! its own, a piece uses no bytes and no tables of others, but its first sequences may well say "offset 1 again", because a
//! frame begins with the offsets 1, 4 and 8; in the middle of a frame that means something else. Idea: let libzstd itself cut
//! jobs. Its multithreading makes one frame out of jobs that are compressed apart, and with `overlapLog` 1 they share nothing: a job
//! that is not the frame's first has its offsets made invalid before it begins. So a context here is a frame with workers
//! whose first job is one byte that is thrown away; each flush ends a job, and what comes out is blocks that may stand
//! anywhere.
//!
//! Weighed against: libzstd's own threads for a whole object (a second pool beside the one that hashes, and one that wants
//! an object's bytes in one place); frames made apart whose first sequences are looked at, and which are compressed otherwise when
//! they use an offset that they did not set (how often was not counted; "otherwise" needs tricks that libzstd does
//! not promise). Against frames made apart on the same thread the hand-over to the worker took 20 % of the speed with jobs of
//! 128 KiB, 1 % with 256 KiB and 13 % with 1 MiB, in one run each. It stays above that of Cinder's one frame.
//!
//! The tests put pieces together in random orders, behind others that leave strange offsets and tables behind, so a libzstd that
//! changes this is found out. They also show that frames made apart do not pass.
//!
//! # How long jobs are
//!
//! Stored bytes against one frame of level 3 as Cinder makes it, speed on one thread (Cinder's: 264 and 530 MB/s), and the time
//! to decode a random block of 32 KiB. Files of `/usr`, and a mix of 40 % of those, 30 % random bytes, 30 % zeros:
//!
//! | job | files: stored | MB/s | p50 | mix: stored | MB/s | p50 |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | 1 MiB | 102.0 % | 327 | - | - | - | - |
//! | 256 KiB | 106.5 % | 354 | 161 us | 101.5 % | 647 | 142 us |
//! | **128 KiB** | **109.3 %** | **327** | **79 us** | **102.2 %** | **707** | **11 us** |
//!
//! A window of 128 KiB is also all that a decoder has to allocate.

use ::zstd::zstd_safe::zstd_sys::{ZSTD_EndDirective, ZSTD_ErrorCode};
use ::zstd::zstd_safe::{
    CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, compress_bound, get_error_name, is_error_kind,
};

use super::{Encoded, PIECE_BYTES_MAX};
use crate::error::{Error, ErrorKind, Result};

/// Plain bytes of a job, and of the window: nothing looks back further than its job's start.
const JOB_BYTES: usize = 1 << JOB_LOG;
const JOB_LOG: u32 = 17;

/// An object's header up to the content size: the magic number, "eight bytes of content size, no checksum", the window.
pub(super) const HEADER: [u8; 6] = [0x28, 0xB5, 0x2F, 0xFD, 0xC0, ((JOB_LOG - 10) << 3) as u8];

/// An empty stored block, the last.
pub(super) const LAST_BLOCK: [u8; 3] = [0x01, 0x00, 0x00];

/// The frame's first job, which is thrown away.
const FIRST_JOB: [u8; 1] = [0];

/// The least that libzstd takes for the length at which it would cut jobs itself; ours are cut by flushes before that. Its
/// buffers are a few times this long.
const LIBRARY_JOB_BYTES: u32 = 512 << 10;

/// One works at a time. But a worker is not free at once when its job is there to be taken, and until it is, whoever brings
/// the next job turns in a circle: with one worker that took 18 % of a backup's processor time.
const WORKERS: u32 = 2;

/// Tables, the library's buffers for jobs and results, and ours; the test below holds it to this.
pub(super) const CONTEXT_BYTES: usize = 12 << 20;

/// The level from which on tables are larger than a job can fill.
const SMALL_TABLES_FROM: i32 = 5;

/// The state in which one thread compresses.
pub(super) struct Zstd {
    context: CCtx<'static>,
    stored: Vec<u8>,
    entries: Vec<(u32, u32)>,
}

impl Zstd {
    /// Fails with [`ErrorKind::LimitExceeded`] when there is no memory for the state.
    pub(super) fn new(level: i32) -> Result<Self> {
        let no_memory = || Error::new(ErrorKind::LimitExceeded, "zstd: out of memory");
        let mut context = CCtx::try_create().ok_or_else(no_memory)?;
        let parameters = [
            CParameter::CompressionLevel(level),
            CParameter::WindowLog(JOB_LOG),
            CParameter::NbWorkers(WORKERS),
            CParameter::JobSize(LIBRARY_JOB_BYTES),
            CParameter::OverlapSizeLog(1),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
        ];
        // Higher levels have tables for megabytes, 80 MB of them at level 19; a job has fewer places than these have.
        let small_tables = [CParameter::HashLog(JOB_LOG + 1), CParameter::ChainLog(JOB_LOG + 1)];
        let small_tables = small_tables.into_iter().filter(|_| level >= SMALL_TABLES_FROM);
        for parameter in parameters.into_iter().chain(small_tables) {
            context.set_parameter(parameter).map_err(failure)?;
        }
        Ok(Self { context, stored: Vec::new(), entries: Vec::new() })
    }

    /// Compresses `plain`, at most [`PIECE_BYTES_MAX`] bytes.
    pub(super) fn encode(&mut self, plain: &[u8]) -> Result<Encoded<'_>> {
        self.entries.clear();
        self.context.reset(ResetDirective::SessionOnly).map_err(failure)?;
        // Each job needs at most its own bound, and the sum of those is below this.
        self.stored.resize(compress_bound(PIECE_BYTES_MAX) + PIECE_BYTES_MAX / 64, 0);
        job(&mut self.context, &FIRST_JOB, &mut self.stored)?;
        let (mut plain_offset, mut stored_offset) = (0, 0);
        for part in plain.chunks(JOB_BYTES) {
            self.entries.push((plain_offset as u32, stored_offset as u32));
            stored_offset += job(&mut self.context, part, &mut self.stored[stored_offset..])?;
            plain_offset += part.len();
        }
        Ok(Encoded { stored: &self.stored[..stored_offset], entries: &self.entries, adler: 0 })
    }
}

/// One job: all of `plain` to whole blocks in `stored`; says how long they are.
fn job(context: &mut CCtx<'_>, plain: &[u8], stored: &mut [u8]) -> Result<usize> {
    let (mut input, mut output) = (InBuffer::around(plain), OutBuffer::around(stored));
    loop {
        let before = (input.pos(), output.pos());
        let left = context
            .compress_stream2(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_flush)
            .map_err(failure)?;
        if left == 0 && input.pos() == plain.len() {
            return Ok(output.pos());
        }
        // A flush waits for its worker, so each call gets somewhere unless there is no room.
        if before == (input.pos(), output.pos()) {
            return Err(Error::new(ErrorKind::Codec, "zstd: the compressor stands still"));
        }
    }
}

fn failure(code: usize) -> Error {
    if is_error_kind(code, ZSTD_ErrorCode::ZSTD_error_memory_allocation) {
        return Error::new(ErrorKind::LimitExceeded, "zstd: out of memory");
    }
    Error::new(ErrorKind::Codec, format!("zstd: cannot compress: {}", get_error_name(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_holds_no_more_than_it_says() {
        let plain: Vec<u8> =
            (0..PIECE_BYTES_MAX as u64).map(|n| (n.wrapping_mul(n * n) >> 7) as u8).collect();
        for level in 1..=19 {
            let mut zstd = Zstd::new(level).unwrap();
            zstd.encode(&plain).unwrap();
            let held = zstd.context.sizeof() + zstd.stored.capacity();
            assert!(held <= CONTEXT_BYTES, "level {level}: {held}");
        }
    }
}
