//! What is stored of one window, put in order: runs that touch become one object.
//!
//! Zeros are free: their md5 and their stored bytes come from memory, as long as nothing but zeros lies before them in their
//! object. So an object ends where a long stretch of zeros begins, and the zeros begin the next one; volumes that are mostly
//! empty would else be hashed whole. A window that is all zeros is one object, and all such objects are one file with
//! many names, where the file system knows that.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::md5::{self, Md5State};
use super::object::{ObjectRecord, ObjectWriter, Objects, ZEROS, update_with_zeros};
use crate::error::Result;
use crate::writer::encode::EncodedPiece;

/// How many zeros behind data end an object, in bytes. Fewer are hashed, in 20 ms at most; and a window gets no more
/// objects than one for each so many bytes, and one. (Zeros are hashed as they come, before it is known whether they stay.)
const CUT_BYTES: u64 = 16 << 20;

/// Runs from so many bytes on are worth waiting for others, to be hashed side by side.
const LARGE_RUN_BYTES: u64 = 64 << 10;

/// What of a piece is to be stored.
pub(super) struct Done {
    /// Where the piece begins in the volume.
    pub(super) offset: u64,
    /// Its bytes; empty when they are zeros, or when nothing of them is stored.
    pub(super) plain: Vec<u8>,
    /// What is stored: ranges of the piece, in order, apart from each other.
    pub(super) runs: Vec<Run>,
}

pub(super) struct Run {
    /// In the piece.
    pub(super) range: Range<u64>,
    pub(super) encoded: Vec<EncodedPiece>,
}

impl Done {
    /// Whether its last run takes long to hash.
    pub(super) fn is_large(&self) -> bool {
        let Some(Run { range, .. }) = self.runs.last() else { return false };
        let len_bytes = range.end - range.start;
        len_bytes >= LARGE_RUN_BYTES && (!self.plain.is_empty() || len_bytes <= ZEROS.len() as u64)
    }
}

/// A window in progress.
pub(super) struct Window<'a> {
    pub(super) index: u64,
    pub(super) range: Range<u64>,
    order: Mutex<InOrder<'a>>,
}

/// What comes in order.
struct InOrder<'a> {
    objects: &'a Objects<'a>,
    window_bytes: u64,
    current: Option<ObjectWriter<'a>>,
    /// Zeros behind the current object's data, less than [`CUT_BYTES`], of which is not known yet whether they belong to it.
    held: Vec<EncodedPiece>,
    held_bytes: u64,
    /// The md5 without them; they were added to the object's.
    md5_before_held: Option<Md5State>,
    finished: Vec<ObjectRecord>,
}

impl<'a> Window<'a> {
    pub(super) fn new(index: u64, range: Range<u64>, objects: &'a Objects<'a>) -> Self {
        let order = InOrder {
            objects,
            window_bytes: range.end - range.start,
            current: None,
            held: Vec::new(),
            held_bytes: 0,
            md5_before_held: None,
            finished: Vec::new(),
        };
        Self { index, range, order: Mutex::new(order) }
    }

    /// Ends the last object, when all pieces are there; the window's objects in order.
    pub(super) fn finish(&self) -> Result<Vec<ObjectRecord>> {
        let mut order = lock(&self.order);
        order.end_object()?;
        Ok(std::mem::take(&mut order.finished))
    }
}

/// Puts one piece in order in each of these windows, all of them different.
pub(super) fn append_all(batch: &[(Arc<Window<'_>>, Done)]) -> Result<()> {
    let mut orders: Vec<_> = batch.iter().map(|(window, _)| lock(&window.order)).collect();
    let mut to_hash = Vec::new();
    for (order, (_, done)) in orders.iter_mut().zip(batch) {
        let last = order.append(done)?;
        if let (Some(bytes), Some(object)) = (last, &mut order.current) {
            to_hash.push((object.md5(), bytes));
        }
    }
    md5::update_all(to_hash);
    Ok(())
}

impl<'a> InOrder<'a> {
    /// Appends a piece. Its last bytes, if it has any, are to be hashed by the caller.
    fn append<'d>(&mut self, done: &'d Done) -> Result<Option<&'d [u8]>> {
        let mut to_hash = None;
        for run in &done.runs {
            if let (Some(bytes), Some(object)) = (to_hash.take(), &mut self.current) {
                object.md5().update(bytes);
            }
            let offset = done.offset + run.range.start;
            let end = self.current.as_ref().map(|object| object.end() + self.held_bytes);
            if end.is_some_and(|end| end != offset) {
                self.end_object()?;
            }
            match done.plain.get(run.range.start as usize..run.range.end as usize) {
                Some(bytes) if !bytes.is_empty() => {
                    self.add_held()?;
                    self.object(offset)?.append_data(&run.encoded)?;
                    to_hash = Some(bytes);
                }
                _ => to_hash = self.append_zeros(offset, run)?,
            }
        }
        Ok(to_hash)
    }

    /// The same for a run of zeros.
    fn append_zeros(&mut self, offset: u64, run: &Run) -> Result<Option<&'static [u8]>> {
        let len_bytes = run.range.end - run.range.start;
        if len_bytes == self.window_bytes {
            self.finished.push(self.objects.zeros(offset, len_bytes, &run.encoded)?);
            return Ok(None);
        }
        let object = self.object(offset)?;
        if object.is_zeros() {
            object.append_zeros(&run.encoded)?;
            return Ok(None);
        }
        self.held.extend_from_slice(&run.encoded);
        self.held_bytes += len_bytes;
        if self.held_bytes >= CUT_BYTES {
            let (held, held_bytes) = (std::mem::take(&mut self.held), std::mem::take(&mut self.held_bytes));
            if let (Some(md5), Some(object)) = (self.md5_before_held.take(), &mut self.current) {
                *object.md5() = md5;
            }
            self.end_object()?;
            self.object(offset + len_bytes - held_bytes)?.append_zeros(&held)?;
            return Ok(None);
        }
        let Some(object) = &mut self.current else { return Ok(None) };
        let md5 = object.md5();
        self.md5_before_held.get_or_insert_with(|| md5.clone());
        match ZEROS.get(..len_bytes as usize) {
            Some(zeros) => Ok(Some(zeros)),
            None => {
                update_with_zeros(md5, len_bytes);
                Ok(None)
            }
        }
    }

    /// Zeros between data belong to the object.
    fn add_held(&mut self) -> Result<()> {
        let (held, held_bytes) = (std::mem::take(&mut self.held), std::mem::take(&mut self.held_bytes));
        self.md5_before_held = None;
        match &mut self.current {
            Some(object) if held_bytes > 0 => object.append_zeros(&held),
            _ => Ok(()),
        }
    }

    /// The current object, or a new one at `offset`.
    fn object(&mut self, offset: u64) -> Result<&mut ObjectWriter<'a>> {
        Ok(match &mut self.current {
            Some(object) => object,
            none => none.insert(ObjectWriter::begin(self.objects, offset)?),
        })
    }

    fn end_object(&mut self) -> Result<()> {
        self.add_held()?;
        if let Some(object) = self.current.take() {
            let is_whole = object.is_zeros() && object.len_bytes() == self.window_bytes;
            self.finished.push(if is_whole { self.objects.end_zeros(object)? } else { object.finish()? });
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
