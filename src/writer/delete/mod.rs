//! Backups leave a store: which may go, in which order, and what goes with them.
//!
//! Problem: an incremental is worthless without its parents, files of several backups share a folder, and what is deleted by
//! mistake is the last copy of somebody's disk. Idea: first a [`Plan`], which removes nothing and can be shown: each backup, its
//! files, and what is left alone. To carry it out, the ids are locked, the same plan is made again from the store as it
//! is then, and only what both have is removed, children before parents. How files are removed so that a run may be killed at
//! any moment stands in `writer/staging/removal.rs`; which files are a backup's, in `files.rs`.
//!
//! Invariants:
//! - a backup that another one builds on is not removed before that one, and not at all where that one lies in another container
//!   ([`beside`]);
//! - where a part of the store cannot be seen, nothing is removed unless told ([`DeleteOptions::despite_unseen`]): a
//!   child may lie there;
//! - a backup is whole or not there, whatever happens in between.
//!
//! A backup that is being made on top of one that is deleted at that moment cannot be seen here, and will be without a parent.

mod beside;
pub(in crate::writer) mod files;
mod place;

pub use self::beside::is_elsewhere;

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use self::files::Neighbours;
use self::place::{Lock, Place as Removal};
use super::Target;
use super::staging::Hook;
use super::staging::removal::{Doomed, Identity};
use crate::backup::Backup;
use crate::catalog::{Catalog, Entry, Snapshot};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::format::names::{METADATA_SUFFIX, SHA256FILE_SUFFIX};
use crate::types::{BackupId, ObjectName};

/// How many backups are locked at once. Each lock has two open files, of which a process may often have 1,024.
const LOCKED_MAX: usize = 128;

/// How many children a refusal names.
const CHILDREN_SHOWN_MAX: usize = 8;

/// What may go with a backup.
#[derive(Clone, Default)]
pub struct DeleteOptions {
    /// Backups that build on it go as well, and those that build on these.
    pub cascade: bool,
    /// Delete although a part of the store cannot be read, or of the account or server that it is one container of, where children may lie.
    pub despite_unseen: bool,
    /// Says whether to look no further for children. Asked several times a second.
    pub stop: Option<fn() -> bool>,
    /// Is told each step that changes the store. For tests.
    pub hook: Option<Hook>,
}

/// What is to be deleted, in the order in which it goes: children before parents, else the newest first.
#[derive(Debug)]
pub struct Plan {
    /// Each backup once.
    pub backups: Vec<DoomedBackup>,
    /// How many containers beside the store were looked into for backups that build on these.
    pub containers_beside: usize,
    /// What it was made from, which knows what need not be read again.
    catalog: Catalog,
}

/// A backup that is to go.
#[derive(Debug)]
pub struct DoomedBackup {
    /// What the catalog knows of it.
    pub entry: Arc<Entry>,
    /// Its document and files; more than one where the store holds copies of it.
    copies: Vec<Document>,
}

/// One `_metadata` document with its files.
#[derive(Debug)]
struct Document {
    metadata_name: ObjectName,
    /// The document first.
    files: Vec<(Box<str>, Identity)>,
    kept: Vec<(Box<str>, Kept)>,
}

/// Why a file stays whose name begins with the backup's prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// The backup does not list it, and its name does not say whose it is.
    Unlisted,
    /// Another backup lists it too.
    Shared,
    /// It is a folder, or its name is none of an object.
    NoObject,
}

impl Kept {
    /// The reason in words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unlisted => "the backup does not list it",
            Self::Shared => "another backup lists it too",
            Self::NoObject => "it is no object",
        }
    }
}

impl Document {
    /// The folder and the prefix of the files' names.
    fn place(&self) -> (&str, &str) {
        place_of(&self.metadata_name)
    }
}

/// The folder of a document, empty for the store's root, and what its file's name has before `_metadata`.
fn place_of(metadata_name: &ObjectName) -> (&str, &str) {
    let name = metadata_name.as_str();
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    (folder, file.strip_suffix(METADATA_SUFFIX).unwrap_or(file))
}

