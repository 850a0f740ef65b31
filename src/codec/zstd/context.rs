//! libzstd's decoding states, which threads keep for their next streams.
//!
//! Problem: a random read of what our writer made decodes 128 KiB, some 60 us, with half a megabyte of state that comes from the kernel page
//! by page and goes back: that took longer than the decoding. Idea: the thread that drops a state keeps it, as with zlib's.
//!
//! Invariant: a thread keeps one state of at most [`KEPT_BYTES_MAX`].

use std::cell::RefCell;

use ::zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, SafeResult, WriteBuf};

/// Largest state that is kept, in bytes: one with the window of our writer, and not one with Cinder's of 2 MiB.
const KEPT_BYTES_MAX: usize = 640 << 10;

thread_local! {
    static KEPT: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// What libzstd calls an error of no special kind. Only a state that was given back would answer with it.
const GONE: usize = usize::MAX;

/// A decoding state as new, given back when this is dropped; `None` from then on.
pub(super) struct Context(Option<DCtx<'static>>);

impl Context {
    /// `None` when there is no memory.
    pub(super) fn take() -> Option<Self> {
        let kept = KEPT.try_with(|kept| kept.try_borrow_mut().ok()?.take()).ok().flatten();
        let kept = kept.and_then(|mut context| {
            context.reset(ResetDirective::SessionAndParameters).ok()?;
            Some(context)
        });
        kept.or_else(DCtx::try_create).map(|context| Self(Some(context)))
    }
}

impl Context {
    /// As [`DCtx::decompress_stream`].
    pub(super) fn decompress_stream<C: WriteBuf + ?Sized>(
        &mut self,
        output: &mut OutBuffer<'_, C>,
        input: &mut InBuffer<'_>,
    ) -> SafeResult {
        self.0.as_mut().map_or(Err(GONE), |context| context.decompress_stream(output, input))
    }

    /// As [`DCtx::load_dictionary`].
    pub(super) fn load_dictionary(&mut self, dictionary: &[u8]) -> SafeResult {
        self.0.as_mut().map_or(Err(GONE), |context| context.load_dictionary(dictionary))
    }

    /// As [`DCtx::reset`].
    pub(super) fn reset(&mut self, what: ResetDirective) -> SafeResult {
        self.0.as_mut().map_or(Err(GONE), |context| context.reset(what))
    }

    /// As [`DCtx::set_parameter`].
    pub(super) fn set_parameter(&mut self, parameter: DParameter) -> SafeResult {
        self.0.as_mut().map_or(Err(GONE), |context| context.set_parameter(parameter))
    }

    /// Bytes of memory, buffers included.
    pub(super) fn sizeof(&self) -> usize {
        self.0.as_ref().map_or(0, |context| context.sizeof())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let context = self.0.take().filter(|context| context.sizeof() <= KEPT_BYTES_MAX);
        if context.is_some() {
            // A thread that is ending keeps nothing.
            let _ = KEPT.try_with(|kept| kept.try_borrow_mut().map(|mut kept| *kept = context));
        }
    }
}
