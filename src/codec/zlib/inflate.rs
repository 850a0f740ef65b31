//! A safe face for zlib-rs's inflater, which stops at block borders and starts in the middle of a byte.
//!
//! Problem: restart points need four things that zlib has and the safe interface of zlib-rs has not: to stop between
//! two blocks (`Z_BLOCK`), to read the window, to set it, and to begin at any bit (`inflatePrime`). Idea: zlib-rs speaks
//! zlib's own interface too; this module is the only caller of it, and nothing of it leaves this module. It is the same
//! inflater: pure Rust, and as fast as through flate2.
//!
//! Invariants that the safety arguments use:
//! - the `z_stream` of an [`Inflate`] was initialised by `inflateInit2_`, stays in one place until `inflateEnd`, and nobody else
//!   has a pointer to it;
//! - the pointers into the caller's slices are set just before a call and not used after it.
#![allow(unsafe_code, reason = "the C-level interface of zlib-rs; each call is argued")]

use std::cell::RefCell;
use std::ffi::CStr;
use std::mem;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_DATA_ERROR, Z_MEM_ERROR, Z_NEED_DICT, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate,
    inflateEnd, inflateGetDictionary, inflateInit2_, inflatePrime, inflateReset2, inflateSetDictionary,
    z_stream, zlibVersion,
};

/// The largest window of RFC 1951, in bytes; no distance reaches further.
pub(crate) const WINDOW_BYTES_MAX: usize = 32 * 1024;

/// The largest window as zlib counts it, in bits. It suits every stream, whatever window its header names.
const WINDOW_BITS_MAX: i32 = 15;

/// Bytes that one call is told of, in and out: zlib's counters have 32 bits.
const CALL_BYTES_MAX: usize = 1 << 30;

/// Inflaters that a thread keeps for its next streams: a random read needs one for less time than clearing its 50 KB takes.
const KEPT_MAX: usize = 2;

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept(Vec::new())) };
}

/// Initialised streams that nobody uses.
#[expect(clippy::vec_box, reason = "an implementation may keep a pointer to a stream, so it must not move")]
struct Kept(Vec<Box<z_stream>>);

/// An inflater.
pub(crate) struct Inflate {
    /// Boxed, because zlib allows an implementation to keep a pointer to it.
    stream: Box<z_stream>,
}

// SAFETY: what the pointers of the stream lead to was allocated by zlib-rs for this stream alone, with Rust's global
// allocator, and is tied to no thread. The pointers into callers' slices are not used between calls.
unsafe impl Send for Inflate {}

/// What one call did.
pub(crate) struct Inflated {
    /// Stored bytes used up; some of their bits may be unused, see [`Status::Border`].
    pub(crate) consumed: usize,
    /// Plain bytes written.
    pub(crate) produced: usize,
    /// Where it stands now.
    pub(crate) status: Status,
}

/// Where an inflater stands.
pub(crate) enum Status {
    /// It needs more input or more room.
    More,
    /// It stopped after a block, as it was asked to.
    Border {
        /// How many bits of the consumed bytes belong to what follows, at most 63.
        unused_bits: u32,
        /// Whether it was the last block.
        last: bool,
    },
    /// The stream is complete.
    End,
    /// It can never go on. The library's words, if it has any.
    Failed(Option<String>),
    /// The stream asks for a dictionary.
    NeedsDictionary,
}

impl Inflate {
    /// For a zlib stream (RFC 1950), from its header. `None` when there is no memory.
    pub(crate) fn zlib() -> Option<Self> {
        Self::new(WINDOW_BITS_MAX)
    }

    /// For bare blocks (RFC 1951) that follow `window`, the last plain bytes before them, of which the last
    /// [`WINDOW_BYTES_MAX`] count. `None` when there is no memory.
    pub(crate) fn raw(window: &[u8]) -> Option<Self> {
        let mut this = Self::new(-WINDOW_BITS_MAX)?;
        let window = &window[window.len().saturating_sub(WINDOW_BYTES_MAX)..];
        // SAFETY: the stream is initialised and borrowed by us alone; the pointer and the length (at most 32 KiB) are
        // those of a living slice, which the call copies.
        let status = unsafe { inflateSetDictionary(&mut *this.stream, window.as_ptr(), window.len() as u32) };
        (status == Z_OK).then_some(this)
    }