impl DoomedBackup {
    /// How many files go.
    pub fn file_count(&self) -> u64 {
        self.copies.iter().map(|copy| copy.files.len() as u64).sum()
    }

    /// How many of them are data objects.
    pub fn object_count(&self) -> u64 {
        let files = self.copies.iter().flat_map(|copy| &copy.files);
        files.filter(|(suffix, _)| ![METADATA_SUFFIX, SHA256FILE_SUFFIX].contains(&&**suffix)).count() as u64
    }

    /// Stored bytes that are given free.
    pub fn stored_bytes(&self) -> u64 {
        self.copies.iter().flat_map(|copy| &copy.files).map(|(_, identity)| identity.len_bytes()).sum()
    }

    /// Names of the files that go, relative to the store's root, in the order in which they go.
    pub fn files(&self) -> impl Iterator<Item = String> + '_ {
        self.copies.iter().flat_map(|copy| copy.files.iter().map(|(suffix, _)| named(copy, suffix)))
    }

    /// Files that begin with the backup's prefix and stay, and why.
    pub fn kept(&self) -> impl Iterator<Item = (String, Kept)> + '_ {
        self.copies.iter().flat_map(|copy| copy.kept.iter().map(|(suffix, why)| (named(copy, suffix), *why)))
    }
}

fn named(copy: &Document, suffix: &str) -> String {
    match copy.place() {
        ("", prefix) => format!("{prefix}{suffix}"),
        (folder, prefix) => format!("{folder}/{prefix}{suffix}"),
    }
}

/// What would be deleted if these backups were; changes nothing.
///
/// [`ErrorKind::Usage`] when others build on one of them, and `cascade` is not set or they lie [elsewhere](is_elsewhere);
/// [`ErrorKind::BackupNotFound`];
/// [`ErrorKind::Ambiguous`] when different backups claim an id; [`ErrorKind::AccessDenied`] or [`ErrorKind::StoreIo`] where
/// a part of the store cannot be read.
pub fn plan<'t>(
    catalog: &Catalog,
    target: impl Into<Target<'t>>,
    ids: &[BackupId],
    options: &DeleteOptions,
) -> Result<Plan> {
    let target = target.into();
    let remover = Removal::open(target, options.hook.clone())?;
    let (backups, containers_beside) = doomed(catalog, target, &remover, ids, options)?;
    Ok(Plan { backups, containers_beside, catalog: catalog.clone() })
}

fn doomed(
    catalog: &Catalog,
    target: Target<'_>,
    remover: &Removal,
    ids: &[BackupId],
    options: &DeleteOptions,
) -> Result<(Vec<DoomedBackup>, usize)> {
    let (snapshot, store) = (catalog.snapshot(), &**catalog.store());
    let wanted = wanted(&snapshot, ids, options.cascade)?;
    if let (false, Some(error)) = (options.despite_unseen, unseen(&snapshot)) {
        let message = "a part of the store cannot be read, where backups may lie that build on this one";
        return Err(error.clone().context(message));
    }
    let order = in_order(&snapshot, &wanted);
    let stop = options.stop.unwrap_or(|| false);
    let containers_beside = beside::check(target, &order, options.despite_unseen, &stop)?;
    let documents = Catalogued::of(&snapshot);
    // What the catalog has read is not read again.
    let open = |name: &ObjectName| match documents.known.get(name) {
        Some(entry) => catalog.backup(entry),
        None => Backup::open(store, name).map(Arc::new),
    };
    let mut backups = Vec::with_capacity(order.len());
    for entry in order {
        if let Some(problem) = entry.problem.as_ref().filter(|problem| problem.kind() == ErrorKind::Ambiguous)
        {
            return Err(problem.clone());
        }
        let files_of = |metadata_name: &ObjectName| {
            let (folder, _) = place_of(metadata_name);
            let neighbours = Neighbours { open: &open, documents: documents.in_folder(folder) };
            files::of(remover, &neighbours, metadata_name, &entry.id)
        };
        let names = std::iter::once(&entry.metadata_name).chain(documents.more_of(&entry.id));
        let copies = names.map(files_of).collect::<Result<_>>();
        let copies = copies.context(|| format!("cannot tell the files of backup {}", entry.id))?;
        backups.push(DoomedBackup { entry, copies });
    }
    Ok((backups, containers_beside))
}

