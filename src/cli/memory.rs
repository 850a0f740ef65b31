//! How the process's memory is given back.
//!
//! Problem: `cache_size` bounds what we hold, but glibc keeps what we free: each of up to 32 arenas a heap of its own, and
//! blocks of megabytes too, once it has seen them come and go. A mount that reads at random then takes twice what it
//! holds. Idea: few arenas, and large blocks straight from the kernel and back, said once before any thread starts.
//! (The buffers that come and go most are kept by their threads.)

/// Blocks from this size on come from the kernel and go back to it, in bytes.
#[cfg(target_env = "gnu")]
const FROM_THE_KERNEL_BYTES: libc::c_int = 512 << 10;

/// Arenas for all threads. Threads meet in one seldom: what they do most of the time is decode and hash.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: libc::c_int = 2;

/// Tells the allocator. To be called before the first thread is started.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library has no safe form of this")]
pub(crate) fn tame_the_allocator() {
    // SAFETY: `mallopt` only stores the value for later allocations; it is called before there are other threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, FROM_THE_KERNEL_BYTES);
    }
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn tame_the_allocator() {}
