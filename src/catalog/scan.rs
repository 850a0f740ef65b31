//! One look through a store.
//!
//! A document that the store says is unchanged is not read again, so a scan of an unchanged store costs its listing. The
//! documents of a store to which each question is a journey are read several at once, each with one request, since the listing has told its
//! version and length. What lies where the store fails to look stays as it was last seen. Of each document a summary is kept, and where opening it again would be a journey more, [`Kept`] gets what it lists.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{DAMAGE_BELIEVED, Entry, Snapshot};
use crate::backup::{Backup, Summary};
use crate::chain::resolve::{Link, resolve_all};
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::{METADATA_SUFFIX, Place, SHA256FILE_SUFFIX};
use crate::in_order::in_order;
use crate::store::reports::REASONS_MAX;
use crate::store::{ListedObject, ObjectSource, ObjectStat, Part, Store};
use crate::types::{BackupId, ObjectName};

/// Most bytes of documents that are read whole at once, by all threads together; of what is beyond, a summary is kept, and who wants more reads
/// it again. These list some 150,000 objects, at half a document's length in memory.
const WHOLE_BYTES_MAX: u64 = 32 << 20;

/// How often a scan that takes long tells how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Takes the backups that a scan has read whole.
pub(super) type Kept<'a> = &'a (dyn Fn(&ObjectName, Backup) + Sync);

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
    ///
    /// Fails when the store cannot be listed, or the command is to end.
    pub(super) fn run(&mut self, store: &dyn Store, kept: Kept<'_>) -> Result<Arc<Snapshot>> {
        let (listing, digests) = store.list_with(METADATA_SUFFIX, SHA256FILE_SUFFIX)?;
        let digests = digests.into_iter().map(|listed| (listed.name, listed.stat)).collect();
        let unreadable: HashSet<String> =
            listing.unreadable.iter().map(|(folder, _)| folder.clone()).collect();
        let mut news = listing.unreadable.iter().filter(|(folder, _)| !self.unreadable.contains(folder));
        for (folder, error) in news.by_ref().take(REASONS_MAX) {
            tracing::warn!("cannot look into {folder:?}: {error}");
        }
        let more = news.count();
        if more > 0 {
            tracing::warn!("cannot look into {more} more folders or objects of {:?}", store.location());
        }
        let mut documents = HashMap::with_capacity(listing.objects.len());
        let mut changed = unreadable != self.unreadable;
        self.unreadable = unreadable;
        let mut to_read = Vec::new();
        for listed in listing.objects {
            match self.known(&listed) {
                Some(known) if !known.may_be_readable_now() => {
                    let document = Document { listed, ..known.clone() };
                    documents.insert(document.listed.name.clone(), document);
                }
                _ if matches!(Place::of(&listed.name, None), Some(Ok(_))) => to_read.push(listed),
                _ => {}
            }
        }
        let read_now = read_all(store, &to_read, &digests, kept)?;
        for (listed, (summary, read)) in to_read.into_iter().zip(read_now) {
            let is_as_before = self.known(&listed).is_some_and(|known| known.failed_like(&summary));
            changed |= !is_as_before;
            documents.insert(listed.name.clone(), Document { summary, listed, read });
        }
        for document in self.unseen(&listing.unreadable) {
            documents.entry(document.listed.name.clone()).or_insert_with(|| document.clone());
        }
        if changed || documents.len() != self.documents.len() {
            let snapshot = snapshot_of(&documents, store.part());
            self.snapshot = Arc::new(snapshot.with_unreadable(listing.unreadable));
        }
        self.documents = documents;
        Ok(self.snapshot.clone())
    }

    /// What is known of documents that may be there still: the store failed to tell.
    fn unseen(&self, unreadable: &[(String, Error)]) -> impl Iterator<Item = &Document> {
        let failed = unreadable.iter().filter(|(_, error)| error.kind() == ErrorKind::StoreIo);
        let places: HashSet<&str> = failed.map(|(place, _)| &**place).collect();
        let is_unseen = move |name: &str| {
            let folders = name.match_indices('/').map(|(at, _)| &name[..at]);
            !places.is_empty() && folders.chain([name]).any(|place| places.contains(place))
        };
        self.documents.values().filter(move |document| is_unseen(document.listed.name.as_str()))
    }

    /// What is known of the document in this version.
    fn known(&self, listed: &ListedObject) -> Option<&Document> {
        self.documents.get(&listed.name).filter(|known| known.listed.stat.version == listed.stat.version)
    }
}

