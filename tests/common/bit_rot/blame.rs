//! Which bytes a flipped bit may cost, from the model alone.

use std::ops::Range;

use serde_json::Value;

use super::model::{Backup, Kind, Store};
use super::plain;

/// One bit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flip {
    /// Index in [`Store::files`].
    pub(crate) file: usize,
    pub(crate) byte: usize,
    /// 0 to 7.
    pub(crate) bit: u8,
}

/// What a flip may cost one image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blame {
    /// Whole blocks, in bytes, sorted and disjoint; nothing else may be lost.
    pub(crate) may_lose: Vec<Range<u64>>,
    /// There may be no image.
    pub(crate) may_be_unusable: bool,
    /// There must not be one.
    pub(crate) is_unusable: bool,
    pub(crate) excuse: Excuse,
}

/// How a block that is blamed may be served all the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Excuse {
    /// A decoder may find its way again behind the damage, or the document may be read in another way.
    #[default]
    Any,
    /// Only where an equal block is, in this image or in another one.
    Copy,
    /// By nothing.
    None,
}

impl Blame {
    fn all(backup: &Backup) -> Self {
        let whole = 0..backup.image.len() as u64;
        Self { may_lose: vec![whole], may_be_unusable: true, ..Self::default() }
    }
}

/// What the flip may cost, and why it is harmless where it costs nothing.
pub(crate) struct Verdict {
    /// One for each backup of the store.
    pub(crate) blames: Vec<Blame>,
    pub(crate) harmless: Option<&'static str>,
}

pub(crate) fn judge(store: &Store, flip: Flip) -> Verdict {
    let file = &store.files[flip.file];
    let mut changed = file.bytes.to_vec();
    changed[flip.byte] ^= 1 << flip.bit;
    match file.kind {
        Kind::Object => object(store, flip, &changed),
        Kind::Digests => digests(store, flip, &changed),
        Kind::Metadata => metadata(store, flip, &changed),
    }
}

fn object(store: &Store, flip: Flip, changed: &[u8]) -> Verdict {
    let owner = store.files[flip.file].backup;
    let objects = &store.backups[owner].objects;
    let number = objects.iter().position(|object| object.file == flip.file);
    let Some(number) = number else {
        return Verdict {
            blames: none(store),
            harmless: Some("an object that no metadata names (Cinder up to 10.0.2 left such)"),
        };
    };
    let object = &objects[number];
    let found = plain::decode(&object.compression, changed, object.plain.len());
    let excuse = if object.compression == "none" { Excuse::Copy } else { Excuse::Any };
    let in_image = |backup| Blame { excuse, ..in_image(backup, (owner, number), &object.plain, &found) };
    let blames: Vec<_> = store.backups.iter().map(in_image).collect();
    let harmless = if found == object.plain {
        "a bit of a stream that no plain byte depends on"
    } else {
        "bytes that no image shows, or zeros, which the digest tells"
    };
    let is_harmless = blames.iter().all(|blame| blame.may_lose.is_empty());
    Verdict { blames, harmless: is_harmless.then_some(harmless) }
}

/// The blocks of an image that depend on what is different in an object.
fn in_image(backup: &Backup, object: (usize, usize), plain: &[u8], found: &[u8]) -> Blame {
    let mut lost: Vec<Range<u64>> = Vec::new();
    for (range, layer, number, from) in &backup.pieces {
        if (*layer, *number) != object {
            continue;
        }
        let mut at = range.start;
        while at < range.end {
            let block = backup.blocks(&(at..at + 1));
            let until = block.end.min(range.end);
            let inside = (from + at - range.start) as usize..(from + until - range.start) as usize;
            let is_same = found.get(inside.clone()) == Some(&plain[inside]);
            if !is_same && !backup.is_zeros(&block) {
                add(&mut lost, block);
            }
            at = until;
        }
    }
    Blame { may_lose: lost, ..Blame::default() }
}

fn add(ranges: &mut Vec<Range<u64>>, block: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end >= block.start => last.end = last.end.max(block.end),
        _ => ranges.push(block),
    }
}

fn none(store: &Store) -> Vec<Blame> {
    vec![Blame::default(); store.backups.len()]
}

