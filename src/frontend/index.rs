//! Restart points ahead of the first reader.
//!
//! Problem: the first read deep inside a 2 GB stream decodes all that stands before it, which on the day of a recovery is the
//! wrong day. Idea: the nightly job decodes each object once for its restart points alone, and keeps them. One thread takes one
//! object at a time, so that all cores work; what is known already is not decoded again, so an interrupted run goes on where it
//! stopped.
//!
//! Nothing is verified here: a restart point is a claim, and whoever reads through it checks the bytes. That points were
//! really kept is not believed either: [`not_kept`] looks at what another process would find.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, StoredObject};
use crate::object::ObjectReader;
use crate::store::ObjectVersion;
use crate::types::ObjectName;

/// How often the observer is told.
const TICK: Duration = Duration::from_millis(100);

/// Written to find out whether a folder takes files, in bytes: as much as the index of an object of 128 MiB.
const TRIAL_BYTES: usize = 64 << 10;

/// How often in a row an object may be decoded further without more being known of it then: points that turn out to be wrong are
/// forgotten, and that may happen some times.
const FRUITLESS_MAX: u32 = 16;

/// How far an index run has come. What was known before is no work and counts on neither side, or each known object would look
/// like a burst of speed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Plain bytes that this run has decoded.
    pub done_bytes: u64,
    /// Plain bytes that this run has to decode. Falls when an object turns out to be known.
    pub total_bytes: u64,
}

/// What a finished index run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Objects whose restart points are known now.
    pub objects: u64,
    /// Their plain bytes.
    pub plain_bytes: u64,
    /// How many of these were known when the object's turn came.
    pub known_bytes: u64,
    /// Of the objects, those that were not wholly known before, each in the version that was read.
    pub decoded: HashMap<ObjectName, ObjectVersion>,
    /// Objects that could not be read to their end, with the reason. What was found before is kept.
    pub failed: Vec<(ObjectName, Error)>,
}

/// What all threads of one run share.
struct Work<'a> {
    objects: Mutex<Vec<StoredObject<'a>>>,
    cancel: &'a AtomicBool,
    /// Of objects that are done with.
    done_bytes: AtomicU64,
    /// Known when an object was opened, or not to be had.
    skipped_bytes: AtomicU64,
    /// At work, each with what was known of it when it was opened.
    active: Mutex<Vec<(Arc<ObjectReader>, u64)>>,
    report: Mutex<Report>,
}

/// Finds the restart points of all objects that `images` read from, on `threads` threads, and tells `observer` how far it is.
///
/// [`ErrorKind::Interrupted`] once `cancel` is true; what was found until then is kept.
pub fn index(
    images: &[&Image],
    threads: usize,
    cancel: &AtomicBool,
    observer: &dyn Fn(Progress),
) -> Result<Report> {
    let mut seen = HashSet::new();
    let mut objects: Vec<StoredObject<'_>> = images.iter().flat_map(|image| image.objects()).collect();
    objects.retain(|object| object.needs_restart_points() && seen.insert(object.name().clone()));
    // The longest first, so that none is left over at the end. Taken from the back.
    objects.sort_by_key(StoredObject::len_bytes);
    let all_bytes: u64 = objects.iter().map(StoredObject::len_bytes).sum();
    let threads = threads.min(objects.len()).max(1);
    let work = Work {
        objects: Mutex::new(objects),
        cancel,
        done_bytes: AtomicU64::new(0),
        skipped_bytes: AtomicU64::new(0),
        active: Mutex::default(),
        report: Mutex::default(),
    };
    let tell = || observer(work.progress(all_bytes));
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run())).collect();
        while running.iter().any(|thread| !thread.is_finished()) {
            // First some time to find out what is known.
            std::thread::park_timeout(TICK);
            tell();
        }
    });
    tell();
    if cancel.load(Ordering::Relaxed) {
        return Err(Error::new(ErrorKind::Interrupted, "interrupted; what was found is kept"));
    }
    let mut report = work.report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.failed.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(report)
}

