//! The state of a zstd restart point.
//!
//! Problem: libzstd does not let its state out, or in. Idea: a dictionary in zstd's own format (RFC 8878 section 5) is
//! that state: Huffman tree, three tables, three offsets, and bytes that come before the first one. So a decoder goes on
//! inside a frame when it gets such a dictionary, a frame header made up here, and then the frame's own blocks.
//!
//! Layout of a state: tag ([`RAW`] or [`PACKED`]), flags, window descriptor (of RFC 8878 section 3.1.1.1.2), two bytes
//! with the length of the dictionary before its window, then the dictionary; a packed one is four bytes with its length
//! and a zstd frame. One with the tag [`NOTHING`] ends behind its descriptor: where an independent job begins, nothing before it counts.
//! An empty state is the start of a frame.
//!
//! Invariants: what comes from a file is a claim. Nothing is allocated beyond [`WINDOW_BYTES_MAX`] and a little, and what
//! does not fit together is refused; what fits and is wrong gives wrong bytes, which the digests find.

use std::sync::Arc;

use ::zstd::zstd_safe;

use super::block::{ALPHABETS, Known, Tables};
use super::framing::Frame;
use super::fse::Distribution;
use super::sequences::Offsets;

/// Largest window of a frame inside of which points are noted. A point holds the window until it is packed, and a share
/// of it afterwards; Cinder's frames have 2 MiB, those of level 19 have 8 MiB.
pub(super) const WINDOW_BYTES_MAX: u64 = 8 << 20;

/// Most bytes of a dictionary before its window. Magic number and id are 8, a tree at most 128, a table below 64, the offsets 12.
const TABLES_BYTES_MAX: usize = 512;

/// Tags.
const RAW: u8 = 1;
const PACKED: u8 = 2;
const NOTHING: u8 = 3;

/// Bytes before the dictionary or its packed length.
const HEADER_BYTES: usize = 5;

/// Flag: four bytes follow the frame's last block.
const FLAG_CHECKSUM: u8 = 1;

/// What a dictionary begins with; the id that follows it is 0, which no frame asks for.
const DICTIONARY_MAGIC: [u8; 8] = [0x37, 0xA4, 0x30, 0xEC, 0, 0, 0, 0];

/// A Huffman tree for when there was none yet: two symbols of one bit each.
const ANY_TREE: [u8; 2] = [0x80, 0x10];

/// The places of an alphabet in a dictionary, as indices of [`ALPHABETS`].
const DICTIONARY_ORDER: [usize; 3] = [1, 2, 0];

/// How windows are packed: a higher level gains little on bytes with zeros between, and takes its time.
const PACK_LEVEL: i32 = 3;

/// The window that a descriptor stands for.
pub(super) fn window_bytes(descriptor: u8) -> u64 {
    let base = 1 << (10 + (descriptor >> 3));
    base + (base >> 3) * u64::from(descriptor & 7)
}

/// The descriptor of the smallest window that is at least `bytes`.
fn window_descriptor(bytes: u64) -> Option<u8> {
    (0..=u8::MAX).find(|descriptor| window_bytes(*descriptor) >= bytes)
}

/// A state that can be used.
#[derive(Debug)]
pub(super) struct State {
    has_checksum: bool,
    descriptor: u8,
    /// Length of the dictionary before its window.
    tables_bytes: usize,
    dictionary: Vec<u8>,
}

