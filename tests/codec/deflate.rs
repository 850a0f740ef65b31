//! A zlib encoder with all of zlib's settings, which safe interfaces do not offer.
#![allow(unsafe_code, reason = "the C-level interface of zlib-rs")]

use libz_rs_sys::*;

/// Settings of zlib's `deflateInit2`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// 0 to 9.
    pub(crate) level: i32,
    /// 9 to 15.
    pub(crate) window_bits: i32,
    /// 1 to 9: block sizes grow with it.
    pub(crate) mem_level: i32,
    /// 0 to 4: default, filtered, Huffman only, RLE, fixed codes.
    pub(crate) strategy: i32,
}

/// What Cinder uses.
pub(crate) const DEFAULT: Settings = Settings { level: 6, window_bits: 15, mem_level: 8, strategy: 0 };

/// Flush kinds that may stand between pieces of one stream.
pub(crate) const FLUSHES: [i32; 5] = [Z_NO_FLUSH, Z_PARTIAL_FLUSH, Z_SYNC_FLUSH, Z_FULL_FLUSH, Z_BLOCK];

/// One zlib stream of `pieces`, each followed by its flush.
pub(crate) fn deflate_pieces(settings: Settings, pieces: &[(&[u8], i32)]) -> Vec<u8> {
    let Settings { level, window_bits, mem_level, strategy } = settings;
    let mut stream = Box::<z_stream>::default();
    let size = size_of::<z_stream>() as i32;
    // SAFETY: a whole stream without allocators of its own, and the library's own version and size.
    let status = unsafe {
        deflateInit2_(&mut *stream, level, Z_DEFLATED, window_bits, mem_level, strategy, zlibVersion(), size)
    };
    assert_eq!(status, Z_OK, "{settings:?}");
    let (mut stored, mut out) = (Vec::new(), vec![0; 64 * 1024]);
    for (piece, flush) in pieces.iter().copied().chain([(&[][..], Z_FINISH)]) {
        stream.next_in = piece.as_ptr();
        stream.avail_in = piece.len() as u32;
        loop {
            stream.next_out = out.as_mut_ptr();
            stream.avail_out = out.len() as u32;
            // SAFETY: the stream is initialised; its pointers are those of slices that live through the call.
            let status = unsafe { deflate(&mut *stream, flush) };
            assert!(matches!(status, Z_OK | Z_STREAM_END | Z_BUF_ERROR), "{status}");
            stored.extend_from_slice(&out[..out.len() - stream.avail_out as usize]);
            if stream.avail_out > 0 && (flush != Z_FINISH || status == Z_STREAM_END) {
                break;
            }
        }
    }
    // SAFETY: the stream was initialised, and is ended here only.
    unsafe { deflateEnd(&mut *stream) };
    stored
}
