//! One look through a store.
//!
//! A document that the store says is unchanged is not read again, so a scan of an unchanged store costs its listing. The
//! documents are read one after the other; of each only a summary is kept.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use super::{DAMAGE_BELIEVED, Entry, Snapshot};
use crate::backup::Summary;
use crate::chain::resolve::{Link, resolve_all};
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::{METADATA_SUFFIX, Place};
use crate::store::{ListedObject, Store};
use crate::types::{BackupId, ObjectName};

/// What is remembered from scan to scan.
#[derive(Default)]
pub(super) struct Scan {
    documents: HashMap<ObjectName, Document>,
    snapshot: Arc<Snapshot>,
    unreadable: HashSet<String>,
}

/// A `_metadata` document.
#[derive(Clone)]
struct Document {
    listed: ListedObject,
    summary: Result<Arc<Summary>>,
    read: Instant,
}

impl Document {
    /// A document that could not be read for the store's sake is tried again, unchanged as it is; one that was damaged, after a while.
    fn may_be_readable_now(&self) -> bool {
        let is_over = self.read.elapsed() > DAMAGE_BELIEVED;
        self.summary.as_ref().is_err_and(|error| is_over || is_of_the_store(error.kind()))
    }

    fn failed_like(&self, now: &Result<Arc<Summary>>) -> bool {
        match (&self.summary, now) {
            (Err(before), Err(now)) => before.to_string() == now.to_string(),
            _ => false,
        }
    }
}

impl Scan {
    /// The store as it is now: the same snapshot as before when nothing changed.
    pub(super) fn run(&mut self, store: &dyn Store) -> Result<Arc<Snapshot>> {
        let listing = store.list(METADATA_SUFFIX)?;
        let unreadable: HashSet<String> =
            listing.unreadable.iter().map(|(folder, _)| folder.clone()).collect();
        for (folder, error) in &listing.unreadable {
            if !self.unreadable.contains(folder) {
                tracing::warn!("cannot look into {folder:?}: {error}");
            }
        }
        let mut documents = HashMap::with_capacity(listing.objects.len());
        let mut changed = unreadable != self.unreadable;
        self.unreadable = unreadable;
        for listed in listing.objects {
            let known = self.documents.get(&listed.name);
            let known = known.filter(|known| known.listed.stat.version == listed.stat.version);
            let document = match known {
                Some(known) if !known.may_be_readable_now() => Document { listed, ..known.clone() },
                _ => {
                    let Some(summary) = read(store, &listed) else { continue };
                    let is_as_before = known.is_some_and(|known| known.failed_like(&summary));
                    changed |= !is_as_before;
                    Document { summary, listed, read: Instant::now() }
                }
            };
            documents.insert(document.listed.name.clone(), document);
        }
        if changed || documents.len() != self.documents.len() {
            self.snapshot = Arc::new(Snapshot { unreadable: listing.unreadable, ..snapshot_of(&documents) });
        }
        self.documents = documents;
        Ok(self.snapshot.clone())
    }
}

pub(super) fn is_of_the_store(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StoreIo | ErrorKind::AccessDenied | ErrorKind::ObjectNotFound)
}

fn read(store: &dyn Store, listed: &ListedObject) -> Option<Result<Arc<Summary>>> {
    Place::of(&listed.name, None)?.ok()?;
    let read = || {
        let source = store.open(&listed.name)?;
        Summary::read(&listed.name, &*source).map(Arc::new)
    };
    Some(read().map_err(|error| error.context(format!("backup metadata {:?}", listed.name))))
}