/// The state at a block border inside `frame`, with a window of `window_bytes` bytes that `fill` writes. `None` where it
/// cannot be told.
pub(super) fn write(
    frame: &Frame,
    tables: &Tables,
    offsets: &Offsets,
    window_bytes: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Option<Arc<[u8]>> {
    let usable = 1..=window_bytes as u64;
    let fits = frame.window_bytes <= WINDOW_BYTES_MAX && window_bytes as u64 <= frame.window_bytes;
    if !fits || !tables.are_known() || !offsets.iter().all(|offset| usable.contains(&u64::from(*offset))) {
        return None;
    }
    let mut head = header(RAW, frame.has_checksum, window_descriptor(frame.window_bytes)?, 0).to_vec();
    head.extend_from_slice(&DICTIONARY_MAGIC);
    let tree = tables.tree.as_deref().filter(|tree| !tree.is_empty());
    head.extend_from_slice(tree.unwrap_or(&ANY_TREE));
    for n in DICTIONARY_ORDER {
        head.extend_from_slice(match &tables.codes[n] {
            Known::Described(bytes) => bytes,
            // For one that cannot be written here whoever asks has made sure that it is not used again.
            _ => ALPHABETS[n].predefined,
        });
    }
    offsets.iter().for_each(|offset| head.extend_from_slice(&offset.to_le_bytes()));
    let tables_bytes = head.len() - HEADER_BYTES;
    head[3..HEADER_BYTES].copy_from_slice(&u16::try_from(tables_bytes).ok()?.to_le_bytes());
    // Straight into the memory that the point will hold: two megabytes are worth not copying twice.
    let mut state: Arc<[u8]> = std::iter::repeat_n(0, head.len() + window_bytes).collect();
    let (start, window) = Arc::get_mut(&mut state)?.split_at_mut(head.len());
    start.copy_from_slice(&head);
    fill(window);
    (tables_bytes <= TABLES_BYTES_MAX).then_some(state)
}

/// The state at a block border inside `frame` behind which nothing refers to what is before it. `None` where the window is too large.
pub(super) fn of_nothing(frame: &Frame) -> Option<Arc<[u8]>> {
    let descriptor = window_descriptor(frame.window_bytes)?;
    let [tag, flags, descriptor, ..] = header(NOTHING, frame.has_checksum, descriptor, 0);
    (window_bytes(descriptor) <= WINDOW_BYTES_MAX).then(|| Arc::from([tag, flags, descriptor]))
}

fn header(tag: u8, has_checksum: bool, descriptor: u8, tables_bytes: usize) -> [u8; HEADER_BYTES] {
    let [low, high] = (tables_bytes as u16).to_le_bytes();
    [tag, if has_checksum { FLAG_CHECKSUM } else { 0 }, descriptor, low, high]
}

impl State {
    /// Reads a state that is not empty.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        if let &[NOTHING, flags, descriptor] = bytes {
            let has_checksum = flags & FLAG_CHECKSUM != 0;
            let state = Self { has_checksum, descriptor, tables_bytes: 0, dictionary: Vec::new() };
            return (window_bytes(descriptor) <= WINDOW_BYTES_MAX).then_some(state);
        }
        let (&[tag, flags, descriptor, low, high], rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let tables_bytes = usize::from(u16::from_le_bytes([low, high]));
        let window = window_bytes(descriptor);
        let len_max = window as usize + TABLES_BYTES_MAX;
        if window > WINDOW_BYTES_MAX || tables_bytes > TABLES_BYTES_MAX {
            return None;
        }
        let dictionary = match tag {
            RAW if rest.len() <= len_max => rest.to_vec(),
            PACKED => {
                let (len, frame) = rest.split_first_chunk()?;
                let len = u32::from_le_bytes(*len) as usize;
                if len > len_max {
                    return None;
                }
                // One call, which writes into this memory and needs no window of its own.
                let mut dictionary = Vec::with_capacity(len);
                zstd_safe::decompress(&mut dictionary, frame).ok()?;
                (dictionary.len() == len).then_some(dictionary)?
            }
            _ => return None,
        };
        let is_right = dictionary.starts_with(&DICTIONARY_MAGIC) && tables_bytes <= dictionary.len();
        is_right.then_some(Self {
            has_checksum: flags & FLAG_CHECKSUM != 0,
            descriptor,
            tables_bytes,
            dictionary,
        })
    }

    /// The state in fewer bytes.
    pub(super) fn packed(&self) -> Option<Vec<u8>> {
        let mut frame = Vec::with_capacity(zstd_safe::compress_bound(self.dictionary.len()));
        zstd_safe::compress(&mut frame, &self.dictionary, PACK_LEVEL).ok()?;
        let len = (self.dictionary.len() as u32).to_le_bytes();
        let header = header(PACKED, self.has_checksum, self.descriptor, self.tables_bytes);
        Some([&header[..], &len, &frame].concat())
    }

    /// The header of a frame whose blocks may follow with this dictionary.
    pub(super) fn frame_header(&self) -> [u8; 6] {
        [0x28, 0xB5, 0x2F, 0xFD, 0, self.descriptor]
    }

    /// The dictionary; empty where nothing is to be known.
    pub(super) fn dictionary(&self) -> &[u8] {
        &self.dictionary
    }

    /// The plain bytes before the point.
    pub(super) fn window(&self) -> &[u8] {
        &self.dictionary[self.tables_bytes..]
    }

    /// The plain bytes before the point, to change.
    pub(super) fn window_mut(&mut self) -> &mut [u8] {
        &mut self.dictionary[self.tables_bytes..]
    }

    /// The frame around the point, as far as it is known.
    pub(super) fn frame(&self) -> Frame {
        Frame {
            window_bytes: window_bytes(self.descriptor),
            has_checksum: self.has_checksum,
            ..Frame::default()
        }
    }

    /// Tables and offsets at the point.
    pub(super) fn tables(&self) -> Option<(Tables, Offsets)> {
        let rest = self.dictionary[..self.tables_bytes].get(DICTIONARY_MAGIC.len()..)?;
        let (tree, mut rest) = rest.split_at_checked(super::block::tree_bytes(rest)?)?;
        let mut tables = Tables { tree: Some(tree.to_vec()), ..Tables::at_frame_start() };
        for n in DICTIONARY_ORDER {
            let (described, after) = rest.split_at(Distribution::read(ALPHABETS[n], rest)?.stored_bytes);
            tables.codes[n] = Known::Described(described.to_vec());
            rest = after;
        }
        let mut offsets = [0; 3];
        for offset in &mut offsets {
            let (bytes, after) = rest.split_first_chunk()?;
            *offset = u32::from_le_bytes(*bytes);
            rest = after;
        }
        rest.is_empty().then_some((tables, offsets))
    }
}
