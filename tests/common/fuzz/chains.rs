//! From several backups to one map, against naive models.

use std::collections::HashMap;

use cinderfs::chain::extent_map::{Extent, ExtentMap, ObjectIndex, Piece};
use cinderfs::chain::length::{image_len, possible_lens};
use cinderfs::chain::resolve::{Link, resolve_all};
use cinderfs::types::{BackupId, VolumeId};
use cinderfs::{Error, ErrorKind};

use super::Input;

/// Longest image that is painted byte by byte.
const IMAGE_BYTES_MAX: usize = 2000;

/// The map says of each byte what painting says; lengths stay within what the digests allow.
pub(super) fn extents(data: &[u8]) {
    let mut input = Input::new(data);
    let len = input.below(IMAGE_BYTES_MAX);
    let mut painted: Vec<Option<(ObjectIndex, u64)>> = vec![None; len];
    let mut extents = Vec::new();
    while !input.is_empty() && extents.len() < 300 {
        let (layer, object) = (u32::from(input.byte() % 8), extents.len() as u32);
        let object = ObjectIndex { layer, object };
        let (start, bytes, object_offset) = (input.below(len + 50), input.below(400), input.number(1));
        extents.push(Extent { start: start as u64, len: bytes as u64, object, object_offset });
        let end = (start + bytes).min(len);
        for (n, byte) in painted.iter_mut().take(end).skip(start).enumerate() {
            *byte = Some((object, object_offset + n as u64));
        }
    }
    let map = ExtentMap::paint(extents.iter().copied(), len as u64);
    let of_map = |range: std::ops::Range<u64>| {
        let mut bytes = Vec::new();
        for piece in map.pieces(range) {
            match piece {
                Piece::Data { image, object, object_offset } => bytes.extend(
                    (0..image.end - image.start)
                        .map(|n| (image.start + n, Some((object, object_offset + n)))),
                ),
                Piece::Gap(image) => bytes.extend(image.map(|at| (at, None))),
            }
        }
        bytes
    };
    let from = Input::new(data).below(len + 10) as u64;
    for range in [0..u64::MAX, from..from + 100, from..from] {
        let here =
            (range.start.min(len as u64)..range.end.min(len as u64)).map(|at| (at, painted[at as usize]));
        assert!(of_map(range.clone()).into_iter().eq(here), "{range:?}");
    }
    let joins = |two: &[Extent]| {
        two[0].end() == two[1].start
            && two[0].object == two[1].object
            && two[0].object_offset + two[0].len == two[1].object_offset
    };
    assert!(map.extents().iter().all(|extent| extent.len > 0 && extent.end() <= len as u64));
    assert!(map.extents().windows(2).all(|two| two[0].end() <= two[1].start && !joins(two)));
    lengths(&mut Input::new(data));
}

fn lengths(input: &mut Input<'_>) {
    let digests = (!input.byte().is_multiple_of(4)).then(|| (input.any_size(), input.any_size().max(1)));
    let size = (input.byte() & 1 > 0).then(|| input.any_size());
    let layers: Vec<Vec<_>> = (0..1 + input.below(4))
        .map(|_| {
            let extents = (0..input.below(4)).map(|_| {
                let start = input.any_size().min(i64::MAX as u64);
                start..start.saturating_add(input.any_size()).min(i64::MAX as u64)
            });
            extents.collect()
        })
        .collect();
    let result = image_len(layers.len(), |layer| layers[layer].iter().cloned(), digests, size);
    let Some((count, block_bytes)) = digests else { return };
    let possible = possible_lens(layers.iter().flatten().cloned(), count, block_bytes);
    if let Ok(len) = result {
        let end = count.checked_mul(block_bytes).unwrap();
        assert!(
            len <= end && (len > end - block_bytes.min(end) || len == 0),
            "{len} of {count} {block_bytes}"
        );
        assert!(possible.iter().all(|&possible| possible <= end && possible > end - block_bytes));
    }
}

/// A backup has a chain if walking up from it, step by step, comes to a full backup.
pub(super) fn links(data: &[u8]) {
    let mut input = Input::new(data);
    let id = |n: usize| BackupId::parse(&format!("b{n}")).unwrap();
    let count = 1 + input.below(40);
    let (mut links, mut unreadable) = (HashMap::new(), HashMap::new());
    for n in 0..count {
        let what = input.byte();
        let parent = input.below(count + 2);
        if what.is_multiple_of(16) {
            unreadable.insert(id(n), (what > 127).then(|| Error::new(ErrorKind::Malformed, "unreadable")));
            continue;
        }
        let link = Link {
            volume_id: VolumeId::parse(if what % 16 == 1 { "v1" } else { "v0" }).unwrap(),
            parent_id: (what % 16 > 4).then(|| id(parent)),
            problem: (what % 16 == 2).then(|| Error::new(ErrorKind::Malformed, "problem")),
        };
        links.insert(id(n), link);
    }
    let resolved = resolve_all(&links, &unreadable, None);
    assert_eq!(resolved.len(), links.len());
    for (id, result) in resolved {
        assert_eq!(result.as_ref().ok().copied(), depth(&links, &id), "{id}: {result:?}");
        if let Err(error) = result {
            let message = error.to_string();
            assert!(!message.contains('\n') && message.len() < 1000, "{message}");
        }
    }
}

fn depth(links: &HashMap<BackupId, Link>, id: &BackupId) -> Option<u32> {
    let (mut at, volume) = (id, &links.get(id)?.volume_id);
    for depth in 1..=links.len() as u32 {
        let link = links.get(at)?;
        if link.problem.is_some() || link.volume_id != *volume {
            return None;
        }
        match &link.parent_id {
            None => return Some(depth),
            Some(parent) => at = parent,
        }
    }
    None
}
