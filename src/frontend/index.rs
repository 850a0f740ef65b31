//! Restart points ahead of the first reader.
//!
//! Problem: the first read deep inside a 2 GB stream decodes all that stands before it, which on the day of a recovery is the
//! wrong day. Idea: the nightly job decodes each object once for its restart points alone, and keeps them. One thread takes one
//! object at a time, so that all cores work; what is known already is not decoded again, so an interrupted run goes on where it
//! stopped.
//!
//! Nothing is verified here: a restart point is a claim, and whoever reads through it checks the bytes.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, StoredObject};
use crate::object::ObjectReader;
use crate::types::ObjectName;

/// How often the observer is told.
const TICK: Duration = Duration::from_millis(100);

/// How far an index run has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Plain bytes whose restart points are known.
    pub done_bytes: u64,
    /// Plain bytes of all objects that need restart points.
    pub total_bytes: u64,
}

/// What a finished index run did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Objects whose restart points are known now.
    pub objects: u64,
    /// Their plain bytes.
    pub plain_bytes: u64,
    /// How many of these were known before.
    pub known_bytes: u64,
    /// Objects that could not be read to their end, with the reason. What was found before is kept.
    pub failed: Vec<(ObjectName, Error)>,
}

/// What all threads of one run share.
struct Work<'a> {
    objects: Mutex<Vec<StoredObject<'a>>>,
    cancel: &'a AtomicBool,
    done_bytes: AtomicU64,
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
    let total_bytes = objects.iter().map(StoredObject::len_bytes).sum();
    let threads = threads.min(objects.len()).max(1);
    let work = Work {
        objects: Mutex::new(objects),
        cancel,
        done_bytes: AtomicU64::new(0),
        report: Mutex::default(),
    };
    let tell = || observer(Progress { done_bytes: work.done_bytes.load(Ordering::Relaxed), total_bytes });
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| work.run())).collect();
        while running.iter().any(|thread| !thread.is_finished()) {
            tell();
            std::thread::park_timeout(TICK);
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

impl Work<'_> {
    fn run(&self) {
        while !self.cancel.load(Ordering::Relaxed) {
            let next = self.objects.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(object) = next else { return };
            let before = self.done_bytes.load(Ordering::Relaxed);
            let explored = object.open().and_then(|reader| {
                let known = reader.known_to();
                let result = self.explore(&reader, object.len_bytes());
                reader.keep_index();
                result.map(|()| known)
            });
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            match explored {
                Ok(known) => {
                    report.objects += 1;
                    report.plain_bytes += object.len_bytes();
                    report.known_bytes += known;
                }
                Err(error) => {
                    tracing::debug!("not indexed to its end from {before}: {error}");
                    report.failed.push((object.name().clone(), error));
                }
            }
        }
    }

    fn explore(&self, reader: &ObjectReader, len_bytes: u64) -> Result<()> {
        let mut at = 0;
        while at < len_bytes && !self.cancel.load(Ordering::Relaxed) {
            let now = reader.explore()?;
            self.done_bytes.fetch_add(now.saturating_sub(at), Ordering::Relaxed);
            at = now;
        }
        Ok(())
    }
}
