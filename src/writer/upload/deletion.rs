//! A backup taken out of an object store.
//!
//! Problem: Cinder deletes in the order of names, objects first: cut short, it leaves metadata that tells of objects which are gone. Idea: the
//! metadata goes first, and with it the backup; a marker that was put in before tells the next run what else goes.
//!
//! | cut short | what is left | the next run |
//! | --- | --- | --- |
//! | before the metadata went | the backup, whole, and a marker | the marker goes |
//! | behind it | digests and objects that no backup has | they go, then the marker |
//!
//! Invariant: an object that was put in since it was looked at stays, as far as its version tells.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::marker::{self, Marker};
use super::removal;
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectStat;
use crate::store::objects::ObjectStore;
use crate::types::{BackupId, ObjectName};
use crate::writer::staging::removal::{Doomed, Found, Identity};

/// A store to take backups out of.
pub(in crate::writer) struct ObjectRemover {
    store: Arc<dyn ObjectStore>,
}

/// One backup that may go.
pub(in crate::writer) struct Deletion<'a> {
    remover: &'a ObjectRemover,
    id: BackupId,
}

fn identity(stat: &ObjectStat) -> Identity {
    let mut hasher = DefaultHasher::new();
    stat.version.hash(&mut hasher);
    Identity::of_version(hasher.finish(), stat.len_bytes)
}

/// A folder and a prefix as one; the folder may be empty.
fn joined(folder: &str, prefix: &str) -> String {
    if folder.is_empty() { prefix.to_owned() } else { format!("{folder}/{prefix}") }
}

impl ObjectRemover {
    pub(in crate::writer) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// Removes what dead runs of this machine left, where their markers are sure to be found: in the store, or in the container
    /// that is written to unless told. The rest goes with the next run that writes there. How many they were.
    pub(in crate::writer) fn clean_up(&self) -> Result<u64> {
        let folder = super::folder_of(&*self.store, None)?;
        match marker::remove_dead(&self.store, &folder, None, &|| false) {
            // An account need not have the container that is written to unless told.
            Err(error) if error.kind() == ErrorKind::StoreNotFound && !folder.is_empty() => Ok(0),
            outcome => outcome,
        }
    }

    /// What in a folder begins with a prefix.
    pub(in crate::writer) fn names(&self, folder: &str, prefix: &str) -> Result<Vec<Found>> {
        let whole = joined(folder, prefix);
        let listed = self.store.list_below(&whole, &|| false)?;
        let found = listed.into_iter().filter_map(|listed| {
            let suffix = listed.name.as_str().strip_prefix(&whole)?;
            // What lies deeper is no file of that folder.
            let is_there = !suffix.contains('/');
            is_there.then(|| Found { suffix: suffix.into(), identity: Some(identity(&listed.stat)) })
        });
        Ok(found.collect())
    }

    pub(in crate::writer) fn deletion(&self, id: &BackupId) -> Deletion<'_> {
        Deletion { remover: self, id: id.clone() }
    }
}

const REST_MESSAGE: &str = "the backup is deleted, and the next run removes what is left of its objects";

impl Deletion<'_> {
    /// Removes the document, then what goes with it. After an error either nothing was removed, or the document is gone and the
    /// next run removes the rest.
    pub(in crate::writer) fn remove(&mut self, doomed: &Doomed<'_>) -> Result<()> {
        let store = &self.remover.store;
        let never = || false;
        let whole = joined(doomed.folder, doomed.prefix);
        let (container, prefix) = marker::parted(&**store, &whole);
        let Some(((document, first), rest)) = doomed.files.split_first() else { return Ok(()) };
        let name_of = |suffix: &str| ObjectName::parse(&format!("{whole}{suffix}"));
        let document = name_of(document)?;
        // A listing may be late; what it does not tell is as it was.
        let now = self.remover.names(doomed.folder, doomed.prefix)?;
        let now: HashMap<&str, &Identity> =
            now.iter().filter_map(|found| Some((&*found.suffix, found.identity.as_ref()?))).collect();
        let is_same =
            |suffix: &str, identity: &Identity| now.get(suffix).is_none_or(|now| **now == *identity);
        let rest = rest.iter().filter(|(suffix, identity)| is_same(suffix, identity));
        let suffixes: Vec<&str> = rest.map(|(suffix, _)| &**suffix).collect();
        let names = suffixes.iter().map(|suffix| name_of(suffix)).collect::<Result<Vec<_>>>()?;
        let marker = Marker::of_deletion(container, prefix, &self.id, &suffixes)?;
        if !marker::is_free(store, container, marker.name())? {
            return Err(Error::new(ErrorKind::Target, marker.taken(&self.id)));
        }
        marker.put(&**store, &never)?;
        marker::remove_dead(store, container, Some(&marker), &never)?;
        let is_changed = match store.open(&document) {
            Ok(source) => identity(source.stat()) != *first,
            Err(error) if error.kind() == ErrorKind::ObjectNotFound => true,
            Err(error) => return Err(error),
        };
        if is_changed {
            store.remove(marker.name(), &never)?;
            let message = format!("the metadata of backup {} has changed since it was looked at", self.id);
            return Err(Error::new(ErrorKind::Target, message));
        }
        // Another run that deletes it may have put in its own meanwhile.
        marker.check(&**store)?;
        store.remove(&document, &never)?;
        let rest = removal::remove_all(&**store, &names, &never);
        rest.and_then(|()| store.remove(marker.name(), &never)).map_err(|error| error.context(REST_MESSAGE))
    }
}
