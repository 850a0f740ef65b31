//! Is an object what the metadata and the digests say?
//!
//! Its plain bytes are read once, in order, and compared with the md5 of the whole and with the sha256 of each block that lies in
//! it. The two tell apart who is wrong: where the md5 is right and a digest is not, it is the digest's file that is damaged.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use md5::{Digest, Md5 as Md5Hasher};

use super::RepairOptions;
use crate::backup::{Backup, BlockHashTable, DataObject};
use crate::block::hash_of;
use crate::codec::decoder;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{ObjectVersion, Store};
use crate::types::{BlockHash, Md5, count};

/// Digests compared at once.
const COMPARED_AT_ONCE: usize = 256;

/// Most wrong digests kept of one object whose md5 is right: those of Cinder's largest object.
const WRONG_DIGESTS_MAX: usize = 65_536;

/// Bytes read at once where there are no digests.
const STEP_BYTES: u64 = 256 << 10;

/// What an object was found to be.
pub(super) enum State {
    Good,
    /// Its bytes are not those that they must be, or cannot be had; which version of it that was, if any.
    Damaged(Error, Option<ObjectVersion>),
    /// It is right by its md5; these blocks have another digest than the digest file says.
    WrongDigests(Vec<(u64, BlockHash)>),
}

/// Looks at one object. An error where the store fails, which says nothing of the object.
pub(super) fn object(
    store: &dyn Store,
    backup: &Backup,
    object: &DataObject,
    table: Option<&BlockHashTable>,
    image_bytes: u64,
    passed: &dyn Fn(u64),
) -> Result<State> {
    let mut version = None;
    let damaged = |error: Error, version: &Option<ObjectVersion>| match error.kind().is_damage() {
        true => Ok(State::Damaged(error, version.clone())),
        false => Err(error),
    };
    let name = backup.object_name(object)?;
    let read = store.open(&name).and_then(|source| {
        version = Some(source.stat().version.clone());
        decoder(object.codec, source)
    });
    let mut decoder = match read {
        Ok(decoder) => decoder,
        Err(error) => return damaged(error, &version),
    };
    let mut blocks = Blocks::new(object, table, image_bytes);
    let mut md5 = Md5Hasher::new();
    let mut buffer = vec![0; blocks.step_bytes as usize];
    let mut total = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) => return damaged(error, &version),
            }
        }
        total += filled as u64;
        if filled == 0 || total > object.len_bytes {
            break;
        }
        passed(filled as u64);
        md5.update(&buffer[..filled]);
        blocks.pass(&buffer[..filled])?;
    }
    if total != object.len_bytes {
        let message = format!("it holds {total} plain bytes (or more), expected {}", object.len_bytes);
        return Ok(State::Damaged(Error::new(ErrorKind::Truncated, message), version));
    }
    let is_covered = blocks.finish()?;
    let actual = Md5(md5.finalize().into());
    let is_md5_right = object.md5.map(|expected| expected == actual);
    Ok(match (is_md5_right, blocks.wrong.is_empty()) {
        (Some(true), false) => State::WrongDigests(blocks.wrong),
        (Some(true), true) => State::Good,
        (_, true) if is_covered => {
            if is_md5_right == Some(false) {
                tracing::warn!(object = ?name, "all digests are right; the md5 in the metadata is not, and nobody needs it");
            }
            State::Good
        }
        _ => {
            let wrong = blocks.wrong_count;
            let message =
                format!("its md5 is {actual}, and the sha256 of {} is wrong", count(wrong, "block"));
            State::Damaged(Error::new(ErrorKind::HashMismatch, message), version)
        }
    })
}

/// Compares the blocks that lie whole in an object.
struct Blocks<'a> {
    table: Option<&'a BlockHashTable>,
    step_bytes: u64,
    next: u64,
    end: u64,
    image_bytes: u64,
    /// Where all blocks begin and end with the object, or with the image.
    is_covered: bool,
    pending: Vec<BlockHash>,
    wrong: Vec<(u64, BlockHash)>,
    wrong_count: u64,
}

