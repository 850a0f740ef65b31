//! One object, decoded once: its end, its md5, and the digests of its own backup.
//!
//! Idea: the digests of the backup that an object belongs to speak of each of its blocks, and its md5 of all of it. One pass
//! over the stream answers both. What other backups see of the object follows from comparing their digests with these
//! ([`super::image`]), so that nothing is decoded for each of them again.
//!
//! Where the two disagree, the one that fits is believed: a right md5 says that a digest was hit, right digests say that the
//! md5 was.
//!
//! Invariants: memory is a block or [`CHUNK_BYTES`], and the decoder's; an object that goes on behind its end is not decoded for
//! ever ([`EXCESS_BYTES_MAX`]); what the store fails to give is an error and no finding.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use md5::{Digest, Md5 as Md5Hasher};

use super::findings::{Cinder, Kind};
use crate::backup::{Backup, BlockHashTable, DataObject};
use crate::block::hash_of;
use crate::codec::{Codec, Decoder, decoder};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;
use crate::types::{BlockHash, Md5};

/// Decoded at once, in bytes, unless blocks are larger.
const CHUNK_BYTES: u64 = 1 << 20;

/// Most blocks compared at once: each has a digest in memory, and a hostile block is as small as one byte.
const CHUNK_BLOCKS_MAX: u64 = 4096;

/// How far an object is decoded behind its end, for its md5, in plain bytes; further if it is longer than that itself.
const EXCESS_BYTES_MAX: u64 = 16 << 20;

/// Most ranges of an object that are remembered one by one; more become one that holds them all.
const BAD_RANGES_MAX: usize = 4096;

/// Objects of one backup that may lie over each other at one place, before none of its blocks is compared here: what is not is
/// judged by the image.
const OVERLAPS_MAX: usize = 64;

/// Most bits in which a digest that was hit by chance differs from what it was. Two digests of different bytes differ in
/// about 128 of 256.
const FLIPPED_BITS_MAX: u32 = 24;

/// A backup whose objects are checked.
pub(super) struct Layer {
    pub(super) backup: Arc<Backup>,
    /// Its digests, if they are usable.
    pub(super) digests: Option<BlockHashTable>,
    /// Exact length of the volume, if it is known.
    pub(super) len_bytes: Option<u64>,
    /// Ranges of the volume where objects of this backup lie over each other, by object; empty in backups of Cinder's.
    hidden: HashMap<u32, Vec<Range<u64>>>,
}

/// What is wrong with an object.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) message: String,
    pub(super) cinder: Cinder,
    pub(super) reason: &'static str,
    /// Ranges of the volume, sorted, that a look at the whole image must judge.
    pub(super) bad: Vec<Range<u64>>,
}

/// What one pass over an object tells.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) fault: Option<Fault>,
    /// Ranges of the volume, sorted, that no digest of this backup speaks of, of an object whose md5 is right.
    pub(super) unproven: Vec<Range<u64>>,
}

/// Whether two digests differ as damage to one of them makes them differ.
pub(super) fn is_near(a: &BlockHash, b: &BlockHash) -> bool {
    let bits: u32 = a.0.iter().zip(&b.0).map(|(a, b)| (a ^ b).count_ones()).sum();
    bits <= FLIPPED_BITS_MAX
}

impl Layer {
    pub(super) fn new(backup: Arc<Backup>, digests: Option<BlockHashTable>, len_bytes: Option<u64>) -> Self {
        let hidden = hidden(&backup.objects);
        Self { backup, digests, len_bytes, hidden }
    }

    /// The bytes of the volume that a block holds; `None` for a last block of which that is not known.
    fn block(&self, table: &BlockHashTable, block: u64) -> Option<Range<u64>> {
        let start = block * table.block_bytes();
        let end = start + table.block_bytes();
        match self.len_bytes {
            Some(len) => (start < len).then(|| start..end.min(len)),
            None => (block + 1 < table.count()).then_some(start..end),
        }
    }

    fn is_hidden(&self, object: u32, range: &Range<u64>) -> bool {
        let of_object = self.hidden.get(&object).map_or(&[][..], Vec::as_slice);
        of_object.iter().any(|hidden| hidden.start < range.end && range.start < hidden.end)
    }
}

