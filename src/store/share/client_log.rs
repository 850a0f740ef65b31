//! Why GlusterFS did not mount.
//!
//! Problem: its client says "Mounting glusterfs failed" to mount(8), and the reason to a log of its own. Idea: what was added to that log
//! meanwhile has it, in a line of the level E.
//!
//! Invariant: a log that is not there, or cannot be read, is no failure.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::ShareKind;

/// Where the client logs unless told; the file is named by the mountpoint.
const FOLDER: &str = "/var/log/glusterfs";

/// Most bytes that are looked at. A mount that fails adds some kilobytes.
const BYTES_MAX: u64 = 1 << 18;

/// Most characters of a reason that are told.
const REASON_CHARS_MAX: usize = 200;

/// The log, before the mount.
pub(super) struct ClientLog {
    path: PathBuf,
    len_bytes: u64,
}

impl ClientLog {
    /// That of the client which is about to mount there; NFS has none.
    pub(super) fn of(kind: ShareKind, mountpoint: &Path) -> Option<Self> {
        match kind {
            ShareKind::Nfs => None,
            ShareKind::Glusterfs => {
                let name = mountpoint.to_str()?.trim_matches('/').replace('/', "-");
                let path = Path::new(FOLDER).join(format!("{name}.log"));
                let len_bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
                Some(Self { path, len_bytes })
            }
        }
    }

    /// Why it failed, as far as it was logged since.
    pub(super) fn reason(&self) -> Option<String> {
        let mut file = File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(self.len_bytes)).ok()?;
        let mut bytes = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
        reason_in(&String::from_utf8_lossy(&bytes))
    }
}

/// The words of the last error: `[time] E [where] 0-what: words`.
fn reason_in(log: &str) -> Option<String> {
    let words = |line: &str| {
        let (_, behind) = line.split_once("] E [")?;
        let (_, words) = behind.split_once("] 0-")?;
        let (_, words) = words.split_once(": ")?;
        Some(words.trim().chars().take(REASON_CHARS_MAX).collect())
    };
    log.lines().rev().find_map(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_the_reason() {
        let log = "[2026-11-23 11:50:34.554976 +0000] E [glusterfsd-mgmt.c:2170:mgmt_getspec_cbk] 0-glusterfs: failed to get the 'volume file' from server\n\
            [2026-11-23 11:50:34.554982 +0000] E [glusterfsd-mgmt.c:2371:mgmt_getspec_cbk] 0-mgmt: failed to fetch volume file (key:/nosuch)\n\
            [2026-11-23 11:50:34.555182 +0000] W [glusterfsd.c:1458:cleanup_and_exit] 0-: received signum (0), shutting down\n";
        assert_eq!(reason_in(log).as_deref(), Some("failed to fetch volume file (key:/nosuch)"));
        assert_eq!(reason_in("[x] I [y] 0-z: fine\n"), None);
        let coded =
            "[t] E [MSGID: 101073] [name.c:266:resolve] 0-glusterfs: DNS resolution failed on host h\n";
        assert_eq!(reason_in(coded).as_deref(), Some("DNS resolution failed on host h"));
    }
}
