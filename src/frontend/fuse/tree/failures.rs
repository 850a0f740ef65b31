//! Images that do not open, remembered for a moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock;
use crate::catalog::{Catalog, Entry};
use crate::error::Error;
use crate::image::Image;
use crate::store::ObjectVersion;
use crate::types::BackupId;

/// How long it is believed that an image does not open. A listing, the lookups after it and the stats after those ask
/// about one image many times in a row.
const FAILURE_KEPT: Duration = Duration::from_secs(2);

/// Most failures remembered; a store with more broken backups is asked again.
const FAILURES_MAX: usize = 4096;

/// One failure to open an image.
struct Failure {
    version: ObjectVersion,
    error: Error,
    at: Instant,
}

/// What did not open lately.
#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<BackupId, Failure>>);

impl Failures {
    /// The image of a backup, or why it has none; failures are remembered for a moment.
    pub(super) fn image(&self, catalog: &Catalog, entry: &Arc<Entry>) -> Result<Arc<Image>, Error> {
        if let Some(problem) = &entry.problem {
            return Err(problem.clone());
        }
        let version = &entry.metadata_stat.version;
        if let Some(failure) = lock(&self.0).get(&entry.id)
            && failure.version == *version
            && failure.at.elapsed() < FAILURE_KEPT
        {
            return Err(failure.error.clone());
        }
        let opened = catalog.image(entry);
        let mut failures = lock(&self.0);
        match &opened {
            Ok(_) => {
                failures.remove(&entry.id);
            }
            Err(error) => {
                if failures.len() >= FAILURES_MAX {
                    failures.clear();
                }
                let failure = Failure { version: version.clone(), error: error.clone(), at: Instant::now() };
                // Said once: the next tries of the same version meet the same failure.
                let known =
                    failures.insert(entry.id.clone(), failure).is_some_and(|old| old.version == *version);
                drop(failures);
                if !known {
                    tracing::warn!(backup = %entry.id, "the backup has no image: {error}");
                }
            }
        }
        opened
    }
}