pub(super) fn is_of_the_store(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StoreIo | ErrorKind::AccessDenied | ErrorKind::ObjectNotFound)
}

/// What a listing has told of digest files.
type Digests = HashMap<ObjectName, ObjectStat>;

/// A summary, or why there is none, and since when that is known.
type Outcome = (Result<Arc<Summary>>, Instant);

/// Reads documents, as many at once as the store likes to be asked for.
fn read_all(
    store: &dyn Store,
    listed: &[ListedObject],
    digests: &Digests,
    kept: Kept<'_>,
) -> Result<Vec<Outcome>> {
    let threads = store.calls_at_once();
    let whole_bytes = AtomicU64::new(0);
    let read = |(): &mut (), index: u64| {
        let summary =
            read(store, &listed[index as usize], (threads > 1).then_some((kept, digests, &whole_bytes)));
        match summary {
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            summary => Ok((summary, Instant::now())),
        }
    };
    let mut outcomes = Vec::with_capacity(listed.len());
    let mut told = Instant::now();
    let take = |index, outcome| {
        outcomes.push(outcome);
        if told.elapsed() > TOLD_EVERY {
            tracing::info!("{} of {} backups of the store are looked at", index + 1, listed.len());
            told = Instant::now();
        }
        Ok(())
    };
    in_order(listed.len() as u64, threads, &AtomicBool::new(false), || (), read, take)?;
    Ok(outcomes)
}

fn read(
    store: &dyn Store,
    listed: &ListedObject,
    kept: Option<(Kept<'_>, &Digests, &AtomicU64)>,
) -> Result<Arc<Summary>> {
    let outcome = match kept {
        None => {
            store.open(&listed.name).and_then(|source| Summary::read(&listed.name, &*source).map(Arc::new))
        }
        Some((kept, digests, whole)) => read_as_listed(store, listed, digests, kept, whole),
    };
    outcome.map_err(|error| error.context(format!("backup metadata {:?}", listed.name)))
}

/// Reads a document with one request, or where that failed with as many as it takes to tell what is there now.
fn read_as_listed(
    store: &dyn Store,
    listed: &ListedObject,
    digests: &Digests,
    kept: Kept<'_>,
    whole: &AtomicU64,
) -> Result<Arc<Summary>> {
    let read = |source: Arc<dyn ObjectSource>| {
        let Some(_room) = Room::take(whole, source.stat().len_bytes) else {
            return Summary::read(&listed.name, &*source).map(Arc::new);
        };
        let backup = Backup::read(&listed.name, &*source)?;
        let summary = backup.summary.clone();
        let digests = backup.digest_name().ok().and_then(|name| digests.get(&name).cloned());
        kept(&listed.name, backup.with_digests(digests));
        Ok(summary)
    };
    match store.open_listed(listed).and_then(read) {
        // Deleted since it was listed, or replaced?
        Err(error) if is_gone_or_failed(error.kind()) && store.is_answering() => {
            match store.open(&listed.name) {
                Ok(source) if source.stat().version == listed.stat.version => Err(error),
                now => now.and_then(read),
            }
        }
        outcome => outcome,
    }
}

/// Of [`WHOLE_BYTES_MAX`], as long as it lives.
struct Room<'a>(&'a AtomicU64, u64);

impl<'a> Room<'a> {
    fn take(taken: &'a AtomicU64, bytes: u64) -> Option<Self> {
        let with = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= WHOLE_BYTES_MAX);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).ok()?;
        Some(Self(taken, bytes))
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

fn is_gone_or_failed(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StoreIo | ErrorKind::ObjectNotFound)
}

