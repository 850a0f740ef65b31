//! Backups in other containers that build on those which are to go.
//!
//! Problem: a chain may span containers, and a store may be one of them; what builds on a backup there is seen by nobody who lists the store, and
//! is lost with it. Idea: before anything goes, the containers beside the store are asked for the documents of the same volumes, whose names
//! all of Cinder's releases begin with the volume's id.
//!
//! A container that holds a backup and, whole, what it builds on is a copy of the chain, and needs nothing of ours.
//!
//! Invariant: where that cannot be told, it is an error and not "none".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{CHILDREN_SHOWN_MAX, Entry, Target};
use crate::backup::Summary;
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::METADATA_SUFFIX;
use crate::in_order::in_order;
use crate::store::ListedObject;
use crate::store::objects::{Beside, ObjectStore};
use crate::types::BackupId;

/// Documents that are read, at most: each takes a request.
const DOCUMENTS_MAX: usize = 100_000;

/// What the message says of backups that others in other containers build on.
const ELSEWHERE: &str = "is what others build on, in other containers of";

/// A document of another container.
struct Other {
    container: String,
    /// What its objects' names begin with, in the whole.
    stem: String,
    summary: Summary,
}

/// Whether backups were refused because others in other containers build on them.
pub fn is_elsewhere(error: &Error) -> bool {
    error.kind() == ErrorKind::Usage && error.to_string().contains(ELSEWHERE)
}

/// How many containers beside the store were looked into.
///
/// [`ErrorKind::Usage`] when backups there build on one of `wanted`; [`ErrorKind::AccessDenied`] or [`ErrorKind::StoreIo`] where it cannot
/// be told, unless `despite_unseen`.
pub(super) fn check(
    target: Target<'_>,
    wanted: &[Arc<Entry>],
    despite_unseen: bool,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<usize> {
    let Target::Objects { store, .. } = target else { return Ok(0) };
    match look(&**store, wanted, stop) {
        Err(error) if matches!(error.kind(), ErrorKind::Usage | ErrorKind::Interrupted) => Err(error),
        Err(error) if despite_unseen => {
            tracing::warn!("backups that build on what goes may lie in other containers: {error}");
            Ok(0)
        }
        Err(error) => {
            let kind = match error.kind() {
                ErrorKind::AccessDenied => ErrorKind::AccessDenied,
                _ => ErrorKind::StoreIo,
            };
            let whole = store.part().map_or_else(|| store.location(), |part| part.whole);
            let message = format!(
                "backups that build on this one may lie in other containers of {whole:?}, which cannot be told"
            );
            Err(Error::caused_by(kind, message, error))
        }
        outcome => outcome,
    }
}

fn look(store: &dyn ObjectStore, wanted: &[Arc<Entry>], stop: &(dyn Fn() -> bool + Sync)) -> Result<usize> {
    let Some(beside) = store.beside(&prefixes(wanted), METADATA_SUFFIX, stop)? else { return Ok(0) };
    let documents = &beside.listing.objects;
    if documents.len() > DOCUMENTS_MAX {
        let message = format!("there are {} documents, more than {DOCUMENTS_MAX}", documents.len());
        return Err(Error::new(ErrorKind::LimitExceeded, message));
    }
    let others = read_all(&beside, documents, stop)?;
    let ids: BTreeSet<&BackupId> = wanted.iter().map(|entry| &entry.id).collect();
    let mut children: BTreeMap<&BackupId, Vec<&Other>> = BTreeMap::new();
    let mut whole_copies: BTreeMap<(&str, &BackupId), bool> = BTreeMap::new();
    for other in &others {
        let Some(parent) = other.summary.parent_id.as_ref().filter(|id| ids.contains(id)) else { continue };
        let is_of_copy = match whole_copies.get(&(&*other.container, parent)) {
            Some(known) => *known,
            None => {
                let is_whole = is_whole_copy(store, &others, &other.container, parent, stop)?;
                whole_copies.insert((&other.container, parent), is_whole);
                is_whole
            }
        };
        if !is_of_copy {
            children.entry(parent).or_default().push(other);
        }
    }
    // What is seen goes before what is not.
    if let Some((id, children)) = children.first_key_value() {
        let mut names: Vec<_> =
            children.iter().take(CHILDREN_SHOWN_MAX).map(|child| described(child)).collect();
        if children.len() > names.len() {
            names.push(format!("{} more", children.len() - names.len()));
        }
        let whole = beside.store.location();
        let message = format!("backup {id} {ELSEWHERE} {whole:?}: {}", names.join(", "));
        return Err(Error::new(ErrorKind::Usage, message));
    }
    if let Some((place, error)) = beside.listing.unreadable.into_iter().next() {
        return Err(error.context(format!("container {place:?}")));
    }
    Ok(beside.containers)
}

/// What the names of documents begin with that may build on these.
fn prefixes(wanted: &[Arc<Entry>]) -> Vec<String> {
    let of = |entry: &Arc<Entry>| match &entry.volume_id {
        Some(id) => format!("volume_{id}"),
        None => "volume_".to_owned(),
    };
    let all: BTreeSet<String> = wanted.iter().map(of).collect();
    // One that begins others stands before them.
    let mut prefixes: Vec<String> = Vec::new();
    for prefix in all {
        if !prefixes.last().is_some_and(|last| prefix.starts_with(&**last)) {
            prefixes.push(prefix);
        }
    }
    prefixes
}

fn read_all(
    beside: &Beside,
    documents: &[ListedObject],
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Other>> {
    let read = |(): &mut (), index: u64| {
        if stop() {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        let listed = &documents[index as usize];
        let read = beside.store.open(&listed.name).and_then(|source| Summary::read(&listed.name, &*source));
        match read {
            Ok(summary) => Ok(other(listed, summary)),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::AccessDenied | ErrorKind::StoreIo | ErrorKind::Interrupted
                ) =>
            {
                Err(error.context(format!("backup metadata {:?}", listed.name)))
            }
            // Gone since, or none of a backup: it builds on nothing.
            Err(_) => Ok(None),
        }
    };
    let mut others = Vec::new();
    let take = |_, other: Option<Other>| {
        others.extend(other);
        Ok(())
    };
    let threads = beside.store.calls_at_once();
    in_order(documents.len() as u64, threads, &AtomicBool::new(false), || (), read, take)?;
    Ok(others)
}

fn other(listed: &ListedObject, summary: Summary) -> Option<Other> {
    let name = listed.name.as_str();
    let (container, _) = name.split_once('/')?;
    let stem = name.strip_suffix(METADATA_SUFFIX)?;
    Some(Other { container: container.to_owned(), stem: stem.to_owned(), summary })
}

/// Whether a container holds the backup with all its objects.
fn is_whole_copy(
    store: &dyn ObjectStore,
    others: &[Other],
    container: &str,
    id: &BackupId,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<bool> {
    for copy in others.iter().filter(|other| other.container == container && other.summary.id == *id) {
        let Some((_, prefix)) = copy.stem.split_once('/') else { continue };
        let Some(found) = store.beside(&[format!("{prefix}-")], "", stop)? else { continue };
        let stem = format!("{}-", copy.stem);
        let objects = found.listing.objects.iter().filter(|object| object.name.as_str().starts_with(&stem));
        if objects.count() as u64 >= copy.summary.object_count {
            return Ok(true);
        }
    }
    Ok(false)
}

fn described(child: &Other) -> String {
    let Other { container, summary, .. } = child;
    match &summary.metadata.name {
        Some(name) => format!("{} ({name:?}) in {container:?}", summary.id),
        None => format!("{} in {container:?}", summary.id),
    }
}
