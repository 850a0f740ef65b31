//! Keeps all indexes together below their bound.
//!
//! Problem: several processes add files, and none of them knows the sum. Idea: each counts what it adds, and looks at the
//! directory when its count passes the bound, or now and then because others add too; then the files that were not used
//! for longest go. When a file was used stands in its time of modification ([`touch`]).
//!
//! Invariants: processes do not wait for each other: two that evict at once remove the same files; the sum stays below the
//! bound plus a sixteenth of it for each process that adds.

use std::fs::{File, Metadata};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::SeekIndexKey;
use crate::cache_dir::part::{Part, TEMPORARY_SUFFIX};

/// How exactly the time of the last use is kept: writing it down at each use would make reads cost writes.
pub(super) const USED_WITHIN: Duration = Duration::from_secs(3600);

/// A temporary file that nobody has written to for so long belongs to a process that was killed. One state is made in
/// seconds; if its writer lives all the same, his save fails and nothing else.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(15 * 60);

/// How many indexes there may be, whatever their size. Those of bz2 objects are tiny, and a directory of millions would
/// make each look at it slow. With the usual 2 GB objects this is far above the bound in bytes.
const FILES_MAX: usize = 100_000;

/// A file takes whole blocks of the disk.
const DISK_BLOCK_BYTES: u64 = 4096;

/// What is thought to lie in the directory.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// `None` until somebody has looked.
    known: Mutex<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    bytes: u64,
    files: usize,
    /// Of these, those that this process added since it looked.
    added_bytes: u64,
}

struct Entry {
    used: i128,
    key: SeekIndexKey,
    bytes: u64,
}

impl Room {
    /// Counts a file of `len_bytes` that was just saved, and evicts others if it is one too many.
    pub(super) fn added(&self, part: &Part, key: &SeekIndexKey, len_bytes: u64, bytes_max: u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = on_disk(len_bytes);
        if let Some(known) = &mut *known {
            known.bytes += bytes;
            known.files += 1;
            known.added_bytes += bytes;
            if known.bytes <= bytes_max && known.files <= FILES_MAX && known.added_bytes <= bytes_max / 16 {
                return;
            }
        }
        *known = match evict(part, key, bytes_max) {
            Ok(now) => Some(now),
            Err(error) => {
                tracing::debug!("cannot list the seek indexes in {:?}: {error}", part.path());
                None
            }
        };
    }
}

fn on_disk(len_bytes: u64) -> u64 {
    len_bytes.div_ceil(DISK_BLOCK_BYTES).saturating_mul(DISK_BLOCK_BYTES)
}

/// Looks at the directory, removes what is too old or too much, and says what is left. `newest` stays in any case.
fn evict(part: &Part, newest: &SeekIndexKey, bytes_max: u64) -> std::io::Result<Known> {
    let now = since_1970(SystemTime::now());
    let mut entries = Vec::new();
    let mut left_behind = Vec::new();
    part.visit_files(|name, len, used| {
        if let Some(key) = SeekIndexKey::from_file_name(name) {
            entries.push(Entry { used, key, bytes: on_disk(len) });
        } else if name.ends_with(TEMPORARY_SUFFIX) && now - used > nanos(TEMPORARY_AGE_MAX) {
            left_behind.push(name.to_owned());
        }
    })?;
    for name in left_behind {
        part.remove(&name)?;
    }
    let mut known =
        Known { bytes: entries.iter().map(|entry| entry.bytes).sum(), files: entries.len(), added_bytes: 0 };
    if known.bytes <= bytes_max && known.files <= FILES_MAX {
        return Ok(known);
    }
    // Some room beside, so that the next save does not have to look again.
    let (bytes_wanted, files_wanted) = (bytes_max / 8 * 7, FILES_MAX / 8 * 7);
    entries.sort_unstable_by_key(|entry| (entry.used, entry.key.0));
    for entry in entries {
        if known.bytes <= bytes_wanted && known.files <= files_wanted {
            break;
        }
        let name = entry.key.file_name();
        // Used or replaced since it was listed.
        let is_unchanged = part.stat(&name).is_none_or(|(_, used)| used == entry.used);
        if entry.key == *newest || !is_unchanged {
            continue;
        }
        part.remove(&name)?;
        known.bytes -= entry.bytes;
        known.files -= 1;
    }
    Ok(known)
}

/// Notes that a file is in use, if that was last noted long ago. Whoever may not write it leaves it as it is.
pub(super) fn touch(file: &File, metadata: &Metadata) {
    let now = SystemTime::now();
    let Ok(noted) = metadata.modified() else { return };
    let age = since_1970(now) - since_1970(noted);
    // A time in the future, from a clock that was wrong, would keep the file for ever.
    if age.abs() > nanos(USED_WITHIN) {
        let _ = file.set_modified(now);
    }
}

/// In nanoseconds.
fn since_1970(time: SystemTime) -> i128 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => nanos(after),
        Err(before) => -nanos(before.duration()),
    }
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}
