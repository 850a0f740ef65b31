//! Right bytes to a new object or a new digest file, which nobody sees yet.

use std::ops::Range;

use md5::{Digest, Md5 as Md5Hasher};

use super::copies::Wanted;
use crate::backup::{BlockHashTable, DataObject};
use crate::block::hash_of;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::format::points::{Place, PointsWriter};
use crate::format::write::{Sha256FileHead, Sha256FileLayout};
use crate::image::{Image, Part};
use crate::types::{BlockHash, Md5};
use crate::writer::destination::NewFile;
use crate::writer::encode::{Encoder, ObjectAssembler};
use crate::writer::pipeline::POINTS_MAX;

/// How many digests are written at once.
const DIGESTS_AT_ONCE: usize = 3640;

/// Where the bytes of a damaged object come from.
pub(super) struct Origin<'a> {
    pub(super) catalog: &'a Catalog,
    /// Of the backup that the object belongs to: in it nothing hides the object.
    pub(super) image: &'a Image,
    pub(super) table: Option<&'a BlockHashTable>,
    pub(super) wanted: &'a Wanted,
}

/// What came of the bytes of an object.
#[derive(Default)]
pub(super) struct Gathered {
    /// Ranges of the volume that nobody has.
    pub(super) lost: Vec<Range<u64>>,
    /// Blocks that were found by their digest elsewhere.
    pub(super) copied_blocks: u64,
}

impl Origin<'_> {
    /// Gives the plain bytes of an object to `take`, in order. Where bytes are lost it is given nothing, and `Gathered` tells so.
    pub(super) fn read(
        &self,
        object: &DataObject,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Gathered> {
        let mut gathered = Gathered::default();
        let range = object.offset..object.offset + object.len_bytes;
        let mut at = range.start;
        let zeros = vec![0; 64 << 10];
        self.image.visit(range.clone(), &mut |part, what| {
            at = part.end;
            match what {
                Part::Data(bytes) => take(bytes),
                Part::Zeros => {
                    let mut left = (part.end - part.start) as usize;
                    while left > 0 {
                        let some = left.min(zeros.len());
                        take(&zeros[..some])?;
                        left -= some;
                    }
                    Ok(())
                }
                Part::Lost(error) if !self.image.is_lost_for_good(error) => Err(error.clone()),
                Part::Lost(_) => match self.copy(&part)? {
                    Some(bytes) => {
                        gathered.copied_blocks += 1;
                        take(&bytes)
                    }
                    None => {
                        lose(&mut gathered.lost, part);
                        Ok(())
                    }
                },
            }
        })?;
        if at < range.end {
            lose(&mut gathered.lost, at..range.end); // what lies behind the volume's end has no digest
        }
        Ok(gathered)
    }

    /// The bytes of a part that is lost, which lies in one block.
    fn copy(&self, part: &Range<u64>) -> Result<Option<Vec<u8>>> {
        let Some((block, hash)) = self.digest_of(part)? else { return Ok(None) };
        let Some(bytes) = self.wanted.get(self.catalog, &hash) else { return Ok(None) };
        let start = block * self.table.map_or(1, BlockHashTable::block_bytes);
        let within = (part.start - start) as usize..(part.end - start) as usize;
        Ok(bytes.get(within).map(<[u8]>::to_vec))
    }

    /// The block that a part lies in, and its digest, if that is known.
    pub(super) fn digest_of(&self, part: &Range<u64>) -> Result<Option<(u64, BlockHash)>> {
        let Some(table) = self.table else { return Ok(None) };
        let block = part.start / table.block_bytes();
        match table.get(block..block + 1).pop() {
            Some(Ok(hash)) => Ok(Some((block, hash))),
            Some(Err(error)) if error.kind() != ErrorKind::Malformed => Err(error),
            Some(Err(_)) | None => Ok(None),
        }
    }
}

fn lose(lost: &mut Vec<Range<u64>>, part: Range<u64>) {
    match lost.last_mut() {
        Some(last) if last.end == part.start => last.end = part.end,
        _ => lost.push(part),
    }
}