/// All `_metadata` documents of a store.
struct Catalogued<'a> {
    /// Those behind the entries.
    known: HashMap<&'a ObjectName, &'a Entry>,
    by_folder: HashMap<String, Vec<ObjectName>>,
    /// Those that stand behind another document of the same id.
    more: HashMap<BackupId, Vec<ObjectName>>,
}

impl<'a> Catalogued<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let known = snapshot.entries().map(|entry| (&entry.metadata_name, &**entry)).collect();
        let mut documents = Self { known, by_folder: HashMap::new(), more: HashMap::new() };
        let shadowed = snapshot.shadowed().iter().map(|(name, _)| name);
        for name in snapshot.entries().map(|entry| &entry.metadata_name).chain(shadowed) {
            let (folder, _) = place_of(name);
            documents.by_folder.entry(folder.to_owned()).or_default().push(name.clone());
        }
        for (name, id) in snapshot.shadowed() {
            if let Some(id) = id {
                documents.more.entry(id.clone()).or_default().push(name.clone());
            }
        }
        documents
    }

    fn in_folder(&self, folder: &str) -> &[ObjectName] {
        self.by_folder.get(folder).map_or(&[], Vec::as_slice)
    }

    fn more_of(&self, id: &BackupId) -> &[ObjectName] {
        self.more.get(id).map_or(&[], Vec::as_slice)
    }
}

/// Why a part of the store could not be looked into, be it a folder or a document, if that happened.
fn unseen(snapshot: &Snapshot) -> Option<&Error> {
    let is_closed = |error: &&Error| matches!(error.kind(), ErrorKind::AccessDenied | ErrorKind::StoreIo);
    let folders = snapshot.unreadable().iter().map(|(_, error)| error);
    let documents = snapshot.entries().filter_map(|entry| entry.problem.as_ref());
    folders.chain(documents).find(is_closed)
}