/// Ranges of objects that lie beneath later ones. Cinder makes none.
fn hidden(objects: &[DataObject]) -> HashMap<u32, Vec<Range<u64>>> {
    let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let range = |index: usize| objects[index].offset..objects[index].offset + objects[index].len_bytes;
    let mut by_offset: Vec<usize> = (0..objects.len()).collect();
    by_offset.sort_by_key(|&index| objects[index].offset);
    let mut hidden: HashMap<u32, Vec<Range<u64>>> = HashMap::new();
    let (mut open, mut count) = (Vec::<usize>::new(), 0);
    for index in by_offset {
        let here = range(index);
        open.retain(|&other| range(other).end > here.start);
        for &other in &open {
            let common = here.start..here.end.min(range(other).end);
            hidden.entry(number(index.min(other))).or_default().push(common);
        }
        open.push(index);
        count += open.len() - 1;
        if open.len() > OVERLAPS_MAX || count > OVERLAPS_MAX << 8 {
            return (0..objects.len()).map(|index| (number(index), vec![range(index)])).collect();
        }
    }
    hidden
}

/// What one pass has found so far.
struct Pass<'a> {
    layer: &'a Layer,
    index: u32,
    /// Blocks whose digest is not that of their bytes.
    differ: Vec<Range<u64>>,
    /// Whether all of them look as if their digest was hit.
    all_near: bool,
    /// Ranges that no digest speaks of.
    unproven: Vec<Range<u64>>,
}

/// How the stream ended.
enum End {
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
    layer: &Layer,
    index: u32,
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
    let mut stream = decoder(object.codec, opened.clone())?;
    let mut pass = Pass { layer, index, differ: Vec::new(), all_near: true, unproven: Vec::new() };
    let mut md5 = Md5Hasher::new();
    let end = pass.run(object, &mut *stream, &mut md5, cancel, tell)?;
    if opened.is_changed()? {
        return Err(Error::new(
            ErrorKind::StoreIo,
            format!("object {name:?} was overwritten while it was read"),
        ));
    }
    let actual = Md5(md5.finalize().into());
    let trailing = stream.stored_end().map_or(0, |end| opened.stat().len_bytes.saturating_sub(end));
    let mut fault = pass.judge(object, end, actual, trailing);
    if let (Some(fault), Codec::Bz2, 0) = (&mut fault, object.codec, opened.stat().len_bytes) {
        (fault.cinder, fault.reason) =
            (Cinder::Wrongly, "its decompressor takes nothing for a stream of nothing");
    }
    Ok(Checked { fault, unproven: pass.unproven })
}

