//! Threads that may stay in a call that does not return.
//!
//! Problem: nothing ends a system call on a file whose server hangs, and handing each such call to another thread costs more than most of
//! them take. Idea: a thread whose work somebody else can end, by answering in its place, says so, and makes its calls itself.
//!
//! Invariant: nobody waits without a limit for a thread that is expendable.

use std::cell::Cell;

thread_local! {
    static IS_EXPENDABLE: Cell<bool> = const { Cell::new(false) };
}

/// Says that this thread may stay in a call for ever.
pub(crate) fn declare() {
    IS_EXPENDABLE.set(true);
}

/// Whether this thread may stay in a call for ever.
pub(crate) fn is_this_thread() -> bool {
    IS_EXPENDABLE.get()
}
