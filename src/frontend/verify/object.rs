//! One object, decoded once: its end, its md5, and the digests of its own backup.
//!
//! Idea: the digests of the backup that an object belongs to speak of each of its blocks, and its md5 of all of it. One pass
//! over the stream answers both. What other backups see of the object follows from comparing their digests with these
//! ([`super::image`]), so that nothing is decoded for each of them again.
//!
//! Invariants: memory is a few times a block or [`CHUNK_BYTES`], and the decoder's; an object that goes on behind its end is not decoded for
//! ever ([`EXCESS_BYTES_MAX`]); what the store fails to give is an error and no finding.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use md5::{Digest, Md5 as Md5Hasher};

use super::crew::{Buffers, Crew, Lane, Part, Take};
use super::findings::{Cinder, Kind};
use super::judge::{Fault, Rest};
use super::layer::{Layer, is_near};
use crate::backup::DataObject;
use crate::block::hash_of;
use crate::codec::{Codec, Decoder, ObjectStream};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use crate::types::Md5;

/// Decoded at once, in bytes, unless blocks are larger.
const CHUNK_BYTES: u64 = 1 << 20;

/// Largest chunks that may wait for other threads, in bytes: what waits is memory.
const SHARED_BYTES_MAX: u64 = 4 << 20;

/// Most blocks compared at once: each has a digest in memory, and a hostile block is as small as one byte.
const CHUNK_BLOCKS_MAX: u64 = 4096;

/// How far an object is decoded behind its end, for its md5, in plain bytes; further if it is longer than that itself.
const EXCESS_BYTES_MAX: u64 = 16 << 20;

/// Most ranges of an object that are remembered one by one; more become one that holds them all.
const BAD_RANGES_MAX: usize = 4096;

/// What one pass over an object tells.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) fault: Option<Fault>,
    /// Ranges of the volume, sorted, that no digest of this backup speaks of, of an object whose md5 is right.
    pub(super) unproven: Vec<Range<u64>>,
}
/// What the digests of one object have told so far.
pub(super) struct Pass {
    pub(super) layer: Arc<Layer>,
    pub(super) index: u32,
    /// Blocks whose digest is not that of their bytes.
    pub(super) differ: Vec<Range<u64>>,
    /// Whether all of them look as if their digest was hit.
    pub(super) all_near: bool,
    /// Ranges that no digest speaks of.
    pub(super) unproven: Vec<Range<u64>>,
    /// Why the store did not give a digest.
    failure: Option<Error>,
}

/// How the stream ended.
pub(super) enum End {
    /// After so many plain bytes.
    At(u64),
    /// It goes on behind what is looked at.
    Beyond,
    Failed(u64, Error),
}

/// Checks an object. `tell` hears of plain bytes that are done, as many as the
/// object claims at most.
///
/// Errors are the store's, and [`ErrorKind::Interrupted`].
pub(super) fn check(
    store: &dyn Store,
    layer: &Arc<Layer>,
    index: u32,
    crew: &Crew,
    cancel: &AtomicBool,
    tell: &dyn Fn(u64),
) -> Result<Checked> {
    let Some(object) = layer.backup.objects.get(index as usize) else {
        return Err(Error::new(ErrorKind::NoData, "there is no such object"));
    };
    let name = layer.backup.object_name(object)?;
    let whole = object.offset..object.offset + object.len_bytes;
    let opened = match store.open(&name) {
        Ok(source) => source,
        Err(error) if error.kind().is_damage() => {
            let (cinder, reason) = match error.kind() {
                ErrorKind::UnsafeName => (Cinder::Unknown, "Cinder follows links out of the store"),
                _ => (Cinder::No, "it refuses a backup whose files are not its objects"),
            };
            let message = error.to_string();
            let fault = Fault { kind: Kind::ObjectMissing, message, cinder, reason, bad: vec![whole] };
            return Ok(Checked { fault: Some(fault), unproven: Vec::new() });
        }
        Err(error) => return Err(error),
    };
    opened.will_read_on(0);
    let mut stream = ObjectStream::new(object.codec, opened.clone(), crew.ahead().clone()).start()?;
    let pass = Lane::new(Pass {
        layer: layer.clone(),
        index,
        differ: Vec::new(),
        all_near: true,
        unproven: Vec::new(),
        failure: None,
    });
    let reading = Reading { object, chunk_bytes: chunk_bytes(layer), crew, cancel, tell };
    let (end, md5) = reading.run(&mut *stream, &pass)?;
    if opened.is_changed()? {
        return Err(Error::new(
            ErrorKind::StoreIo,
            format!("object {name:?} was overwritten while it was read"),
        ));
    }
    let actual = Md5(md5.finalize().into());
    let trailing = stream.stored_end().map_or(0, |end| opened.stat().len_bytes.saturating_sub(end));
    let rest = Rest { trailing, frames: stream.frames() };
    pass.finish(|pass| {
        if let Some(error) = pass.failure.take() {
            return Err(error);
        }
        let mut fault = pass.judge(object, end, actual, &rest);
        if let (Some(fault), Codec::Bz2, 0) = (&mut fault, object.codec, opened.stat().len_bytes) {
            (fault.cinder, fault.reason) =
                (Cinder::Wrongly, "its decompressor takes nothing for a stream of nothing");
        }
        Ok(Checked { fault, unproven: std::mem::take(&mut pass.unproven) })
    })
}

/// One pass over an object.
struct Reading<'a> {
    object: &'a DataObject,
    chunk_bytes: u64,
    crew: &'a Crew,
    cancel: &'a AtomicBool,
    tell: &'a dyn Fn(u64),
}