impl Pass<'_> {
    fn run(
        &mut self,
        object: &DataObject,
        stream: &mut dyn Decoder,
        md5: &mut Md5Hasher,
        cancel: &AtomicBool,
        tell: &dyn Fn(u64),
    ) -> Result<End> {
        let chunk = self.chunk_bytes();
        let (mut at, end) = (object.offset, object.offset + object.len_bytes);
        let mut buf = vec![0; usize::try_from(chunk.min(object.len_bytes).max(1)).unwrap_or(1)];
        while at < end {
            check_cancel(cancel)?;
            let until = end.min((at / chunk + 1).saturating_mul(chunk));
            let wanted = &mut buf[..(until - at) as usize];
            let (filled, error) = fill(stream, wanted)?;
            md5.update(&wanted[..filled]);
            self.compare(at, &wanted[..filled])?;
            tell(filled as u64);
            at += filled as u64;
            let plain = at - object.offset;
            match error {
                Some(error) => return Ok(End::Failed(plain, error)),
                None if at < until => return Ok(End::At(plain)),
                None => {}
            }
        }
        let bound = object.len_bytes.saturating_add(object.len_bytes.max(EXCESS_BYTES_MAX));
        let mut plain = object.len_bytes;
        let mut more = vec![0; 64 << 10];
        loop {
            check_cancel(cancel)?;
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

    /// A multiple of the block, so that no block lies across two chunks.
    fn chunk_bytes(&self) -> u64 {
        match &self.layer.digests {
            Some(table) => {
                let block_bytes = table.block_bytes().max(1);
                block_bytes * (CHUNK_BYTES / block_bytes).clamp(1, CHUNK_BLOCKS_MAX)
            }
            None => CHUNK_BYTES,
        }
    }

    /// Compares the blocks that lie wholly in these bytes of the volume.
    fn compare(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let all = at..at + bytes.len() as u64;
        let Some(table) = &self.layer.digests else {
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
            let range = self.layer.block(table, block).filter(|range| *range == part);
            let range = range.filter(|range| !self.layer.is_hidden(self.index, range));
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

    fn judge(&mut self, object: &DataObject, end: End, actual: Md5, trailing: u64) -> Option<Fault> {
        let whole = object.offset..object.offset + object.len_bytes;
        let has_md5 = object.md5 == Some(actual);
        let fault = |kind, message, cinder, reason, bad| Some(Fault { kind, message, cinder, reason, bad });
        let block_bytes = self.layer.digests.as_ref().map_or(1, |table| table.block_bytes().max(1));
        let behind = |plain: u64| {
            let at = (object.offset + plain).min(whole.end);
            // A block of which a part is missing is missing.
            let start = if at < whole.end { (at / block_bytes * block_bytes).max(whole.start) } else { at };
            start..whole.end
        };
        match end {
            End::Failed(plain, error) => {
                let bad = self.bad_with(behind(plain));
                let (kind, cinder, reason) = match error.kind() {
                    ErrorKind::LimitExceeded => {
                        (Kind::ObjectBeyondLimits, Cinder::Unknown, "Cinder has other limits")
                    }
                    _ => (Kind::ObjectDamaged, Cinder::No, "its decompressor refuses the stream"),
                };
                fault(kind, error.to_string(), cinder, reason, bad)
            }
            End::At(plain) if plain < object.len_bytes => {
                let message = format!("its plain bytes end at {plain}, expected {}", object.len_bytes);
                let (cinder, reason) = unnoticed(has_md5);
                fault(Kind::ObjectTooShort, message, cinder, reason, self.bad_with(behind(plain)))
            }
            End::At(plain) if plain > object.len_bytes => {
                let message = format!("it has {plain} plain bytes, expected {}", object.len_bytes);
                let (cinder, reason) = match unnoticed(has_md5) {
                    (Cinder::Wrongly, _) if self.is_behind_the_volume(behind_end(object, plain)) => {
                        (Cinder::No, "it writes behind the end of the volume, which a device refuses")
                    }
                    (Cinder::Wrongly, _)
                        if self.differ.is_empty() && self.is_covered(behind_end(object, plain)) =>
                    {
                        (Cinder::Yes, "the objects behind it overwrite what is too much")
                    }
                    answer => answer,
                };
                let bad = self.bad_without_digests(&whole);
                fault(Kind::ObjectTooLong, message, cinder, reason, bad)
            }
            End::Beyond => {
                let message =
                    format!("it goes on behind the {} plain bytes that it should have", object.len_bytes);
                let bad = self.bad_without_digests(&whole);
                fault(Kind::ObjectTooLong, message, Cinder::Wrongly, WRITES_ALL, bad)
            }
            End::At(_) => self.judge_bytes(object, actual, trailing),
        }
    }

    /// Whether later objects of the backup are written over a range.
    fn is_covered(&self, range: Range<u64>) -> bool {
        let later = self.layer.backup.objects.iter().skip(self.index as usize + 1);
        let mut over: Vec<_> = later.map(|o| o.offset..o.offset + o.len_bytes).collect();
        over.sort_by_key(|over| over.start);
        let reach =
            over.iter().fold(range.start, |at, over| if over.start <= at { at.max(over.end) } else { at });
        reach >= range.end
    }

    fn is_behind_the_volume(&self, range: Range<u64>) -> bool {
        self.layer.len_bytes.is_some_and(|len| range.end > len)
    }

    /// An object of the right length.
    fn judge_bytes(&mut self, object: &DataObject, actual: Md5, trailing: u64) -> Option<Fault> {
        let fault = |kind, message, cinder, reason, bad| Some(Fault { kind, message, cinder, reason, bad });
        let Some(expected) = object.md5 else {
            return match (self.differ.is_empty(), self.unproven.is_empty()) {
                (true, true) => self.judge_rest(object, trailing),
                (true, false) => {
                    let message = "the metadata has no md5 of it, and not all of it has digests".to_owned();
                    let bad = std::mem::take(&mut self.unproven);
                    fault(Kind::ObjectUnproven, message, Cinder::Unknown, "nothing proves its bytes", bad)
                }
                (false, _) => {
                    let message = "its bytes do not have their digests".to_owned();
                    fault(Kind::ObjectWrong, message, Cinder::Wrongly, WRITES_ALL, self.bad_with(0..0))
                }
            };
        };
        let is_md5_right = actual == expected;
        let message = || format!("md5 is {actual}, expected {expected}");
        match (is_md5_right, self.differ.is_empty(), self.unproven.is_empty()) {
            (true, true, _) => self.judge_rest(object, trailing),
            (true, false, _) => {
                let what = if self.all_near { "was hit" } else { "is another one" };
                let message = format!("its md5 is right, but the digest of a block {what}");
                let reason = "it reads no digests, and the md5 is right";
                fault(Kind::DigestWrong, message, Cinder::Yes, reason, self.bad_with(0..0))
            }
            (false, true, true) => {
                let reason = "it compares no md5, and the digests prove the bytes";
                fault(Kind::Md5Wrong, message(), Cinder::Yes, reason, Vec::new())
            }
            (false, true, false) => {
                let bad = std::mem::take(&mut self.unproven);
                fault(Kind::ObjectWrong, message(), Cinder::Wrongly, WRITES_ALL, bad)
            }
            (false, false, _) => {
                fault(Kind::ObjectWrong, message(), Cinder::Wrongly, WRITES_ALL, self.bad_with(0..0))
            }
        }
    }

    /// An object of the right bytes.
    fn judge_rest(&self, object: &DataObject, trailing: u64) -> Option<Fault> {
        if trailing == 0 || object.codec == Codec::None {
            return None;
        }
        let message = format!("{trailing} stored byte(s) follow the end of its stream");
        let (cinder, reason) = match object.codec {
            Codec::Zstd => (Cinder::No, "its decompressor refuses what follows the frame"),
            Codec::Zlib | Codec::Bz2 | Codec::None => (Cinder::Yes, "it ignores them"),
        };
        Some(Fault { kind: Kind::TrailingBytes, message, cinder, reason, bad: Vec::new() })
    }

    /// The blocks that differ, and `more`.
    fn bad_with(&mut self, more: Range<u64>) -> Vec<Range<u64>> {
        let mut bad = std::mem::take(&mut self.differ);
        if !more.is_empty() {
            push(&mut bad, more);
        }
        bad
    }

    /// The blocks that differ; without digests all of it, since an md5 over more bytes proves nothing for a reader.
    fn bad_without_digests(&mut self, whole: &Range<u64>) -> Vec<Range<u64>> {
        match &self.layer.digests {
            None => vec![whole.clone()],
            // Its last block, if the object ends within it: what is wrong there is the length.
            Some(table) => {
                let start = whole.end / table.block_bytes().max(1) * table.block_bytes();
                self.bad_with(start.max(whole.start)..whole.end)
            }
        }
    }
}

/// The bytes of the volume that an object's plain bytes reach into behind its end.
fn behind_end(object: &DataObject, plain: u64) -> Range<u64> {
    object.offset + object.len_bytes..object.offset + plain
}

const WRITES_ALL: &str = "it writes what it decodes, and compares nothing";

/// Cinder's answer to a length that is not the one told, which it does not look at.
fn unnoticed(has_md5: bool) -> (Cinder, &'static str) {
    match has_md5 {
        true => (Cinder::Yes, "it ignores the length, and the md5 is right"),
        false => (Cinder::Wrongly, WRITES_ALL),
    }
}

/// Adds a range that does not begin before the last one's end.
fn push(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
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
