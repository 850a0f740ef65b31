//! What a zstd block's headers tell, without decoding it: RFC 8878 section 3.1.1.3.
//!
//! Invariant: a block that is not understood is `None`, never a panic, and then nothing is noted about it; the decoder
//! itself decides whether it is damaged.

use super::fse::{Alphabet, Distribution, LITERAL_LENGTHS, MATCH_LENGTHS, OFFSETS, Table};

/// The alphabets in the order in which a block describes them.
pub(super) static ALPHABETS: [&Alphabet; 3] = [&LITERAL_LENGTHS, &OFFSETS, &MATCH_LENGTHS];

/// How a block says which table an alphabet has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mode<'a> {
    Predefined,
    Single(u8),
    Described(&'a [u8]),
    Repeat,
}

/// The parts of a compressed block.
#[derive(Debug)]
pub(super) struct Body<'a> {
    /// Plain bytes of all literals.
    pub(super) literal_bytes: u32,
    /// The description of a new Huffman tree.
    pub(super) tree: Option<&'a [u8]>,
    /// How many sequences it holds.
    pub(super) sequences: u32,
    /// Their tables; all [`Mode::Repeat`] where there are none.
    pub(super) modes: [Mode<'a>; 3],
    /// Their bits, last byte first.
    pub(super) bits: &'a [u8],
}

/// Bytes of the Huffman tree description at the start of `bytes`.
pub(super) fn tree_bytes(bytes: &[u8]) -> Option<usize> {
    let first = usize::from(*bytes.first()?);
    // Either that many bytes of compressed weights, or four bits for each of (first - 127) weights.
    let len = if first < 128 { 1 + first } else { 1 + (first - 126) / 2 };
    (len <= bytes.len()).then_some(len)
}

impl<'a> Body<'a> {
    /// Reads the headers of a compressed block's content.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let Literals { plain: literal_bytes, tree, rest } = Literals::parse(bytes)?;
        let (first, rest) = rest.split_first()?;
        let (sequences, rest) = match *first {
            255 => {
                let (count, rest) = rest.split_first_chunk()?;
                (u32::from(u16::from_le_bytes(*count)) + 0x7F00, rest)
            }
            128.. => {
                let (low, rest) = rest.split_first()?;
                ((u32::from(*first) - 128) << 8 | u32::from(*low), rest)
            }
            _ => (u32::from(*first), rest),
        };
        let mut body = Self { literal_bytes, tree, sequences, modes: [Mode::Repeat; 3], bits: rest };
        if sequences == 0 {
            return rest.is_empty().then_some(body);
        }
        let (modes, mut rest) = rest.split_first()?;
        for (n, alphabet) in ALPHABETS.into_iter().enumerate() {
            body.modes[n] = match (modes >> (6 - 2 * n)) & 3 {
                0 => Mode::Predefined,
                1 => {
                    let (code, after) = rest.split_first().filter(|(code, _)| alphabet.has(**code))?;
                    rest = after;
                    Mode::Single(*code)
                }
                2 => {
                    let (described, after) = rest.split_at(Distribution::read(alphabet, rest)?.stored_bytes);
                    rest = after;
                    Mode::Described(described)
                }
                _ => Mode::Repeat,
            };
        }
        body.bits = rest;
        Some(body)
    }
}

/// The literals section of a block.
struct Literals<'a> {
    /// How many literals it holds.
    plain: u32,
    tree: Option<&'a [u8]>,
    /// What follows the section.
    rest: &'a [u8],
}

impl<'a> Literals<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut header = [0; 8];
        let have = bytes.len().min(5);
        header[..have].copy_from_slice(&bytes[..have]);
        let header = u64::from_le_bytes(header);
        let format = (header >> 2) & 3;
        let field = |shift: u64, bits: u64| ((header >> shift) & ((1 << bits) - 1)) as usize;
        if header & 3 < 2 {
            // Stored, or one byte repeated.
            let (header_bytes, plain) = match format {
                1 => (2, field(4, 12)),
                3 => (3, field(4, 20)),
                _ => (1, field(3, 5)),
            };
            let stored = if header & 3 == 0 { plain } else { 1 };
            return Some(Self { plain: plain as u32, tree: None, rest: bytes.get(header_bytes + stored..)? });
        }
        let (header_bytes, size_bits) = match format {
            2 => (4, 14),
            3 => (5, 18),
            _ => (3, 10),
        };
        let (plain, stored) = (field(4, size_bits), field(4 + size_bits, size_bits));
        let content = bytes.get(header_bytes..header_bytes + stored)?;
        let tree = match header & 3 {
            2 => Some(&content[..tree_bytes(content)?]),
            _ => None,
        };
        Some(Self { plain: plain as u32, tree, rest: &bytes[header_bytes + stored..] })
    }
}

/// What is known of an alphabet's table at a block border.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Known {
    /// Nothing: the blocks before were not looked at.
    Unknown,
    /// There was none, or it is the predefined one.
    Predefined,
    /// It only knows this code.
    Single(u8),
    /// It was described so.
    Described(Vec<u8>),
}

/// What a block may take over from the ones before it, beside plain bytes and offsets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tables {
    /// The description of the Huffman tree, empty when there was none yet; `None` when that is not known.
    pub(super) tree: Option<Vec<u8>>,
    /// Tables in the order of [`ALPHABETS`].
    pub(super) codes: [Known; 3],
}

impl Tables {
    /// At the start of a frame.
    pub(super) fn at_frame_start() -> Self {
        Self { tree: Some(Vec::new()), codes: [const { Known::Predefined }; 3] }
    }

    /// In the middle of a frame.
    pub(super) fn unknown() -> Self {
        Self { tree: None, codes: [const { Known::Unknown }; 3] }
    }

    /// After a block.
    pub(super) fn update(&mut self, body: &Body<'_>) {
        if let Some(tree) = body.tree {
            self.tree = Some(tree.to_vec());
        }
        for (known, mode) in self.codes.iter_mut().zip(body.modes) {
            match mode {
                Mode::Predefined => *known = Known::Predefined,
                Mode::Single(code) => *known = Known::Single(code),
                Mode::Described(description) => *known = Known::Described(description.to_vec()),
                Mode::Repeat => {}
            }
        }
    }

    /// Whether all of them are known.
    pub(super) fn are_known(&self) -> bool {
        self.tree.is_some() && !self.codes.contains(&Known::Unknown)
    }

    /// The decoding tables of the alphabets; `None` when one is not known.
    pub(super) fn decoding(&self) -> Option<[Table; 3]> {
        let [lengths, offsets, matches] = [0, 1, 2].map(|n| {
            let alphabet = ALPHABETS[n];
            let described = |bytes| Some(Table::new(alphabet, &Distribution::read(alphabet, bytes)?));
            match &self.codes[n] {
                Known::Unknown => None,
                Known::Predefined => described(alphabet.predefined),
                Known::Single(code) => alphabet.has(*code).then(|| Table::single(alphabet, *code)),
                Known::Described(bytes) => described(bytes),
            }
        });
        Some([lengths?, offsets?, matches?])
    }
}
