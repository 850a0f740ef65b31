//! How many files this process may have open.
//!
//! Problem: most systems let a process open 1,024 files unless it asks for more, and every image that was opened keeps its digests open, so a store of
//! a thousand backups would use all of them up at one `ls -l`. Idea: ask for more at the start, and let what is kept open depend on what was granted.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many as are asked for: each costs the kernel a kilobyte or so while it is open, and programs that are started inherit the limit.
const ASKED_FOR: u64 = 65_536;

/// For all that is not an image: opened objects (256), idle decoders that hold objects which were closed (128), the mount and its threads, and users' files.
const OTHERS: u64 = 640;

/// Images that are kept open however few files there may be.
const IMAGES_MIN: u64 = 64;

/// Asks for as many as this process can have without a privilege.
pub(crate) fn ask_for_more() {
    let Rlimit { current: Some(current), maximum } = getrlimit(Resource::Nofile) else { return };
    let wanted = maximum.map_or(ASKED_FOR, |maximum| maximum.min(ASKED_FOR));
    if wanted > current {
        // Refused, it stays as it is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}

/// How many images may be kept open for later.
pub(crate) fn images_max() -> u64 {
    images_max_of(getrlimit(Resource::Nofile).current)
}

fn images_max_of(files: Option<u64>) -> u64 {
    files.unwrap_or(ASKED_FOR).saturating_sub(OTHERS).max(IMAGES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_leave_room_for_others() {
        assert_eq!([Some(1024), Some(256), Some(0)].map(images_max_of), [384, IMAGES_MIN, IMAGES_MIN]);
        assert_eq!(images_max_of(None), ASKED_FOR - OTHERS);
    }
}
