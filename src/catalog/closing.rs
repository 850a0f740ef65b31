//! Lets go of what was deleted.
//!
//! Problem: opened backups and objects are kept for the next read, and a file that is deleted while somebody has it open keeps its space: whoever
//! deletes a backup to make room would have none until the mount ends. Idea: when a scan finds a backup gone, what was kept of it goes too, and a thread looks now
//! and then whether its objects still have their names; a deletion takes the metadata first and then, perhaps slowly, the objects. Where nobody looks
//! at the mount, and so nobody scans, that thread does, seldom, and only while something is open.
//!
//! Invariant: only what the store says is not there is closed. Who reads an object meanwhile keeps it until the read is done.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::{Catalog, Entry, Shared, Snapshot, lock};
use crate::error::ErrorKind;
use crate::types::{BackupId, ObjectName};

/// How often opened objects of backups that are gone are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// One look in so many sees to it that the store was scanned a moment ago.
const LOOKS_TO_A_SCAN: u32 = 12;

impl Catalog {
    /// Starts a thread that closes objects which the store has no more, for as long as this catalog or a clone of it is there.
    pub fn close_deleted_regularly(&self) -> std::io::Result<()> {
        let shared = Arc::downgrade(&self.0);
        thread::Builder::new().name("closing".to_owned()).spawn(move || look_regularly(&shared)).map(drop)
    }
}

fn look_regularly(shared: &Weak<Shared>) {
    for look in 1u32.. {
        thread::sleep(LOOK_EVERY);
        let Some(shared) = shared.upgrade() else { return };
        let is_anything_open = lock(&shared.images).bytes() > 0;
        if is_anything_open && look.is_multiple_of(LOOKS_TO_A_SCAN) {
            // What cannot be scanned has lost nothing.
            let _ = shared.refresh();
        }
        shared.close_deleted();
    }
}

impl Shared {
    /// Closes objects of backups that are gone, if they are gone as well.
    fn close_deleted(&self) {
        let mut opened = self.engine.opened_objects();
        if opened.is_empty() {
            return;
        }
        let stems: HashSet<&str> = opened.iter().map(stem).collect();
        let snapshot = self.snapshot();
        let known: HashSet<String> =
            snapshot.entries().map(|entry| entry.stem()).filter(|stem| stems.contains(&**stem)).collect();
        opened.retain(|name| !known.contains(stem(name)));
        let is_gone = |name: &ObjectName| {
            self.store().version_of(name).is_err_and(|error| error.kind() == ErrorKind::ObjectNotFound)
        };
        let gone: HashSet<_> = opened.into_iter().filter(is_gone).collect();
        if !gone.is_empty() {
            tracing::debug!(count = gone.len(), "objects that the store has no more are closed");
            self.engine.close_objects(&gone);
        }
    }

    /// Forgets what was opened of backups that `before` had and `now` has not.
    pub(super) fn forget_gone(&self, before: &Snapshot, now: &Snapshot) {
        for entry in before.entries().filter(|entry| !now.has(entry)) {
            self.forget_opened(entry);
        }
    }

    /// Forgets what was opened of a backup if it has gone meanwhile: a scan that came before could not.
    pub(super) fn forget_if_gone(&self, entry: &Entry) {
        if !self.snapshot().has(entry) {
            self.forget_opened(entry);
        }
    }

    fn forget_opened(&self, entry: &Entry) {
        let key = (entry.metadata_name.clone(), entry.metadata_stat.version.clone());
        // Closing files may take its time, so each is dropped without a lock.
        let image = lock(&self.images).remove(&entry.id);
        let backup = lock(&self.backups).remove(&key);
        drop((image, backup));
    }
}

impl Snapshot {
    /// Whether this very version of a backup is in it.
    fn has(&self, entry: &Entry) -> bool {
        let id: &BackupId = &entry.id;
        self.get(id.as_str()).is_some_and(|now| {
            now.metadata_name == entry.metadata_name
                && now.metadata_stat.version == entry.metadata_stat.version
        })
    }
}

impl Entry {
    /// What the names of its objects begin with, up to the dash before the number.
    fn stem(&self) -> String {
        match &*self.container {
            "" => self.prefix.clone(),
            container => format!("{container}/{}", self.prefix),
        }
    }
}

/// The name of an object without its number.
fn stem(name: &ObjectName) -> &str {
    name.as_str().rsplit_once('-').map_or(name.as_str(), |(stem, _)| stem)
}
