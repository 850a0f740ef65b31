//! The pieces of one window, put in order.
//!
//! Pieces of a window are made on several threads. Whoever brings one puts all in order that can be, unless another thread
//! is at it; that one takes it along. So nobody waits, and md5 runs on as many cores as there are windows in progress.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::object::{ObjectRecord, ObjectWriter, Objects, Plain};
use crate::error::{Result, ResultExt};
use crate::writer::encode::EncodedPiece;

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

/// A window in progress.
pub(super) struct Window<'a> {
    pub(super) index: u64,
    pub(super) range: Range<u64>,
    queue: Mutex<Queue>,
    order: Mutex<InOrder<'a>>,
}

#[derive(Default)]
struct Queue {
    /// The number of the next piece in order.
    next: u64,
    waiting: BTreeMap<u64, Done>,
    is_busy: bool,
}

/// What comes in order.
struct InOrder<'a> {
    objects: &'a Objects<'a>,
    current: Option<ObjectWriter<'a>>,
    finished: Vec<ObjectRecord>,
}

impl<'a> Window<'a> {
    pub(super) fn new(index: u64, range: Range<u64>, objects: &'a Objects<'a>) -> Self {
        let order = InOrder { objects, current: None, finished: Vec::new() };
        Self { index, range, queue: Mutex::default(), order: Mutex::new(order) }
    }

    /// Takes piece `number`, and puts in order what can be; `on_done` is given each piece that was. Returns how many
    /// pieces there are in order by now, if this thread was the one that saw to it.
    pub(super) fn deliver(
        &self,
        number: u64,
        done: Done,
        mut on_done: impl FnMut(Done),
    ) -> Result<Option<u64>> {
        let mut queue = lock(&self.queue);
        queue.waiting.insert(number, done);
        if queue.is_busy {
            return Ok(None);
        }
        queue.is_busy = true;
        loop {
            let next = queue.next;
            let Some(done) = queue.waiting.remove(&next) else {
                queue.is_busy = false;
                return Ok(Some(next));
            };
            drop(queue);
            // After a failure nobody goes on: `is_busy` stays.
            lock(&self.order).append(&done)?;
            on_done(done);
            queue = lock(&self.queue);
            queue.next += 1;
        }
    }

    /// Ends the last object, when all pieces are there; the window's objects in order.
    pub(super) fn finish(&self) -> Result<Vec<ObjectRecord>> {
        let mut order = lock(&self.order);
        order.end_object()?;
        Ok(std::mem::take(&mut order.finished))
    }
}

impl InOrder<'_> {
    fn append(&mut self, done: &Done) -> Result<()> {
        for run in &done.runs {
            let offset = done.offset + run.range.start;
            if self.current.as_ref().is_some_and(|object| object.end() != offset) {
                self.end_object()?;
            }
            let object = match &mut self.current {
                Some(object) => object,
                none => {
                    let begun = ObjectWriter::begin(self.objects, offset);
                    none.insert(begun.context(|| called(offset))?)
                }
            };
            let begin = object.begin_offset();
            let plain = match done.plain.get(run.range.start as usize..run.range.end as usize) {
                Some(bytes) if !bytes.is_empty() => Plain::Bytes(bytes),
                _ => Plain::Zeros(run.range.end - run.range.start),
            };
            object.append(plain, &run.encoded).context(|| called(begin))?;
        }
        Ok(())
    }

    fn end_object(&mut self) -> Result<()> {
        if let Some(object) = self.current.take() {
            let begin = object.begin_offset();
            self.finished.push(object.finish().context(|| called(begin))?);
        }
        Ok(())
    }
}

/// What to call an object in an error: its place, since its number is only known when all objects before it are there.
fn called(offset: u64) -> String {
    format!("the object that begins at byte {offset} of the volume")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
