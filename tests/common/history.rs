//! Random histories of a volume, and the backups that were made on the way.
//!
//! A [`History`] is what proptest generates and shrinks: small numbers, each of which means something for any value of
//! the others. [`History::build`] makes of it the backups for a store and, beside them, what each image must be.
//!
//! Two kinds of writer take part. A *genuine* one compares the volume with its parent's blocks and stores runs of changed
//! blocks, cut at windows, as Cinder does. A *foreign* one stores extents as they come, at any offset, in any order, over
//! each other; Cinder restores such backups, and the later extent wins.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::ops::RangeInclusive;

use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::painted::{Layer, Painted, paint};
use crate::store_kit::{BackupSpec, Json, Naming, ObjectSpec, Packing, digests_of};

/// A volume's life.
#[derive(Clone, Debug)]
pub(crate) struct History {
    block_bytes: usize,
    len: usize,
    backups: Vec<Step>,
}

/// One backup of it, the first one full.
#[derive(Clone, Debug)]
struct Step {
    /// Which earlier backup it builds on.
    parent: Index,
    edits: Vec<Edit>,
    resize: Resize,
    writer: Writer,
    /// Taken in turn by the objects.
    packings: Vec<Packing>,
    naming: Naming,
    json: Json,
    has_digests: bool,
}

/// Positions are fractions of the volume, in 65536ths.
#[derive(Clone, Debug)]
struct Edit {
    at: u16,
    len: u16,
    aligned: bool,
    fill: Fill,
}

#[derive(Clone, Copy, Debug)]
enum Fill {
    Zeros,
    Byte(u8),
    Text(u8),
    Noise(u64),
}

#[derive(Clone, Copy, Debug)]
enum Resize {
    Keep,
    /// The number of blocks stays.
    WithinLastBlock(u16),
    ShrinkToBorder(u16),
    ShrinkAnywhere(u16),
}

#[derive(Clone, Copy, Debug)]
enum Writer {
    Genuine {
        window_blocks: usize,
    },
    /// Where the extent that tells the end begins, and its place among the others.
    Foreign {
        tail: u16,
        place: Index,
    },
}

/// The backups of a history and their images.
pub(crate) struct Built {
    pub(crate) specs: Vec<BackupSpec>,
    pub(crate) images: Vec<Painted>,
}