/// The ids, and with `cascade` all that build on them. [`ErrorKind::Usage`] when others do, and are not to go.
fn wanted(snapshot: &Snapshot, ids: &[BackupId], cascade: bool) -> Result<BTreeSet<BackupId>> {
    let mut children: HashMap<&BackupId, Vec<&Arc<Entry>>> = HashMap::new();
    for entry in snapshot.entries() {
        if let Some(parent) = &entry.parent_id {
            children.entry(parent).or_default().push(entry);
        }
    }
    let mut wanted: BTreeSet<BackupId> = BTreeSet::new();
    let mut next: Vec<&BackupId> = ids.iter().collect();
    while let Some(id) = next.pop() {
        if snapshot.get(id.as_str()).is_none() {
            let message = format!("the backup {id} is not in the store, or no longer");
            return Err(Error::new(ErrorKind::BackupNotFound, message));
        }
        if wanted.insert(id.clone()) && cascade {
            next.extend(children.get(id).into_iter().flatten().map(|child| &child.id));
        }
    }
    for id in &wanted {
        let remaining: Vec<_> =
            children.get(id).into_iter().flatten().filter(|child| !wanted.contains(&child.id)).collect();
        if remaining.is_empty() {
            continue;
        }
        let mut names: Vec<_> =
            remaining.iter().take(CHILDREN_SHOWN_MAX).map(|child| described(child)).collect();
        if remaining.len() > names.len() {
            names.push(format!("{} more", remaining.len() - names.len()));
        }
        let message = format!("backup {id} is what others build on: {}", names.join(", "));
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(wanted)
}

fn described(entry: &Entry) -> String {
    match &entry.name {
        Some(name) => format!("{} ({name:?})", entry.id),
        None => entry.id.to_string(),
    }
}

/// Children before parents, else the newest first. Backups that build on each other in a circle go as if they did not.
fn in_order(snapshot: &Snapshot, wanted: &BTreeSet<BackupId>) -> Vec<Arc<Entry>> {
    let entries: BTreeMap<&BackupId, &Arc<Entry>> =
        wanted.iter().filter_map(|id| Some((id, snapshot.get(id.as_str())?))).collect();
    let mut children_left: BTreeMap<&BackupId, usize> = entries.keys().map(|id| (*id, 0)).collect();
    let parent_of = |entry: &Entry| entry.parent_id.clone();
    for entry in entries.values() {
        if let Some(left) = parent_of(entry).and_then(|parent| children_left.get_mut(&parent)) {
            *left += 1;
        }
    }
    let age = |entry: &Entry| (entry.created_at, entry.id.clone());
    let free = children_left.iter().filter(|(_, left)| **left == 0);
    let mut ready: BinaryHeap<_> = free.map(|(id, _)| age(entries[*id])).collect();
    let mut order = Vec::with_capacity(entries.len());
    loop {
        let next = ready.pop().or_else(|| {
            // Only circles are left: the newest begins.
            let id = children_left.keys().max_by_key(|id| age(entries[*id]))?;
            Some(age(entries[*id]))
        });
        let Some((_, id)) = next else { return order };
        if children_left.remove(&id).is_none() {
            continue;
        }
        let Some(entry) = entries.get(&id) else { continue };
        order.push(Arc::clone(entry));
        if let Some(parent) = parent_of(entry)
            && let Some(left) = children_left.get_mut(&parent)
        {
            *left -= 1;
            if *left == 0 {
                ready.push(age(entries[&parent]));
            }
        }
    }
}

/// Deletes what was planned; `on_deleted` is told each backup when it is gone, `stop` asked before each few.
///
/// Errors as of [`plan`], when the store has changed meanwhile; [`ErrorKind::Target`] when another run writes or deletes one
/// of the backups, or the store is read-only; [`ErrorKind::Interrupted`] when told to stop. The backups of which
/// `on_deleted` was not told are there, whole, except perhaps for the first of them: when an error says so, it is gone and the
/// next run removes its files.
pub fn delete<'t>(
    target: impl Into<Target<'t>>,
    plan: &Plan,
    options: &DeleteOptions,
    stop: &dyn Fn() -> bool,
    on_deleted: &mut dyn FnMut(&DoomedBackup),
) -> Result<()> {
    let target = target.into();
    let remover = Removal::open(target, options.hook.clone())?;
    remover.clean_up()?;
    for shown in plan.backups.chunks(LOCKED_MAX) {
        let ids: Vec<BackupId> = shown.iter().map(|backup| backup.entry.id.clone()).collect();
        let mut locks = ids.iter().map(|id| remover.lock(id)).collect::<Result<Vec<_>>>()?;
        plan.catalog.rescan()?;
        // All that build on these were before them in the plan; whatever came since is refused here.
        let now = DeleteOptions { cascade: false, ..options.clone() };
        let (now, _) = doomed(&plan.catalog, target, &remover, &ids, &now)?;
        for backup in now {
            if stop() {
                return Err(Error::new(ErrorKind::Interrupted, "interrupted; the other backups are there"));
            }
            let index = ids.iter().position(|id| *id == backup.entry.id);
            let Some((lock, shown)) = index.and_then(|i| Some((locks.get_mut(i)?, shown.get(i)?))) else {
                continue;
            };
            delete_one(lock, shown, &backup)?;
            on_deleted(&backup);
        }
    }
    Ok(())
}

fn delete_one(lock: &mut Lock<'_>, shown: &DoomedBackup, backup: &DoomedBackup) -> Result<()> {
    let documents = |backup: &DoomedBackup| -> Vec<(ObjectName, Option<Identity>)> {
        let first = |copy: &Document| copy.files.first().map(|(_, identity)| *identity);
        backup.copies.iter().map(|copy| (copy.metadata_name.clone(), first(copy))).collect()
    };
    if documents(shown) != documents(backup) {
        let message = format!("backup {} has changed since it was looked at", backup.entry.id);
        return Err(Error::new(ErrorKind::Target, message));
    }
    // What stands behind another document first, so that no other backup of the id appears in between.
    for copy in backup.copies.iter().rev() {
        let (folder, prefix) = copy.place();
        lock.remove(&Doomed { folder, prefix, files: &copy.files })?;
    }
    Ok(())
}