/// Gives each id to one document, resolves the chains, and writes the result down.
fn snapshot_of(documents: &HashMap<ObjectName, Document>) -> Snapshot {
    let mut of_id: BTreeMap<BackupId, Vec<&Document>> = BTreeMap::new();
    for document in documents.values() {
        if let Some(id) = id_of(document) {
            of_id.entry(id).or_default().push(document);
        }
    }
    let mut chosen = HashMap::with_capacity(of_id.len());
    for (id, mut claimants) in of_id {
        claimants.sort_by(|a, b| a.listed.name.cmp(&b.listed.name));
        chosen.insert(id, choose(&claimants));
    }
    let links = chosen.iter().filter_map(|(id, (document, problem))| {
        let summary = document.summary.as_ref().ok()?;
        let parent_id = summary.parent_id.clone();
        Some((id.clone(), Link { volume_id: summary.volume_id.clone(), parent_id, problem: problem.clone() }))
    });
    let is_torn = |(_, (document, _)): &(&BackupId, &(&Document, Option<Error>))| document.summary.is_err();
    let torn = chosen.iter().filter(is_torn).map(|(id, (_, problem))| (id.clone(), problem.clone()));
    let chains = resolve_all(&links.collect(), &torn.collect());
    let entries = chosen.into_iter().map(|(id, (document, problem))| {
        let problem = problem.or_else(|| chains.get(&id).and_then(|chain| chain.clone().err()));
        Arc::new(entry_of(id, document, problem))
    });
    Snapshot::new(entries.collect())
}

fn id_of(document: &Document) -> Option<BackupId> {
    match &document.summary {
        Ok(summary) => Some(summary.id.clone()),
        Err(_) => BackupId::parse(&Place::of(&document.listed.name, None)?.ok()?.id_by_name()).ok(),
    }
}

/// Which document stands for an id, and what is wrong with it. Copies of one document are one backup; a torn document
/// gives way to a readable one; two backups that claim one id are both refused, since a child could mean either.
fn choose<'a>(claimants: &[&'a Document]) -> (&'a Document, Option<Error>) {
    let readable: Vec<_> =
        claimants.iter().filter_map(|d| d.summary.as_ref().ok().map(|s| (*d, s))).collect();
    let Some(&(first, summary)) = readable.first() else {
        return (claimants[0], claimants[0].summary.as_ref().err().cloned());
    };
    let other = readable.iter().find(|(_, other)| other.fingerprint != summary.fingerprint);
    let problem = other.map(|(other, _)| {
        let message = format!(
            "two different backups claim the id {}: {:?} and {:?}; remove the wrong one from the store",
            summary.id, first.listed.name, other.listed.name
        );
        Error::new(ErrorKind::Ambiguous, message)
    });
    (first, problem)
}

fn entry_of(id: BackupId, document: &Document, problem: Option<Error>) -> Entry {
    let summary = document.summary.as_ref().ok();
    let place = summary.map(|s| s.place.clone()).or_else(|| Place::of(&document.listed.name, None)?.ok());
    let metadata = summary.map(|summary| summary.metadata.clone()).unwrap_or_default();
    Entry {
        id,
        volume_id: summary.map(|summary| summary.volume_id.clone()),
        parent_id: summary.and_then(|summary| summary.parent_id.clone()),
        created_at: metadata.created_at,
        name: metadata.name,
        description: metadata.description,
        volume_name: metadata.volume.display_name,
        volume_size_gib: metadata.volume.size_gib,
        container: place.as_ref().map(|place| place.container().to_owned()).unwrap_or_default(),
        prefix: place.as_ref().map(|place| place.prefix().to_owned()).unwrap_or_default(),
        object_count: summary.map_or(0, |summary| summary.object_count),
        metadata_name: document.listed.name.clone(),
        metadata_stat: document.listed.stat.clone(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fault::{Fault, FaultStore, Operation, Rule};
    use crate::store::memory::MemoryStore;

    #[test]
    fn an_unchanged_store_gives_the_same_snapshot() {
        let store = MemoryStore::new();
        let name = |name| ObjectName::parse(name).unwrap();
        // One that names no backup, one that is torn, one that may not be read.
        for object in ["c/_metadata", "c/torn_metadata", "d/secret_metadata"] {
            store.insert(name(object), b"{".to_vec());
        }
        let denied = Rule::new(Operation::Open, Fault::Error(ErrorKind::AccessDenied)).names("*secret*");
        let store = FaultStore::new(store, [denied]);
        let mut scan = Scan::default();
        let first = scan.run(&store).unwrap();
        assert_eq!(first.entries().count(), 2);
        assert!(Arc::ptr_eq(&first, &scan.run(&store).unwrap()));
        store.set_script([]);
        let readable = scan.run(&store).unwrap();
        assert!(!Arc::ptr_eq(&first, &readable), "the reason has changed");
        store.inner().remove(&name("d/secret_metadata"));
        assert_eq!(scan.run(&store).unwrap().entries().count(), 1);
    }
}