/// Writes the object anew to `file`, compressed as the metadata says; its restart points. [`ErrorKind::HashMismatch`] when what came
/// together does not have the md5 of the metadata.
pub(super) fn object(origin: &Origin<'_>, object: &DataObject, file: &dyn NewFile) -> Result<Rewritten> {
    let encoder = Encoder::new(object.codec, None)?;
    let block_bytes = usize::try_from(origin.image.block_bytes()).unwrap_or(usize::MAX);
    let piece_bytes = encoder.piece_bytes(block_bytes);
    let spacing_bytes = origin.image.len_bytes() / POINTS_MAX;
    let mut assembler = ObjectAssembler::new(&encoder);
    let (mut md5, mut points, mut last_point) = (Md5Hasher::new(), PointsWriter::default(), 0);
    let mut piece: Vec<u8> = Vec::with_capacity(piece_bytes);
    let mut append = |plain: &[u8]| -> Result<()> {
        md5.update(plain);
        let encoded = encoder.encode_piece(plain)?;
        for point in assembler.append(&encoded, |stored| file.append(stored))?.entry_points() {
            if point.plain_offset - last_point >= spacing_bytes {
                let (plain_offset, stored_offset) = (point.plain_offset, point.stored_offset);
                points.push(Place { plain_offset, stored_offset });
                last_point = plain_offset;
            }
        }
        Ok(())
    };
    let gathered = origin.read(object, &mut |mut bytes| {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(piece_bytes - piece.len()));
            piece.extend_from_slice(now);
            bytes = later;
            if piece.len() == piece_bytes {
                append(&piece)?;
                piece.clear();
            }
        }
        Ok(())
    })?;
    if gathered.lost.is_empty() && !piece.is_empty() {
        append(&piece)?;
    }
    if !gathered.lost.is_empty() {
        return Ok(Rewritten { gathered, points: None });
    }
    let finished = assembler.finish(|stored| file.append(stored))?;
    if let Some(patch) = finished.patch {
        file.write_at(&patch.bytes, patch.offset)?;
    }
    let actual = Md5(md5.finalize().into());
    if let Some(expected) = object.md5.filter(|&expected| expected != actual) {
        let message = format!(
            "all blocks are right by their sha256, and the md5 of the whole is {actual}, where the metadata says {expected}"
        );
        return Err(Error::new(ErrorKind::HashMismatch, message));
    }
    Ok(Rewritten { gathered, points: points.finish() })
}

/// An object that was written anew, unless some of it is lost.
pub(super) struct Rewritten {
    pub(super) gathered: Gathered,
    pub(super) points: Option<String>,
}

/// Writes a whole digest file, of digests in order.
pub(super) struct DigestWriter<'a> {
    layout: Sha256FileLayout,
    file: &'a dyn NewFile,
    gathered: Vec<BlockHash>,
    next: u64,
}

impl<'a> DigestWriter<'a> {
    pub(super) fn begin(head: &Sha256FileHead, count: u64, file: &'a dyn NewFile) -> Result<Self> {
        let layout = Sha256FileLayout::new(head, count)?;
        file.write_at(layout.header(), 0)?;
        Ok(Self { layout, file, gathered: Vec::new(), next: 0 })
    }

    pub(super) fn push(&mut self, digest: BlockHash) -> Result<()> {
        self.gathered.push(digest);
        if self.gathered.len() >= DIGESTS_AT_ONCE { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let entries = self.layout.encode_entries(self.next, &self.gathered)?;
        self.file.write_at(&entries, self.layout.entry_offset(self.next))?;
        self.next += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    /// [`ErrorKind::Truncated`] when there were fewer digests than blocks.
    pub(super) fn finish(mut self) -> Result<()> {
        self.flush()?;
        if self.next != self.layout.count() {
            let message = format!("{} digests were made, expected {}", self.next, self.layout.count());
            return Err(Error::new(ErrorKind::Truncated, message));
        }
        self.file.write_at(self.layout.trailer(), self.layout.trailer_offset())
    }
}

/// The digest of each block of a proven image, in order; the ranges that are lost, if any.
pub(super) fn digests_of(
    image: &Image,
    block_bytes: u64,
    take: &mut dyn FnMut(BlockHash) -> Result<()>,
) -> Result<Vec<Range<u64>>> {
    let mut lost = Vec::new();
    let mut block: Vec<u8> = Vec::new();
    let block_bytes = usize::try_from(block_bytes).unwrap_or(usize::MAX);
    image.visit(0..image.len_bytes(), &mut |part, what| {
        let mut left = (part.end - part.start) as usize;
        if let Part::Lost(error) = what {
            if !image.is_lost_for_good(error) {
                return Err(error.clone());
            }
            lose(&mut lost, part.clone());
        }
        let mut bytes = match what {
            Part::Data(bytes) => Some(bytes),
            Part::Zeros | Part::Lost(_) => None,
        };
        while left > 0 {
            let some = left.min(block_bytes - block.len());
            match &mut bytes {
                Some(bytes) => {
                    let (now, later) = bytes.split_at(some);
                    block.extend_from_slice(now);
                    *bytes = later;
                }
                None => block.resize(block.len() + some, 0),
            }
            left -= some;
            if block.len() == block_bytes {
                take(hash_of(&block))?;
                block.clear();
            }
        }
        Ok(())
    })?;
    if !block.is_empty() {
        take(hash_of(&block))?;
    }
    Ok(lost)
}