impl<'a> Blocks<'a> {
    fn new(object: &DataObject, table: Option<&'a BlockHashTable>, image_bytes: u64) -> Self {
        let aligned = table
            .filter(|table| object.offset.is_multiple_of(table.block_bytes()) && table.block_bytes() > 0);
        let step_bytes = aligned.map_or(STEP_BYTES, BlockHashTable::block_bytes);
        Self {
            table: aligned,
            step_bytes,
            next: object.offset / step_bytes,
            end: aligned.map_or(0, BlockHashTable::count),
            image_bytes,
            is_covered: aligned.is_some(),
            pending: Vec::new(),
            wrong: Vec::new(),
            wrong_count: 0,
        }
    }

    fn pass(&mut self, bytes: &[u8]) -> Result<()> {
        if self.table.is_none() {
            return Ok(());
        }
        let at = self.next + self.pending.len() as u64;
        let is_whole = bytes.len() as u64 == self.step_bytes
            || at * self.step_bytes + bytes.len() as u64 == self.image_bytes;
        if at >= self.end || !is_whole {
            self.is_covered = false;
            return Ok(());
        }
        self.pending.push(hash_of(bytes));
        if self.pending.len() >= COMPARED_AT_ONCE { self.compare() } else { Ok(()) }
    }

    fn compare(&mut self) -> Result<()> {
        let Some(table) = self.table else { return Ok(()) };
        let blocks = self.next..self.next + self.pending.len() as u64;
        for ((block, actual), expected) in
            blocks.clone().zip(self.pending.drain(..)).zip(table.get(blocks.clone()))
        {
            match expected {
                Ok(expected) if expected == actual => {}
                Err(error) if error.kind() != ErrorKind::Malformed => return Err(error),
                Ok(_) | Err(_) => {
                    self.wrong_count += 1;
                    if self.wrong.len() < WRONG_DIGESTS_MAX {
                        self.wrong.push((block, actual));
                    }
                }
            }
        }
        self.next = blocks.end;
        Ok(())
    }

    /// Whether every byte was compared with a digest.
    fn finish(&mut self) -> Result<bool> {
        self.compare()?;
        Ok(self.is_covered)
    }
}

/// All objects of a backup, in its order, looked at by as many threads as the options say; those that are not good. Their progress is told
/// in plain bytes; what ends early counts whole.
pub(super) fn all(
    store: &Arc<dyn Store>,
    backup: &Backup,
    table: Option<&BlockHashTable>,
    image_bytes: u64,
    options: &RepairOptions<'_>,
    stop: &(dyn Fn() -> Result<()> + Sync),
) -> Result<Vec<(usize, State)>> {
    let total: u64 = backup.objects.iter().map(|object| object.len_bytes).fold(0, u64::saturating_add);
    let done = AtomicU64::new(0);
    let tell = |done| (options.progress)(done, total);
    let next = AtomicUsize::new(0);
    let run = || -> Result<Vec<(usize, State)>> {
        let mut found = Vec::new();
        loop {
            stop()?;
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(data) = backup.objects.get(index) else { return Ok(found) };
            let own = Cell::new(0);
            let passed = |bytes: u64| {
                let bytes = bytes.min(data.len_bytes - own.get());
                own.set(own.get() + bytes);
                tell(done.fetch_add(bytes, Ordering::Relaxed) + bytes);
            };
            match object(&**store, backup, data, table, image_bytes, &passed)? {
                State::Good => {}
                state => found.push((index, state)),
            }
            passed(data.len_bytes);
        }
    };
    let mut found = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..options.threads.clamp(1, backup.objects.len().max(1))).map(|_| scope.spawn(run)).collect();
        let mut found = Vec::new();
        for thread in threads {
            let bug = || Error::new(ErrorKind::Interrupted, "a bug stopped the check of an object");
            found.extend(thread.join().map_err(|_| bug())??);
        }
        Ok::<_, Error>(found)
    })?;
    found.sort_by_key(|(index, _)| *index);
    Ok(found)
}