    fn new(window_bits: i32) -> Option<Self> {
        let kept = KEPT.try_with(|kept| kept.try_borrow_mut().ok()?.0.pop()).ok().flatten();
        if let Some(stream) = kept {
            let mut this = Self { stream };
            // SAFETY: the stream is initialised and owned by us alone; the call takes a number, and checks it.
            let status = unsafe { inflateReset2(&mut *this.stream, window_bits) };
            if status == Z_OK {
                return Some(this);
            }
        }
        let mut stream = Box::<z_stream>::default();
        let size = size_of::<z_stream>() as i32;
        // SAFETY: `stream` is a whole `z_stream` without allocators of its own, so the library takes its default; the
        // version is its own static string and the size that of its own type.
        let status = unsafe { inflateInit2_(&mut *stream, window_bits, zlibVersion(), size) };
        (status == Z_OK).then(|| Self { stream })
    }

    /// Puts the upper `bits` bits of `byte` before the input: 1 to 7, on a new raw inflater only.
    pub(crate) fn prime(&mut self, bits: u32, byte: u8) {
        debug_assert!((1..8).contains(&bits));
        // SAFETY: the stream is initialised and borrowed by us alone; the call takes numbers, and checks them.
        let status = unsafe { inflatePrime(&mut *self.stream, bits as i32, i32::from(byte) >> (8 - bits)) };
        debug_assert_eq!(status, Z_OK);
    }

    /// Inflates from `input` into `out`; with `stop_at_border`, to the end of the current block at most.
    pub(crate) fn step(&mut self, input: &[u8], out: &mut [u8], stop_at_border: bool) -> Inflated {
        let input = &input[..input.len().min(CALL_BYTES_MAX)];
        let room = out.len().min(CALL_BYTES_MAX);
        let out = &mut out[..room];
        let stream = &mut *self.stream;
        stream.next_in = input.as_ptr();
        stream.avail_in = input.len() as u32;
        stream.next_out = out.as_mut_ptr();
        stream.avail_out = out.len() as u32;
        let flush = if stop_at_border { Z_BLOCK } else { Z_NO_FLUSH };
        // SAFETY: the stream is initialised and borrowed by us alone; `next_in` and `next_out` were just set from living
        // slices of bytes with these lengths, which are not touched until the call returns.
        let status = unsafe { inflate(stream, flush) };
        let consumed = input.len() - stream.avail_in as usize;
        let produced = out.len() - stream.avail_out as usize;
        let status = match status {
            // 128: just after a block (or the header); 64: in or after the last one.
            Z_OK | Z_BUF_ERROR if stop_at_border && stream.data_type & 128 != 0 => Status::Border {
                unused_bits: (stream.data_type & 63) as u32,
                last: stream.data_type & 64 != 0,
            },
            Z_OK | Z_BUF_ERROR => Status::More,
            Z_STREAM_END => Status::End,
            Z_NEED_DICT => Status::NeedsDictionary,
            Z_MEM_ERROR => Status::Failed(Some("out of memory".to_owned())),
            Z_DATA_ERROR => Status::Failed(self.message()),
            _ => Status::Failed(None),
        };
        Inflated { consumed, produced, status }
    }

    /// What the library says about the last failure.
    fn message(&self) -> Option<String> {
        if self.stream.msg.is_null() {
            return None;
        }
        // SAFETY: `msg` is null or one of the library's static strings, which end with a zero byte.
        let message = unsafe { CStr::from_ptr(self.stream.msg) };
        Some(message.to_string_lossy().into_owned())
    }

    /// The last plain bytes, at most [`WINDOW_BYTES_MAX`], fewer near the start, put behind what `into` holds.
    pub(crate) fn append_window(&self, into: &mut Vec<u8>) {
        let before = into.len();
        into.resize(before + WINDOW_BYTES_MAX, 0);
        let mut len = 0;
        // SAFETY: the stream is initialised; behind `before` there are 32 KiB to write to, and the window is never
        // larger; `len` is a living integer.
        let status = unsafe { inflateGetDictionary(&*self.stream, into[before..].as_mut_ptr(), &mut len) };
        let len = if status == Z_OK { len as usize } else { 0 };
        into.truncate(before + len.min(WINDOW_BYTES_MAX));
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        let stream = mem::take(&mut self.stream);
        let unused = Kept(vec![stream]);
        // A thread that is ending keeps nothing.
        let _ = KEPT.try_with(|kept| kept.try_borrow_mut().map(|mut kept| kept.take_over(unused)));
    }
}

impl Kept {
    /// Keeps the stream of `other`, if there is room.
    fn take_over(&mut self, mut other: Self) {
        if self.0.len() < KEPT_MAX {
            self.0.append(&mut other.0);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for stream in &mut self.0 {
            // SAFETY: the stream was initialised, whoever used it is gone, and this is the only place that ends one. Without
            // memory left to free, the status says nothing of use.
            unsafe { inflateEnd(&mut **stream) };
        }
    }
}