/// Gives each id to one document, resolves the chains, and writes the result down.
fn snapshot_of(documents: &HashMap<ObjectName, Document>, part: Option<Part<'_>>) -> Snapshot {
    let mut of_id: BTreeMap<BackupId, Vec<&Document>> = BTreeMap::new();
    let mut shadowed = Vec::new();
    for document in documents.values() {
        match id_of(document) {
            Some(id) => of_id.entry(id).or_default().push(document),
            None => shadowed.push((document.listed.name.clone(), None)),
        }
    }
    let mut chosen = HashMap::with_capacity(of_id.len());
    for (id, mut claimants) in of_id {
        claimants.sort_by(|a, b| a.listed.name.cmp(&b.listed.name));
        let (document, problem) = choose(&claimants);
        let others = claimants.iter().map(|claimant| &claimant.listed.name);
        let others = others.filter(|name| **name != document.listed.name);
        shadowed.extend(others.map(|name| (name.clone(), Some(id.clone()))));
        chosen.insert(id, (document, problem));
    }
    let links = chosen.iter().filter_map(|(id, (document, problem))| {
        let summary = document.summary.as_ref().ok()?;
        let parent_id = summary.parent_id.clone();
        Some((id.clone(), Link { volume_id: summary.volume_id.clone(), parent_id, problem: problem.clone() }))
    });
    let is_torn = |(_, (document, _)): &(&BackupId, &(&Document, Option<Error>))| document.summary.is_err();
    let torn = chosen.iter().filter(is_torn).map(|(id, (_, problem))| (id.clone(), problem.clone()));
    let chains = resolve_all(&links.collect(), &torn.collect(), part);
    let entries = chosen.into_iter().map(|(id, (document, problem))| {
        let problem = problem.or_else(|| chains.get(&id).and_then(|chain| chain.clone().err()));
        Arc::new(entry_of(id, document, problem))
    });
    Snapshot::new(entries.collect()).with_shadowed(shadowed)
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
        let first = scan.run(&store, &|_, _| ()).unwrap();
        assert_eq!(first.entries().count(), 2);
        assert!(Arc::ptr_eq(&first, &scan.run(&store, &|_, _| ()).unwrap()));
        store.set_script([]);
        let readable = scan.run(&store, &|_, _| ()).unwrap();
        assert!(!Arc::ptr_eq(&first, &readable), "the reason has changed");
        store.inner().remove(&name("d/secret_metadata"));
        assert_eq!(scan.run(&store, &|_, _| ()).unwrap().entries().count(), 1);
    }
    #[test]
    fn what_the_store_fails_to_look_at_stays_known_and_what_it_closes_does_not() {
        let store = MemoryStore::new();
        let name = |name| ObjectName::parse(name).unwrap();
        for object in ["c/a_metadata", "c/d/b_metadata", "cc/e_metadata"] {
            store.insert(name(object), b"{".to_vec());
        }
        let fails = |kind| Rule::new(Operation::List, Fault::Error(kind)).names("c/*");
        let store = FaultStore::new(store, []);
        let mut scan = Scan::default();
        let mut count = || scan.run(&store, &|_, _| ()).map(|snapshot| snapshot.entries().count()).unwrap();
        assert_eq!(count(), 3);
        store.set_script([fails(ErrorKind::StoreIo)]);
        assert_eq!(count(), 3);
        store.inner().remove(&name("c/a_metadata"));
        assert_eq!(count(), 2, "the store does not fail to look at what is gone");
        store.set_script([fails(ErrorKind::AccessDenied)]);
        assert_eq!(count(), 1);
    }

    #[test]
    fn what_lies_in_a_folder_that_failed_is_unseen() {
        let store = MemoryStore::new();
        for object in ["c/a_metadata", "c/d/b_metadata", "cc/e_metadata"] {
            store.insert(ObjectName::parse(object).unwrap(), b"{".to_vec());
        }
        let mut scan = Scan::default();
        scan.run(&store, &|_, _| ()).unwrap();
        let unseen = |place: &str, kind| {
            let unreadable = [(place.to_owned(), Error::new(kind, "failed"))];
            let mut names: Vec<_> = scan.unseen(&unreadable).map(|d| d.listed.name.to_string()).collect();
            names.sort();
            names
        };
        assert_eq!(unseen("c", ErrorKind::StoreIo), ["c/a_metadata", "c/d/b_metadata"]);
        assert_eq!(unseen("c/d", ErrorKind::StoreIo), ["c/d/b_metadata"]);
        assert_eq!(unseen("cc/e_metadata", ErrorKind::StoreIo), ["cc/e_metadata"]);
        assert!(unseen("c", ErrorKind::AccessDenied).is_empty());
    }
}
