//! What root may do beyond its own files.

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Keeps those of `kept` that this thread has, and lets go of all others for good. Threads started later have the same.
pub fn keep(kept: CapabilitySet) -> Result<String, String> {
    let failed = |errno: rustix::io::Errno| errno.to_string();
    let now = rustix::thread::capabilities(None).map_err(failed)?;
    // Kernels without ambient capabilities (before 4.3) have none to clear.
    let _ = rustix::thread::clear_ambient_capability_set();
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for n in 0..u64::BITS {
            // EINVAL from the first number that the kernel does not know.
            if rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << n))
                .is_err()
            {
                break;
            }
        }
    }
    let left = now.permitted & kept;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(failed)?;
    let names: Vec<_> = left.iter_names().map(|(name, _)| name.to_lowercase()).collect();
    Ok(if names.is_empty() { "none".to_owned() } else { names.join(" ") })
}
