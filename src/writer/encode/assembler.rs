//! Pieces, in order, to one object.
//!
//! Idea: whoever writes the object's file is handed byte strings, in order; this only knows what comes before, between and
//! after pieces, and counts. Nothing is kept of a piece but its length and checksum.

use std::sync::Arc;

use super::{EncodedPiece, Encoder, zlib, zstd};
use crate::codec::{Codec, Decoder, decoder};
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectSource;

/// A place in an object at which a decoder may begin that knows nothing of what lies before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryPoint {
    /// Plain offset in the object, in bytes.
    pub plain_offset: u64,
    /// Stored offset in the object, in bytes. zlib: of a block's header, which is at a whole byte here, with an empty window. bz2: of a
    /// stream's head. zstd: of a block's header, with the frame's window and nothing else.
    pub stored_offset: u64,
}

/// Bytes to be written over an object's first ones when it is complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patch {
    /// Stored offset in the object, in bytes.
    pub offset: u64,
    /// The bytes that belong there.
    pub bytes: [u8; 8],
}

/// What became of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FinishedObject {
    /// How it is compressed.
    pub codec: Codec,
    /// Its plain bytes.
    pub plain_bytes: u64,
    /// Its stored bytes.
    pub stored_bytes: u64,
    /// What must still be written over its beginning: zstd's content size, which is known only now. Without it genuine
    /// Cinder restores no more than 128 KiB.
    pub patch: Option<Patch>,
}

impl FinishedObject {
    /// Whether it is to be stored as `none` instead, as Cinder does with what does not get smaller; [`copy_plain`] helps.
    pub fn is_in_vain(&self) -> bool {
        self.codec != Codec::None && self.stored_bytes >= self.plain_bytes
    }
}

/// Where a piece came to lie.
#[derive(Clone)]
pub struct Appended<'a> {
    piece: &'a EncodedPiece,
    plain_offset: u64,
    stored_offset: u64,
}

impl Appended<'_> {
    /// The places in the piece at which a decoder may begin, in order: its start, if not the object's too, and others.
    pub fn entry_points(&self) -> impl Iterator<Item = EntryPoint> {
        let at = |&(plain, stored): &(u32, u32)| EntryPoint {
            plain_offset: self.plain_offset + u64::from(plain),
            stored_offset: self.stored_offset + u64::from(stored),
        };
        self.piece.entries.iter().map(at).filter(|entry| entry.plain_offset > 0)
    }
}

/// Makes one object.
pub struct ObjectAssembler {
    codec: Codec,
    level: u8,
    plain_bytes: u64,
    stored_bytes: u64,
    /// zlib only: of all plain bytes so far.
    adler: u32,
}

impl ObjectAssembler {
    /// An object of pieces that `encoder` makes.
    pub fn new(encoder: &Encoder) -> Self {
        Self {
            codec: encoder.codec,
            level: encoder.level as u8,
            plain_bytes: 0,
            stored_bytes: 0,
            adler: zlib::ADLER_OF_NOTHING,
        }
    }

    /// Plain bytes so far.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Stored bytes so far.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// Appends `piece`. `write` takes the object's next stored bytes; its failure is passed on, and the object is lost then.
    ///
    /// Fails with [`ErrorKind::Usage`] when the piece was made by an encoder for other objects.
    pub fn append<'a>(
        &mut self,
        piece: &'a EncodedPiece,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<Appended<'a>> {
        if (piece.codec, piece.level) != (self.codec, self.level) {
            let message = format!(
                "a piece of {} level {} in an object of {} level {}",
                piece.codec, piece.level, self.codec, self.level
            );
            return Err(Error::new(ErrorKind::Usage, message));
        }
        self.begin(&mut write)?;
        let appended = Appended { piece, plain_offset: self.plain_bytes, stored_offset: self.stored_bytes };
        self.adler = zlib::adler_of_both(self.adler, piece.adler, piece.plain_bytes as u64);
        self.plain_bytes += piece.plain_bytes as u64;
        self.put(piece.stored(), &mut write)?;
        Ok(appended)
    }

    /// Ends the object. Fails as `write` does.
    pub fn finish(mut self, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<FinishedObject> {
        self.begin(&mut write)?;
        let mut patch = None;
        match self.codec {
            Codec::None => {}
            // No stream at all is no bz2 object; one without a block is.
            Codec::Bz2 if self.stored_bytes == 0 => {
                self.put(&[b'B', b'Z', b'h', b'0' + self.level], &mut write)?;
                self.put(&[0x17, 0x72, 0x45, 0x38, 0x50, 0x90, 0, 0, 0, 0], &mut write)?;
            }
            Codec::Bz2 => {}
            Codec::Zlib => {
                self.put(&zlib::LAST_BLOCK, &mut write)?;
                self.put(&self.adler.to_be_bytes(), &mut write)?;
            }
            Codec::Zstd => {
                self.put(&zstd::LAST_BLOCK, &mut write)?;
                let bytes = self.plain_bytes.to_le_bytes();
                patch = Some(Patch { offset: zstd::HEADER.len() as u64, bytes });
            }
        }
        let Self { codec, plain_bytes, stored_bytes, .. } = self;
        Ok(FinishedObject { codec, plain_bytes, stored_bytes, patch })
    }

    /// Writes what comes before the first piece.
    fn begin(&mut self, write: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self.codec {
            Codec::Zlib if self.stored_bytes == 0 => self.put(&zlib::HEADER, write),
            Codec::Zstd if self.stored_bytes == 0 => {
                self.put(&zstd::HEADER, write)?;
                self.put(&[0; 8], write)
            }
            _ => Ok(()),
        }
    }

    fn put(&mut self, bytes: &[u8], write: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.stored_bytes += bytes.len() as u64;
        write(bytes)
    }
}

/// Hands the plain bytes of an object that was assembled in vain to `write`, some at a time: what becomes its file under `none`.
/// `buffer` (not empty) is room for some.
///
/// Fails as the decoder and `write` do, and with [`ErrorKind::Truncated`] when `source` does not hold `finished`.
pub fn copy_plain(
    finished: &FinishedObject,
    source: Arc<dyn ObjectSource>,
    buffer: &mut [u8],
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut decoder: Box<dyn Decoder> = decoder(finished.codec, source)?;
    let mut plain_bytes = 0u64;
    loop {
        match decoder.read(buffer)? {
            0 if plain_bytes == finished.plain_bytes => return Ok(()),
            0 => {
                let wanted = finished.plain_bytes;
                let message = format!("the object holds {plain_bytes} plain bytes, expected {wanted}");
                return Err(Error::new(ErrorKind::Truncated, message));
            }
            read => {
                plain_bytes += read as u64;
                write(&buffer[..read])?;
            }
        }
    }
}
