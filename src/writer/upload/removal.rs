//! Objects of a backup taken out again, the metadata first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lock;
use super::marker::Marker;
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::{METADATA_SUFFIX, SHA256FILE_SUFFIX};
use crate::store::objects::{ObjectStore, Stop};
use crate::types::ObjectName;
use crate::writer::delete::files::is_numbered;

/// Objects that are removed at once.
const THREADS: usize = 8;

/// How long a run that failed tries to take back what it had written; the next run goes on.
const TAKE_BACK_MAX: Duration = Duration::from_secs(120);

/// Takes back what was written of a backup, and the marker when nothing is left.
pub(super) fn take_back(
    store: &Arc<dyn ObjectStore>,
    folder: &str,
    prefix: &str,
    told: &[ObjectName],
    marker: &Marker,
) -> Result<()> {
    let end = Instant::now() + TAKE_BACK_MAX;
    let stop = || Instant::now() > end;
    let whole_prefix = format!("{folder}{prefix}");
    for suffix in [METADATA_SUFFIX, SHA256FILE_SUFFIX] {
        store.remove(&ObjectName::parse(&format!("{whole_prefix}{suffix}"))?, &stop)?;
    }
    remove_all(&**store, told, &stop)?;
    // What a request that was broken off has written all the same; nothing that this run has no name for.
    let is_ours = |name: &ObjectName| {
        let suffix = name.as_str().strip_prefix(&whole_prefix).unwrap_or_default();
        is_numbered(suffix) || [METADATA_SUFFIX, SHA256FILE_SUFFIX].contains(&suffix)
    };
    let listed = store.list_below(&whole_prefix, &stop)?.into_iter().map(|listed| listed.name);
    let left: Vec<_> = listed.filter(is_ours).collect();
    remove_all(&**store, &left, &stop)?;
    store.remove(marker.name(), &stop)
}

/// Removes objects, several at once; the first failure ends it.
pub(super) fn remove_all(store: &dyn ObjectStore, names: &[ObjectName], stop: Stop<'_>) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<Error>> = Mutex::default();
    let work = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = match stop() {
                true => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
                false => store.remove(name, stop),
            };
            if let Err(error) = outcome {
                lock(&failure).get_or_insert(error);
                next.store(names.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(names.len()) {
            // Without a thread there is this one.
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