/// What [`remove_leftovers`] did.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Backups of which the deletion was begun by a run that was killed, and is finished now.
    pub deleted: Vec<BackupId>,
    /// How many runs' leftovers were removed, these among them.
    pub runs: u64,
}

/// Removes what killed runs of this program left, and finishes the deletions that they began. What belongs to a living run
/// or was left by others is not touched.
pub fn remove_leftovers<'t>(target: impl Into<Target<'t>>) -> Result<Leftovers> {
    let (deleted, runs) = Removal::open(target.into(), None)?.clean_up()?;
    Ok(Leftovers { deleted, runs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ObjectStat, ObjectVersion, Ownership};

    /// `(id, parent, day)`; an empty parent is none.
    fn snapshot(backups: &[(&str, &str, u8)]) -> Snapshot {
        let entry = |&(id, parent, day): &(&str, &str, u8)| {
            Arc::new(Entry {
                id: BackupId::parse(id).unwrap(),
                volume_id: None,
                parent_id: BackupId::parse(parent).ok(),
                created_at: Some(format!("2024-03-{day:02}T00:00:00Z").parse().unwrap()),
                name: None,
                description: None,
                volume_name: None,
                volume_size_gib: None,
                container: String::new(),
                prefix: String::new(),
                object_count: 0,
                metadata_name: ObjectName::parse(id).unwrap(),
                metadata_stat: ObjectStat {
                    len_bytes: 0,
                    version: ObjectVersion("".into()),
                    modified: None,
                    owner: Ownership { mode: 0, uid: 0, gid: 0 },
                },
                problem: None,
            })
        };
        Snapshot::new(backups.iter().map(entry).collect())
    }

    fn order(backups: &[(&str, &str, u8)], id: &str) -> String {
        let snapshot = snapshot(backups);
        let wanted = wanted(&snapshot, &[BackupId::parse(id).unwrap()], true).unwrap();
        let order = in_order(&snapshot, &wanted);
        order.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn children_go_before_parents_and_else_the_newest_first() {
        let tree = [("a", "", 1), ("b", "a", 2), ("c", "a", 3), ("d", "b", 4), ("other", "", 5)];
        assert_eq!(order(&tree, "a"), "d c b a");
        assert_eq!(order(&tree, "b"), "d b");
        // A clock that went backwards makes children older than their parents.
        assert_eq!(order(&[("a", "", 9), ("b", "a", 8), ("c", "b", 7)], "a"), "c b a");
        // Backups that build on each other, one of them also on nothing but itself.
        assert_eq!(order(&[("a", "b", 1), ("b", "a", 2), ("c", "b", 3), ("d", "d", 4)], "a"), "c b a");
        assert_eq!(order(&[("d", "d", 4)], "d"), "d");
    }

    #[test]
    fn children_are_named_unless_they_go_too() {
        let ids = |ids: &[&str]| ids.iter().map(|id| BackupId::parse(id).unwrap()).collect::<Vec<_>>();
        let tree = snapshot(&[("a", "", 1), ("b", "a", 2), ("c", "a", 3)]);
        let error = wanted(&tree, &ids(&["a"]), false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().ends_with("build on: b, c"), "{error}");
        let error = wanted(&tree, &ids(&["a", "b"]), false).unwrap_err();
        assert!(error.to_string().ends_with("build on: c"), "{error}");
        assert_eq!(wanted(&tree, &ids(&["c", "a", "b"]), false).unwrap().len(), 3);
        assert_eq!(wanted(&tree, &ids(&["x"]), true).unwrap_err().kind(), ErrorKind::BackupNotFound);
        let many: Vec<_> = (10..30).map(|n| (format!("b{n}"), "a".to_owned())).collect();
        let mut many: Vec<_> = many.iter().map(|(id, parent)| (id.as_str(), parent.as_str(), 1)).collect();
        many.push(("a", "", 1));
        let error = wanted(&snapshot(&many), &ids(&["a"]), false).unwrap_err();
        assert!(error.to_string().ends_with("b17, 12 more"), "{error}");
    }
}
