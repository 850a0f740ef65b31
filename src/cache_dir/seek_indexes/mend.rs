//! An index without what is wrong in it.
//!
//! Problem: a rotten sector under one state, or one point that led astray, is no reason to decode 2 GB again for the other
//! thousand points. Idea: each state has a digest of its own, so the file is written anew with those that are good. It no longer
//! claims to know what lies behind the first that is not.
//!
//! Invariants: what is wrong does not stay: where the new file cannot be written, the old one is deleted; one state is in memory
//! at a time.

use std::cell::Cell;
use std::io;
use std::sync::{Mutex, PoisonError};

use super::file::{Found, Table};
use super::{SavedPoint, SeekIndexKey, delete_damaged};
use crate::cache_dir::part::Part;
use crate::codec::RestartPoint;
use crate::error::{Error, ErrorKind, Result};

/// Writes the index of `key` anew with the points that `is_good` accepts and whose states are as they were written; leaves it
/// alone when that is all of them. Another process may put another file in its place at this very moment; then one of both
/// is made again some time.
pub(super) fn keep_some(
    part: &Part,
    mending: &Mutex<()>,
    key: &SeekIndexKey,
    is_good: &mut dyn FnMut(&SavedPoint) -> bool,
) {
    let _alone = mending.lock().unwrap_or_else(PoisonError::into_inner);
    match write_good(part, key, is_good) {
        Ok(()) => {}
        Err(error) => {
            tracing::debug!("a seek index with wrong points cannot be mended: {error}");
            delete_damaged(part, key);
        }
    }
}

fn write_good(part: &Part, key: &SeekIndexKey, is_good: &mut dyn FnMut(&SavedPoint) -> bool) -> Result<()> {
    let unreadable = |error| Error::caused_by(ErrorKind::Target, "cannot read it", error);
    let name = key.file_name();
    let (file, metadata) = match part.open_file(&name) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    let table = match Table::read(&file, metadata.len(), key).map_err(unreadable)? {
        Found::Usable(table) => table,
        Found::Foreign => return Ok(()),
        Found::Damaged => return Err(Error::new(ErrorKind::HashMismatch, "its table is damaged")),
    };
    let (known_to, last, dropped) = (Cell::new(table.known_to), Cell::new(0), Cell::new(0));
    let mut points = table.points.iter().zip(&table.states).filter_map(|(point, place)| {
        // A sector that cannot be read is as lost as one that lies.
        let state = is_good(point).then(|| place.read(&file).ok().flatten()).flatten();
        let SavedPoint { plain_offset, stored_bits } = *point;
        if state.is_some() {
            last.set(plain_offset);
        } else {
            known_to.set(known_to.get().min(last.get()));
            dropped.set(dropped.get() + 1);
        }
        state.map(|state| Ok(RestartPoint { plain_offset, stored_bits, state }))
    });
    let temporary = part.create(&name)?;
    let written = Table::write(temporary.file(), key, &known_to, &mut points, metadata.len())?;
    if dropped.get() == 0 {
        return Ok(());
    }
    if written.points.is_empty() {
        return Err(Error::new(ErrorKind::NoData, "nothing of it is good"));
    }
    temporary.publish(&name)?;
    tracing::info!("{} of {} points of the seek index {name} were wrong", dropped.get(), table.points.len());
    Ok(())
}