/// Histories with blocks of one of these lengths and up to so many bytes and backups.
pub(crate) fn histories(
    block_bytes: &'static [usize],
    len: RangeInclusive<usize>,
    backups_max: usize,
) -> impl Strategy<Value = History> {
    let backups = prop::collection::vec(step(), 1..=backups_max);
    (select(block_bytes), len, backups).prop_map(|(block_bytes, len, backups)| History {
        block_bytes,
        len,
        backups,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let resize = prop_oneof![
        5 => Just(Resize::Keep),
        2 => any::<u16>().prop_map(Resize::WithinLastBlock),
        1 => any::<u16>().prop_map(Resize::ShrinkToBorder),
        1 => any::<u16>().prop_map(Resize::ShrinkAnywhere),
    ];
    let writer = prop_oneof![
        select(&[1, 2, 3, 16, 64, 10_000][..]).prop_map(|window_blocks| Writer::Genuine { window_blocks }),
        (any::<u16>(), any::<Index>()).prop_map(|(tail, place)| Writer::Foreign { tail, place }),
    ];
    let naming = select(&[Naming::New, Naming::Old, Naming::Named, Naming::Bucket][..]);
    let json = select(&[Json::Python3, Json::Python2, Json::Compact][..]);
    let edits = prop::collection::vec(edit(), 0..7);
    let packings = prop::collection::vec(packing(), 1..4);
    let digests = prop::bool::weighted(0.85);
    (any::<Index>(), edits, resize, writer, packings, naming, json, digests).prop_map(
        |(parent, edits, resize, writer, packings, naming, json, has_digests)| Step {
            parent,
            edits,
            resize,
            writer,
            packings,
            naming,
            json,
            has_digests,
        },
    )
}

fn edit() -> impl Strategy<Value = Edit> {
    let fill = prop_oneof![
        2 => Just(Fill::Zeros),
        1 => any::<u8>().prop_map(Fill::Byte),
        2 => any::<u8>().prop_map(Fill::Text),
        3 => any::<u64>().prop_map(Fill::Noise),
    ];
    let len = prop_oneof![2 => 0..2000u16, 2 => 0..20_000u16, 1 => any::<u16>()];
    let at = prop_oneof![3 => any::<u16>(), 1 => 60_000..=u16::MAX];
    (at, len, any::<bool>(), fill).prop_map(|(at, len, aligned, fill)| Edit { at, len, aligned, fill })
}

fn packing() -> impl Strategy<Value = Packing> {
    prop_oneof![
        2 => select(&["none", "off", "no", "NONE"][..]).prop_map(Packing::Plain),
        3 => (0..10u32, prop_oneof![4 => Just(0), 1 => 1..50usize])
            .prop_map(|(level, junk)| Packing::Zlib { level, junk }),
        1 => (1..3u32, 1..4usize).prop_map(|(level, streams)| Packing::Bz2 { level, streams }),
        2 => (select(&[-3, 1, 3, 9][..]), 1..3usize)
            .prop_map(|(level, frames)| Packing::Zstd { level, frames }),
    ]
}

impl Fill {
    fn bytes(self, len: usize) -> Vec<u8> {
        match self {
            Self::Zeros => vec![0; len],
            Self::Byte(byte) => vec![byte; len],
            Self::Text(seed) => {
                let text = b"the quick brown fox jumps over the lazy dog 0123456789 ";
                text.iter().copied().cycle().skip(usize::from(seed)).take(len).collect()
            }
            // SplitMix64.
            Self::Noise(seed) => {
                let mut state = seed;
                let words = std::iter::repeat_with(move || {
                    state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                    z ^ (z >> 31)
                });
                words.flat_map(u64::to_le_bytes).take(len).collect()
            }
        }
    }
}

/// That many 65536ths of a length.
fn part_of(len: usize, share: u16) -> usize {
    (len as u128 * u128::from(share) / 65536) as usize
}

impl Edit {
    /// What it writes into a volume of that length.
    fn extent(&self, len: usize, block_bytes: usize) -> (usize, Vec<u8>) {
        let (mut at, mut end) = (part_of(len, self.at), 0);
        end = (at + part_of(len, self.len)).min(len).max(end);
        if self.aligned {
            at = at / block_bytes * block_bytes;
            end = end.next_multiple_of(block_bytes).min(len);
        }
        (at, self.fill.bytes(end - at))
    }
}

impl Resize {
    fn apply(self, len: usize, block_bytes: usize) -> usize {
        match self {
            Self::WithinLastBlock(share) if len > 0 => {
                (len - 1) / block_bytes * block_bytes + 1 + part_of(block_bytes, share)
            }
            Self::Keep | Self::WithinLastBlock(_) => len,
            Self::ShrinkToBorder(share) => part_of(len, share) / block_bytes * block_bytes,
            Self::ShrinkAnywhere(share) => part_of(len, share),
        }
    }
}

impl History {
    /// All backups and images; `number` tells this history's ids from others'.
    pub(crate) fn build(&self, number: usize) -> Built {
        let volume_id = format!("{number:08x}-aaaa-4aaa-8aaa-000000000000");
        let mut built = Built { specs: Vec::new(), images: Vec::new() };
        let mut layers: Vec<Layer> = Vec::new();
        // The chain of each backup, itself last, and the volume's length then.
        let mut chains: Vec<Vec<usize>> = Vec::new();
        let mut lens: Vec<usize> = Vec::new();
        for (index, step) in self.backups.iter().enumerate() {
            let parent = (index > 0).then(|| step.parent.index(index));
            let mut chain = parent.map_or(Vec::new(), |parent| chains[parent].clone());
            let len = parent.map_or(self.len, |parent| step.resize.apply(lens[parent], self.block_bytes));
            let before = parent.map(|parent| {
                let mut volume = paint(chains[parent].iter().map(|&layer| &layers[layer])).0;
                volume.resize(lens[parent], 0);
                volume
            });
            layers.push(step.layer(before.as_deref(), len, self.block_bytes));
            chain.push(index);
            let (mut bytes, mut painted) = paint(chain.iter().map(|&layer| &layers[layer]));
            if step.has_digests {
                // Digests prove the zeros where nothing was painted, and the length.
                bytes.resize(len, 0);
                painted = vec![true; len];
            }
            let id = |index: usize| format!("{index:04x}{number:04x}-bbbb-4bbb-8bbb-{number:012x}");
            let mut spec = BackupSpec::new(&id(index), &volume_id);
            spec.parent_id = parent.map(id);
            spec.name = (index % 2 == 0).then(|| format!("Sicherung \u{fc}ber \u{1f4be} {index}"));
            spec.created_at = format!("2024-03-{:02} 01:01:07+00:00", 1 + index);
            (spec.naming, spec.json) = (step.naming, step.json);
            let packings = step.packings.iter().cycle();
            let objects = layers[index].iter().zip(packings);
            spec.objects = objects
                .map(|((offset, plain), &packing)| ObjectSpec {
                    offset: *offset,
                    plain: plain.clone(),
                    packing,
                })
                .collect();
            spec.digests = step.has_digests.then(|| (self.block_bytes, digests_of(&bytes, self.block_bytes)));
            built.specs.push(spec);
            built.images.push(Painted {
                id: id(index),
                chain: chain.iter().rev().map(|&layer| id(layer)).collect(),
                unproven: painted.iter().map(|painted| !painted).collect(),
                bytes,
                block_bytes: step.has_digests.then_some(self.block_bytes),
            });
            chains.push(chain);
            lens.push(len);
        }
        built
    }
}

impl Step {
    /// What this backup stores of a volume that becomes `len` bytes long.
    fn layer(&self, before: Option<&[u8]>, len: usize, block_bytes: usize) -> Layer {
        let edits: Layer = self.edits.iter().map(|edit| edit.extent(len, block_bytes)).collect();
        match self.writer {
            Writer::Genuine { window_blocks } => {
                let mut volume = before.unwrap_or_default().to_vec();
                volume.resize(len, 0);
                for (at, bytes) in edits {
                    volume[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                changed_runs(before, &volume, block_bytes, window_blocks)
            }
            Writer::Foreign { tail, place } => {
                let mut layer = edits;
                // Something must tell the end, unless a border between blocks does.
                let shrunk_to_border =
                    before.is_some_and(|before| len < before.len() && len.is_multiple_of(block_bytes));
                let is_known = before.is_some_and(|before| before.len() == len) || shrunk_to_border;
                if !is_known && len > 0 {
                    let start = part_of(len, tail);
                    let bytes = Fill::Noise(len as u64).bytes(len - start);
                    layer.insert(place.index(layer.len() + 1), (start, bytes));
                }
                layer
            }
        }
    }
}

/// Runs of blocks that are not as the parent's digests say, never across a window's border; all blocks without a parent.
fn changed_runs(before: Option<&[u8]>, volume: &[u8], block_bytes: usize, window_blocks: usize) -> Layer {
    let mut layer: Layer = Vec::new();
    let mut run_ends_at = None;
    for (index, block) in volume.chunks(block_bytes).enumerate() {
        let known = before.and_then(|before| before.chunks(block_bytes).nth(index));
        if known == Some(block) {
            continue;
        }
        match layer.last_mut() {
            Some((_, bytes)) if run_ends_at == Some(index) && index % window_blocks != 0 => {
                bytes.extend_from_slice(block);
            }
            _ => layer.push((index * block_bytes, block.to_vec())),
        }
        run_ends_at = Some(index + 1);
    }
    layer
}