/// Objects among `names` whose restart points are not wholly known to `images`, which must not be those that they were found
/// through: what those know may be in memory only. [`Report::decoded`] says what to look for.
pub fn not_kept(images: &[&Image], decoded: &HashMap<ObjectName, ObjectVersion>) -> Vec<ObjectName> {
    let mut seen = HashSet::new();
    let objects = images.iter().flat_map(|image| image.objects());
    let mut lost: Vec<_> = objects
        .filter(|object| seen.insert(object.name().clone()))
        // One that cannot be opened any more, or was replaced meanwhile, says nothing of the folder.
        .filter(|object| {
            let Some(version) = decoded.get(object.name()) else { return false };
            object.open().is_ok_and(|now| now.version() == version && now.known_to() < object.len_bytes())
        })
        .map(|object| object.name().clone())
        .collect();
    lost.sort();
    lost
}

/// Tries to write to the folder of the indexes. [`ErrorKind::Target`] when it does not take a small file: full, read-only.
pub fn try_to_write(folder: &Path) -> Result<()> {
    let written = tempfile::tempfile_in(folder).and_then(|mut file| {
        file.write_all(&[1; TRIAL_BYTES])?;
        // Some file systems tell only then.
        file.sync_data()
    });
    let failed = |error| Error::caused_by(ErrorKind::Target, format!("cannot write to {folder:?}"), error);
    written.map_err(failed)
}

impl Work<'_> {
    fn progress(&self, all_bytes: u64) -> Progress {
        // Under the lock an object is either active or counted.
        let active = lock(&self.active);
        let decoded = |(reader, from): &(Arc<ObjectReader>, u64)| reader.known_to().saturating_sub(*from);
        let done_bytes = self.done_bytes.load(Ordering::Relaxed) + active.iter().map(decoded).sum::<u64>();
        let total_bytes = all_bytes.saturating_sub(self.skipped_bytes.load(Ordering::Relaxed));
        Progress { done_bytes: done_bytes.min(total_bytes), total_bytes }
    }

    fn run(&self) {
        while !self.cancel.load(Ordering::Relaxed) {
            let next = lock(&self.objects).pop();
            let Some(object) = next else { return };
            let len_bytes = object.len_bytes();
            let explored = object.open().map_err(|error| (error, 0)).and_then(|reader| {
                let known = reader.known_to();
                if known < len_bytes {
                    reader.read_on(known);
                }
                self.skipped_bytes.fetch_add(known, Ordering::Relaxed);
                lock(&self.active).push((reader.clone(), known));
                let result = self.explore(&reader, len_bytes);
                reader.keep_index();
                let known_now = reader.known_to();
                let mut active = lock(&self.active);
                active.retain(|(other, _)| other.id() != reader.id());
                self.done_bytes.fetch_add(known_now.saturating_sub(known), Ordering::Relaxed);
                result
                    .map(|()| (known, reader.version().clone()))
                    .map_err(|error| (error, known_now.max(known)))
            });
            let mut report = lock(&self.report);
            match explored {
                Ok((known, version)) => {
                    report.objects += 1;
                    report.plain_bytes += len_bytes;
                    report.known_bytes += known;
                    if known < len_bytes {
                        report.decoded.insert(object.name().clone(), version);
                    }
                }
                Err((error, known)) => {
                    // Its rest will not be decoded.
                    self.skipped_bytes.fetch_add(len_bytes.saturating_sub(known), Ordering::Relaxed);
                    tracing::debug!(object = ?object.name(), "not indexed to its end: {error}");
                    report.failed.push((object.name().clone(), error));
                }
            }
        }
    }

    fn explore(&self, reader: &ObjectReader, len_bytes: u64) -> Result<()> {
        let (mut at, mut fruitless) = (reader.known_to(), 0);
        while at < len_bytes && !self.cancel.load(Ordering::Relaxed) {
            let now = reader.explore()?;
            fruitless = if now > at { 0 } else { fruitless + 1 };
            if fruitless > FRUITLESS_MAX {
                let message = format!("its restart points behind {now} cannot be noted");
                return Err(Error::new(ErrorKind::Target, message));
            }
            at = now;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