/// Only the image of the backup that the digests belong to asks for them.
fn digests(store: &Store, flip: Flip, changed: &[u8]) -> Verdict {
    let owner = store.files[flip.file].backup;
    let (backup, bytes) = (&store.backups[owner], &store.files[flip.file].bytes);
    let mut blames = none(store);
    let (start, end) = line_around(bytes, flip.byte);
    let first = first_digest_line(bytes, &backup.digests[0]);
    let line = bytes[..start].iter().filter(|&&byte| byte == b'\n').count();
    // One digest a line, whatever the indentation and the separators.
    let block = line.checked_sub(first).filter(|block| *block < backup.digests.len()).map(|block| {
        let digest = backup.digests[block].as_bytes();
        let at = bytes[start..end].windows(digest.len()).position(|window| window == digest).unwrap();
        (block, start + at..start + at + digest.len())
    });
    if let Some((block, digits)) = block {
        if digits.contains(&flip.byte) {
            let at = block as u64 * backup.block_bytes;
            blames[owner] = Blame {
                may_lose: vec![backup.blocks(&(at..at + 1))],
                excuse: Excuse::None,
                ..Blame::default()
            };
            return Verdict { blames, harmless: None };
        }
        // Between two digests: a document that is torn there says nothing, and each block is proven by md5, or lost.
        let at = block as u64 * backup.block_bytes;
        let beside = at.saturating_sub(backup.block_bytes)..at + 2 * backup.block_bytes;
        let beside = beside.start..beside.end.min(backup.image.len() as u64);
        blames[owner] = Blame { may_lose: vec![backup.blocks(&beside)], ..Blame::default() };
        return Verdict { blames, harmless: None };
    }
    let before: Value = serde_json::from_slice(bytes).unwrap();
    let needed = ["backup_id", "chunk_size", "sha256s", "version", "volume_id"];
    let after = serde_json::from_slice::<Value>(changed).ok();
    let harmless = after.and_then(|after| harmless_difference(&before, &after, &needed));
    blames[owner] = if harmless.is_some() { Blame::default() } else { Blame::all(backup) };
    Verdict { blames, harmless }
}

fn line_around(bytes: &[u8], at: usize) -> (usize, usize) {
    let start = bytes[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
    let end = bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |newline| at + newline);
    (start, end)
}

fn first_digest_line(bytes: &[u8], digest: &str) -> usize {
    let at = bytes.windows(digest.len()).position(|window| window == digest.as_bytes()).unwrap();
    bytes[..at].iter().filter(|&&byte| byte == b'\n').count()
}

/// Why the two documents say the same of all that matters, which are the `needed` keys.
fn harmless_difference(before: &Value, after: &Value, needed: &[&str]) -> Option<&'static str> {
    if before == after {
        return Some("white space, or another spelling of the same text");
    }
    let is_same = needed.iter().all(|key| before.get(key) == after.get(key));
    is_same.then_some("a field that no byte depends on")
}

/// Every image whose chain holds the backup.
fn metadata(store: &Store, flip: Flip, changed: &[u8]) -> Verdict {
    let owner = store.files[flip.file].backup;
    let bytes = &store.files[flip.file].bytes;
    let mut blames = none(store);
    let touched = || (0..store.backups.len()).filter(|&index| store.backups[index].chain.contains(&owner));
    let Ok(after) = serde_json::from_slice::<Value>(changed) else {
        for index in touched() {
            blames[index] = Blame { is_unusable: true, ..Blame::all(&store.backups[index]) };
        }
        return Verdict { blames, harmless: None };
    };
    let before: Value = serde_json::from_slice(bytes).unwrap();
    let needed = ["backup_id", "parent_id", "version", "volume_id", "objects"];
    let mut harmless = harmless_difference(&before, &after, &needed);
    if harmless.is_none() {
        let (_, but_objects) = needed.split_last().unwrap();
        match harmless_difference(&before, &after, but_objects)
            .and_then(|_| entries_blamed(&before["objects"], &after["objects"]))
        {
            Some(extents) if extents.is_empty() => harmless = Some("an md5 beside better digests"),
            Some(extents) => {
                for index in touched() {
                    let backup = &store.backups[index];
                    let len = backup.image.len() as u64;
                    let clipped = extents.iter().map(|range| range.start.min(len)..range.end.min(len));
                    let blocks = clipped.filter(|range| range.start < range.end);
                    let mut may_lose: Vec<_> = blocks.map(|range| backup.blocks(&range)).collect();
                    may_lose.sort_by_key(|range| range.start);
                    blames[index] = Blame { may_lose, may_be_unusable: true, ..Blame::default() };
                }
            }
            None => touched().for_each(|index| blames[index] = Blame::all(&store.backups[index])),
        }
    }
    Verdict { blames, harmless }
}

/// The extents of the entries that differ in more than their md5, before and after; `None` when the list itself differs.
fn entries_blamed(before: &Value, after: &Value) -> Option<Vec<Range<u64>>> {
    let (before, after) = (before.as_array()?, after.as_array()?);
    if before.len() != after.len() {
        return None;
    }
    let mut blamed = Vec::new();
    for (before, after) in before.iter().zip(after) {
        let ((name, old), (new_name, new)) =
            (before.as_object()?.iter().next()?, after.as_object()?.iter().next()?);
        let mut expected = old.clone();
        expected["md5"] = new.get("md5").cloned().unwrap_or_default();
        if (name, &expected) != (new_name, new) {
            blamed.push(extent(old)?);
            blamed.extend(extent(new));
        }
    }
    Some(blamed)
}

fn extent(entry: &Value) -> Option<Range<u64>> {
    let (offset, length) = (entry.get("offset")?.as_u64()?, entry.get("length")?.as_u64()?);
    Some(offset..offset.saturating_add(length))
}
