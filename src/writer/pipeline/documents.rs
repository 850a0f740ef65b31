//! The two documents of a backup, written while its objects are made.
//!
//! Digests go to their fixed places as they come. Objects are listed in the order of the volume, window by window; those
//! of a window that is done before an earlier one wait, and how many windows may be so far ahead is bounded.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::object::ObjectRecord;
use crate::block::hash_of_zeros;
use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::{METADATA_BYTES_MAX, OBJECTS_MAX};
use crate::format::points::RESTART_POINTS_KEY;
use crate::format::write::{
    ENTRY_BYTES, MetadataHead, MetadataWriter, NewObject, Sha256FileHead, Sha256FileLayout, object_name,
};
use crate::types::BlockHash;
use crate::writer::destination::{Destination, NewFile};
use crate::writer::staging::FileName;

/// How much of a document is gathered before it is written, in bytes.
const WRITE_BYTES: usize = 256 << 10;

/// How many entries of zero blocks are written at once.
const ZERO_ENTRIES: u64 = 4096;

/// `_sha256file`; from any thread, in any order.
pub(super) struct Digests {
    layout: Sha256FileLayout,
    file: Box<dyn NewFile>,
    /// Of a whole block of zeros.
    pub(super) of_zeros: BlockHash,
    /// [`ZERO_ENTRIES`] entries of it, none of them the last.
    zero_entries: Vec<u8>,
}

impl Digests {
    pub(super) fn begin(
        destination: &dyn Destination,
        head: &MetadataHead,
        block_bytes: u64,
        count: u64,
    ) -> Result<Self> {
        let head = Sha256FileHead::of(head, block_bytes);
        let layout = Sha256FileLayout::new(&head, count)?;
        let of_zeros = hash_of_zeros(block_bytes);
        // One more than there are makes none of them the last.
        let zero_entries = Sha256FileLayout::new(&Sha256FileHead::default(), ZERO_ENTRIES + 1)?
            .encode_entries(0, &vec![of_zeros; ZERO_ENTRIES as usize])?;
        let file = destination.create_file(FileName::Digests)?;
        file.write_at(layout.header(), 0)?;
        Ok(Self { layout, file, of_zeros, zero_entries })
    }

    /// The digests of the blocks from `first` on.
    pub(super) fn put(&self, first: u64, digests: &[BlockHash]) -> Result<()> {
        self.file.write_at(&self.layout.encode_entries(first, digests)?, self.layout.entry_offset(first))
    }

    /// `count` whole blocks of zeros from `first` on.
    pub(super) fn put_zeros(&self, mut first: u64, count: u64) -> Result<()> {
        let end = first + count;
        let inner = end.min(self.layout.count() - 1);
        while first < inner {
            let some = ZERO_ENTRIES.min(inner - first);
            let entries = &self.zero_entries[..(some * ENTRY_BYTES) as usize];
            self.file.write_at(entries, self.layout.entry_offset(first))?;
            first += some;
        }
        if first < end { self.put(first, &[self.of_zeros]) } else { Ok(()) }
    }

    pub(super) fn finish(self) -> Result<()> {
        self.file.write_at(self.layout.trailer(), self.layout.trailer_offset())?;
        self.file.finish().map(drop)
    }
}

/// `_metadata`.
pub(super) struct Listing<'a> {
    destination: &'a dyn Destination,
    block_bytes: u64,
    state: Mutex<ListingState<'a>>,
}

struct ListingState<'a> {
    writer: MetadataWriter<'a>,
    file: Box<dyn NewFile>,
    gathered: Vec<u8>,
    objects: u64,
    next_window: u64,
    waiting: BTreeMap<u64, Vec<ObjectRecord>>,
    waiting_objects: u64,
}

impl<'a> Listing<'a> {
    pub(super) fn begin(
        destination: &'a dyn Destination,
        head: &'a MetadataHead,
        block_bytes: u64,
    ) -> Result<Self> {
        let file = destination.create_file(FileName::Metadata)?;
        let mut gathered = Vec::new();
        let writer = MetadataWriter::begin(head, &mut gathered);
        let state = ListingState {
            writer,
            file,
            gathered,
            objects: 0,
            next_window: 0,
            waiting: BTreeMap::new(),
            waiting_objects: 0,
        };
        Ok(Self { destination, block_bytes, state: Mutex::new(state) })
    }

    /// A window is done; returns how many windows from the volume's beginning on are, and how many objects wait for others.
    pub(super) fn put(&self, window: u64, objects: Vec<ObjectRecord>) -> Result<(u64, u64)> {
        let mut state = self.lock();
        state.waiting_objects += objects.len() as u64;
        state.waiting.insert(window, objects);
        loop {
            let next = state.next_window;
            let Some(objects) = state.waiting.remove(&next) else { return Ok((next, state.waiting_objects)) };
            state.waiting_objects -= objects.len() as u64;
            for object in &objects {
                state.list(self.destination.prefix(), object)?;
                self.destination.number_object(object.made_as(self.block_bytes), state.objects)?;
            }
            state.next_window += 1;
        }
    }

    /// How many objects there are.
    pub(super) fn finish(self) -> Result<u64> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let ListingState { writer, file, mut gathered, objects, .. } = state;
        writer.finish(&mut gathered);
        file.append(&gathered)?;
        if file.len_bytes() > METADATA_BYTES_MAX {
            return Err(too_many(objects));
        }
        file.finish()?;
        Ok(objects)
    }

    fn lock(&self) -> MutexGuard<'_, ListingState<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ListingState<'_> {
    fn list(&mut self, prefix: &str, object: &ObjectRecord) -> Result<()> {
        self.objects += 1;
        if self.objects > OBJECTS_MAX || self.file.len_bytes() > METADATA_BYTES_MAX {
            return Err(too_many(self.objects));
        }
        let points = object.points.as_ref().map(|points| (RESTART_POINTS_KEY, Value::from(points.as_str())));
        let entry = NewObject {
            name: &object_name(prefix, self.objects),
            compression: object.codec.name(),
            offset: object.offset,
            len_bytes: object.len_bytes,
            md5: object.md5,
            extra: points.as_slice(),
        };
        self.writer.object(&entry, &mut self.gathered)?;
        if self.gathered.len() >= WRITE_BYTES {
            self.file.append(&self.gathered)?;
            self.gathered.clear();
        }
        Ok(())
    }
}

fn too_many(objects: u64) -> Error {
    let message = format!(
        "the backup would have {objects} objects or more, too many to be read again: make a full backup, or larger objects"
    );
    Error::new(ErrorKind::LimitExceeded, message)
}