impl Reading<'_> {
    /// Gives what the stream holds to the lanes. Returns how it ended, and the md5 of all of it.
    fn run(&self, stream: &mut dyn Decoder, pass: &Arc<Lane<Pass>>) -> Result<(End, Md5Hasher)> {
        let Self { object, chunk_bytes, .. } = *self;
        let md5 = Lane::new(Md5Hasher::new());
        let buffers = Arc::new(Buffers::default());
        let (mut at, end) = (object.offset, object.offset + object.len_bytes);
        let mut ended = None;
        while at < end && ended.is_none() {
            check_cancel(self.cancel)?;
            let until = end.min((at / chunk_bytes + 1).saturating_mul(chunk_bytes));
            let mut part = buffers.part(at, (until - at) as usize);
            let (filled, error) = fill(stream, &mut part.bytes)?;
            part.bytes.truncate(filled);
            let part = Arc::new(part);
            if chunk_bytes <= SHARED_BYTES_MAX {
                md5.put(part.clone(), self.crew);
                pass.put(part, self.crew);
            } else {
                md5.finish(|md5| md5.take(&part));
                pass.finish(|pass| pass.take(&part));
            }
            (self.tell)(filled as u64);
            at += filled as u64;
            let plain = at - object.offset;
            ended = match error {
                Some(error) => Some(End::Failed(plain, error)),
                None => (at < until).then_some(End::At(plain)),
            };
        }
        let mut md5 = md5.finish(std::mem::take);
        let end = match ended {
            Some(end) => end,
            None => self.run_behind(stream, &mut md5)?,
        };
        Ok((end, md5))
    }

    /// What the stream holds behind the object's end.
    fn run_behind(&self, stream: &mut dyn Decoder, md5: &mut Md5Hasher) -> Result<End> {
        let len_bytes = self.object.len_bytes;
        let bound = len_bytes.saturating_add(len_bytes.max(EXCESS_BYTES_MAX));
        let mut plain = len_bytes;
        let mut more = vec![0; 64 << 10];
        loop {
            check_cancel(self.cancel)?;
            match fill(stream, &mut more)? {
                (_, Some(error)) => return Ok(End::Failed(plain, error)),
                (0, None) => return Ok(End::At(plain)),
                (n, None) => {
                    md5.update(&more[..n]);
                    plain += n as u64;
                }
            }
            if plain > bound {
                return Ok(End::Beyond);
            }
        }
    }
}

/// A multiple of the block, so that no block lies across two chunks.
fn chunk_bytes(layer: &Layer) -> u64 {
    match &layer.digests {
        Some(table) => {
            let block_bytes = table.block_bytes().max(1);
            block_bytes * (CHUNK_BYTES / block_bytes).clamp(1, CHUNK_BLOCKS_MAX)
        }
        None => CHUNK_BYTES,
    }
}

impl Take for Md5Hasher {
    fn take(&mut self, part: &Part) {
        self.update(&part.bytes);
    }
}

impl Take for Pass {
    fn take(&mut self, part: &Part) {
        if self.failure.is_none() {
            self.failure = self.compare(part.at, &part.bytes).err();
        }
    }
}

impl Pass {
    /// Compares the blocks that lie wholly in these bytes of the volume.
    fn compare(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let all = at..at + bytes.len() as u64;
        let layer = self.layer.clone();
        let Some(table) = &layer.digests else {
            push(&mut self.unproven, all);
            return Ok(());
        };
        let block_bytes = table.block_bytes().max(1);
        let blocks = all.start / block_bytes..all.end.div_ceil(block_bytes);
        let known = blocks.start.min(table.count())..blocks.end.min(table.count());
        let digests = table.get(known.clone());
        for block in blocks {
            let start = (block * block_bytes).max(all.start);
            let part = start..((block + 1) * block_bytes).min(all.end);
            let range = layer.block(table, block).filter(|range| *range == part);
            let range = range.filter(|range| !layer.is_hidden(self.index, range));
            let digest = digests.get((block.saturating_sub(known.start)) as usize);
            let (Some(range), Some(digest)) = (range, digest) else {
                push(&mut self.unproven, part);
                continue;
            };
            let expected = match digest {
                Ok(expected) => expected,
                Err(error) if error.kind().is_damage() => {
                    push(&mut self.unproven, part);
                    continue;
                }
                Err(error) => return Err(error.clone()),
            };
            let actual = hash_of(&bytes[(range.start - at) as usize..(range.end - at) as usize]);
            if actual != *expected {
                self.all_near &= is_near(&actual, expected);
                push(&mut self.differ, range);
            }
        }
        Ok(())
    }
}

/// Adds a range that does not begin before the last one's end.
pub(super) fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    }
    if let (true, [first, .., last]) = (ranges.len() > BAD_RANGES_MAX, &ranges[..]) {
        let hull = first.start..last.end;
        ranges.clear();
        ranges.push(hull);
    }
}

/// Fills `out` as far as the stream goes: how many bytes, and why not more if the stream is to blame.
fn fill(stream: &mut dyn Decoder, out: &mut [u8]) -> Result<(usize, Option<Error>)> {
    let mut filled = 0;
    while filled < out.len() {
        match stream.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind().is_damage() => return Ok((filled, Some(error))),
            Err(error) => return Err(error),
        }
    }
    Ok((filled, None))
}

fn check_cancel(cancel: &AtomicBool) -> Result<()> {
    match cancel.load(Ordering::Relaxed) {
        true => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
        false => Ok(()),
    }
}
