//! What requests mean: the namespace, the inodes and the open files over one catalog, without FUSE's requests and replies.
//!
//! Problem: the store changes while files are open and names are cached. Idea: each request works on one [`View`], the tree
//! of one scan; open files hold their image (or their text), so they stay what they were when their backup is replaced
//! or deleted.
//!
//! Staleness: looking up or listing what a scan can change asks the catalog to scan again (it limits how often). When the
//! store does not answer, names that were known still resolve, so that running readers go on, and listings fail: an old
//! listing would deny that something is wrong.
//!
//! Locks are leaves: none is held while the catalog or an image works.

mod failures;
mod handles;
mod view;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::failures::Failures;
use self::handles::{Handle, Handles};
pub use self::handles::{Opened, Source};
use self::view::View;
use super::attr::{Attr, OwnerOverride, strictest, time_of};
use super::errno::{self, Errno};
use super::hydrated::{Hydrated, Register};
use super::inodes::Inodes;
use super::names::{NAME_BYTES_MAX, timestamp};
use super::namespace::{Kind, Node, Opens};
use crate::catalog::{Catalog, Entry, Snapshot};
use crate::error::Error;
use crate::frontend::document::mounted_document;
use crate::image::{Image, OnDamage};
use crate::store::Ownership;
use crate::types::BackupId;

/// Most bytes served in one read; the kernel asks for at most 1 MiB.
const READ_BYTES_MAX: usize = 16 << 20;

/// Prefix of our extended attributes.
const XATTR_PREFIX: &str = "user.cinder.";

/// A request's outcome.
pub type Answer<T> = Result<T, Errno>;

/// One entry of a listing with its attributes.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The name in its folder.
    pub name: String,
    /// What `stat` shows, as far as it is known.
    pub attr: Attr,
    /// Whether the attributes may be believed.
    pub known: bool,
    /// Whether the kernel holds a reference once it has this.
    pub counted: bool,
}

/// What `statfs` shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Totals {
    /// Sum of the sizes of all volumes, in bytes.
    pub bytes: u64,
    /// Number of files, folders and links.
    pub files: u64,
}

/// The mounted tree.
pub struct Tree {
    catalog: Arc<Catalog>,
    owner: OwnerOverride,
    view: Mutex<Arc<View>>,
    inodes: Mutex<Inodes>,
    handles: Handles,
    failures: Failures,
    hydrated: Option<Hydrated>,
    on_damage: OnDamage,
}

impl Tree {
    /// The tree of a catalog.
    pub fn new(catalog: Arc<Catalog>, owner: OwnerOverride) -> Self {
        let view = View::new(catalog.snapshot(), None);
        Self {
            catalog,
            owner,
            view: Mutex::new(Arc::new(view)),
            inodes: Mutex::default(),
            handles: Handles::default(),
            failures: Failures::default(),
            hydrated: None,
            on_damage: OnDamage::Error,
        }
    }

    /// The same tree, which uses images that lie whole in the cache directory.
    pub fn hydrated(self, hydrated: Hydrated) -> Self {
        Self { hydrated: Some(hydrated), ..self }
    }

    /// The same tree, with what readers get in place of lost blocks.
    pub fn on_damage(self, on_damage: OnDamage) -> Self {
        Self { on_damage, ..self }
    }

    /// Finds `name` in a folder and takes a reference for the kernel, which gives it back with [`Tree::forget`].
    pub fn lookup(&self, parent: u64, name: &str) -> Answer<Attr> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Errno(libc::ENAMETOOLONG));
        }
        let parent = self.node(parent)?;
        if parent.kind() != Kind::Directory {
            return Err(Errno(libc::ENOTDIR));
        }
        let view = self.view_for(&parent).unwrap_or_else(|_| self.view());
        let opens = |id: &BackupId| self.opens(&view, id);
        let node = view.namespace.lookup(&parent, name, &opens).ok_or(Errno(libc::ENOENT))?;
        let attr = match self.attr(&view, &node) {
            // What a listing would not show is not there.
            Err(_) if matches!(&node, Node::Image(id, _) if opens(id) == Opens::No) => {
                return Err(Errno(libc::ENOENT));
            }
            attr => attr?,
        };
        Ok(Attr { ino: lock(&self.inodes).remember(&node), ..attr })
    }

    /// Gives references back.
    pub fn forget(&self, ino: u64, lookups: u64) {
        lock(&self.inodes).forget(ino, lookups);
    }

    /// What `stat` shows of a node.
    pub fn getattr(&self, ino: u64, handle: Option<u64>) -> Answer<Attr> {
        let node = self.node(ino)?;
        let view = self.view();
        let attr = match handle.and_then(|handle| self.handles.get(handle).ok()) {
            Some(handle) if handle.node() == &node => self.handle_attr(&view, &handle),
            _ => self.attr(&view, &node),
        };
        Ok(Attr { ino, ..attr? })
    }

    /// Where a link leads.
    pub fn readlink(&self, ino: u64) -> Answer<String> {
        self.node(ino)?.target().ok_or(Errno(libc::EINVAL))
    }

    /// Opens a file for reading. `register` is called when the kernel could read another file in its place.
    pub fn open(&self, ino: u64, register: Register<'_>) -> Answer<Opened> {
        let node = self.node(ino)?;
        let view = self.view();
        match &node {
            Node::Image(id, _) => {
                // A handle of the same node serves the same bytes, also when the store has lost them by now.
                let handle = match self.handles.opened(&node) {
                    Some(handle) => handle,
                    None => {
                        let entry = view.entry_of(&node, id)?;
                        let image = self.image(&entry)?;
                        let hydrated = self.hydrated.as_ref();
                        let backing = hydrated.map(|hydrated| hydrated.first_open(&image, register));
                        let backing = backing.unwrap_or_default();
                        Arc::new(Handle::Image { node, entry, image, backing })
                    }
                };
                let (opened, is_first) = self.handles.keep(handle);
                if let (Some(hydrated), Handle::Image { image, backing, .. }) =
                    (&self.hydrated, &*opened.handle)
                {
                    hydrated.lend(image, backing, is_first);
                }
                Ok(opened)
            }
            Node::Document(id) => {
                let text = self.document(&view.entry_of(&node, id)?).into_bytes();
                Ok(self.handles.keep(Arc::new(Handle::Document { node, text })).0)
            }
            _ => Err(Errno(if node.kind() == Kind::Directory { libc::EISDIR } else { libc::ELOOP })),
        }
    }

    /// Reads at `offset` into `buf`, which is cut to what was read: less than `len` only at the end.
    pub fn read(&self, handle: u64, offset: u64, len: usize, buf: &mut Vec<u8>) -> Answer<()> {
        let len = len.min(READ_BYTES_MAX);
        match &*self.handles.get(handle)? {
            Handle::Image { image, .. } => {
                image.read_ahead(offset..offset.saturating_add(len as u64));
                buf.resize(len, 0);
                let n = image.read_as(self.on_damage, buf, offset)?;
                buf.truncate(n);
            }
            Handle::Document { text, .. } => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                buf.clear();
                buf.extend_from_slice(&text[start..text.len().min(start.saturating_add(len))]);
            }
            Handle::Folder { .. } => return Err(Errno(libc::EISDIR)),
        }
        Ok(())
    }

    /// Whether [`read`](Self::read) would answer without asking the store.
    pub fn is_at_hand(&self, handle: u64, offset: u64, len: usize) -> bool {
        match self.handles.get(handle).as_deref() {
            Ok(Handle::Image { image, .. }) => image.is_at_hand(offset..offset.saturating_add(len as u64)),
            _ => true,
        }
    }

    /// The next data (`data`) or hole at or after `offset`, as `SEEK_DATA` and `SEEK_HOLE` define them.
    pub fn seek(&self, handle: u64, offset: i64, data: bool) -> Answer<u64> {
        let none = Errno(libc::ENXIO);
        let offset = u64::try_from(offset).map_err(|_| none)?;
        match &*self.handles.get(handle)? {
            Handle::Image { image, .. } if offset < image.len_bytes() => {
                if data {
                    image.seek_data(offset)?.ok_or(none)
                } else {
                    Ok(image.seek_hole(offset)?)
                }
            }
            Handle::Document { text, .. } if offset < text.len() as u64 => {
                Ok(if data { offset } else { text.len() as u64 })
            }
            Handle::Image { .. } | Handle::Document { .. } => Err(none),
            Handle::Folder { .. } => Err(Errno(libc::EINVAL)),
        }
    }

    /// Opens a folder: its listing is made now and stays the same until it is closed.
    pub fn opendir(&self, ino: u64) -> Answer<u64> {
        let node = self.node(ino)?;
        if node.kind() != Kind::Directory {
            return Err(Errno(libc::ENOTDIR));
        }
        let view = self.view_for(&node)?;
        let children = view
            .namespace
            .children(&node, &|id| self.opens(&view, id))
            .ok_or(Errno(if view.namespace.contains(&node) { libc::ENOTDIR } else { libc::ESTALE }))?;
        Ok(self.handles.keep(Arc::new(Handle::Folder { node, children })).0.number)
    }

    /// The `index`th entry of an open folder, `.` and `..` first: its number, kind and name.
    pub fn entry(&self, handle: u64, index: u64) -> Answer<Option<(u64, Kind, String)>> {
        let handle = self.handles.get(handle)?;
        let Handle::Folder { node, children } = &*handle else { return Err(Errno(libc::ENOTDIR)) };
        let number = |node: &Node| lock(&self.inodes).number(node);
        Ok(match index {
            0 => Some((number(node), Kind::Directory, ".".to_owned())),
            1 => Some((number(&node.parent()), Kind::Directory, "..".to_owned())),
            _ => {
                children.get(child_index(index)).map(|(name, node)| (number(node), node.kind(), name.clone()))
            }
        })
    }

    /// The attributes of the `index`th entry. Except for `.` and `..` a reference is taken for the kernel, as
    /// [`Tree::lookup`] takes one.
    pub fn entry_attr(&self, handle: u64, index: u64) -> Answer<Option<Listed>> {
        let Some((ino, kind, name)) = self.entry(handle, index)? else { return Ok(None) };
        let unknown = Attr::unknown(ino, kind);
        let handle = self.handles.get(handle)?;
        let Handle::Folder { children, .. } = &*handle else { return Err(Errno(libc::ENOTDIR)) };
        if index < 2 {
            return Ok(Some(Listed { name, attr: unknown, known: false, counted: false }));
        }
        let Some((_, node)) = children.get(child_index(index)) else { return Ok(None) };
        let (attr, known) = self.attr(&self.view(), node).map_or((unknown, false), |attr| (attr, true));
        let ino = lock(&self.inodes).remember(node);
        Ok(Some(Listed { name, attr: Attr { ino, ..attr }, known, counted: true }))
    }

    /// Closes a file or folder.
    pub fn release(&self, handle: u64) -> Answer<()> {
        self.handles.close(handle)
    }

    /// What `statfs` shows.
    pub fn totals(&self) -> Totals {
        let view = self.view();
        // A volume counts once, with the size that its newest backup tells.
        let mut sizes = HashMap::new();
        for entry in view.snapshot.entries() {
            if let (Some(volume), Some(gib)) = (&entry.volume_id, entry.volume_size_gib) {
                let newest = sizes.entry(volume).or_insert((entry.created_at, gib));
                *newest = (*newest).max((entry.created_at, gib));
            }
        }
        let sizes = sizes.values().map(|(_, gib)| gib.saturating_mul(1 << 30));
        Totals { bytes: sizes.fold(0, u64::saturating_add), files: view.namespace.node_count() as u64 }
    }

    /// The extended attributes of a node, names and values.
    pub fn xattrs(&self, ino: u64) -> Answer<Vec<(String, String)>> {
        let node = self.node(ino)?;
        let (Node::Backup(id) | Node::Image(id, _) | Node::Document(id)) = &node else {
            return Ok(Vec::new());
        };
        let entry = match self.handles.opened(&node).as_deref() {
            Some(Handle::Image { entry, .. }) => Arc::clone(entry),
            _ => self.view().entry_of(&node, id)?,
        };
        let image = self.image(&entry).ok();
        let values = [
            ("backup_id", Some(entry.id.to_string())),
            ("volume_id", entry.volume_id.as_ref().map(ToString::to_string)),
            ("parent_id", entry.parent_id.as_ref().map(ToString::to_string)),
            ("created_at", entry.created_at.map(timestamp)),
            ("verified", image.as_ref().map(|image| image.verification().name().to_owned())),
            ("on_damage", image.map(|_| self.on_damage.name().to_owned())),
        ];
        let present = values.into_iter().filter_map(|(name, value)| Some((name, value?)));
        Ok(present.map(|(name, value)| (format!("{XATTR_PREFIX}{name}"), value)).collect())
    }

    fn node(&self, ino: u64) -> Answer<Node> {
        // The kernel only asks by numbers it holds; anything else is a file handle from before a remount.
        lock(&self.inodes).node(ino).cloned().ok_or(Errno(libc::ESTALE))
    }

    /// The tree as of the catalog's last scan.
    fn view(&self) -> Arc<View> {
        self.view_of(self.catalog.snapshot())
    }

    /// The tree to look into the folder `parent` with, scanned again where a scan can change what is in there.
    fn view_for(&self, parent: &Node) -> Result<Arc<View>, Error> {
        match parent {
            Node::Backups | Node::Volumes | Node::Names | Node::Volume(_) => {
                Ok(self.view_of(self.catalog.refresh()?))
            }
            _ => Ok(self.view()),
        }
    }

    fn view_of(&self, snapshot: Arc<Snapshot>) -> Arc<View> {
        let last = Arc::clone(&lock(&self.view));
        if Arc::ptr_eq(&last.snapshot, &snapshot) {
            return last;
        }
        let view = Arc::new(View::new(snapshot, Some(&last)));
        *lock(&self.view) = Arc::clone(&view);
        if !Arc::ptr_eq(&last.namespace, &view.namespace) {
            let (inodes, handles) = (lock(&self.inodes).count(), self.handles.count());
            tracing::debug!(inodes, handles, "the tree has changed");
        }
        view
    }

    fn opens(&self, view: &View, id: &BackupId) -> Opens {
        let Some(entry) = view.snapshot.get(id.as_str()) else { return Opens::No };
        match self.image(entry) {
            Ok(_) => Opens::Yes,
            Err(error) => errno::opens(&error),
        }
    }

    fn image(&self, entry: &Arc<Entry>) -> Result<Arc<Image>, Error> {
        self.failures.image(&self.catalog, entry)
    }

    fn document(&self, entry: &Arc<Entry>) -> String {
        let image = self.image(entry);
        let document = serde_json::Value::Object(mounted_document(entry, image.as_ref(), self.on_damage));
        format!("{document:#}\n")
    }

    fn handle_attr(&self, view: &View, handle: &Handle) -> Answer<Attr> {
        match handle {
            Handle::Image { entry, image, .. } => Ok(self.owner.image(entry, image)),
            Handle::Document { node: node @ Node::Document(id), text } => {
                let entry = view.entry_of(node, id)?;
                Ok(self.owner.file(&entry, text.len() as u64))
            }
            Handle::Document { node, .. } | Handle::Folder { node, .. } => self.attr(view, node),
        }
    }

    fn attr(&self, view: &View, node: &Node) -> Answer<Attr> {
        match node {
            Node::Root | Node::Backups | Node::Volumes => Ok(self.owner.folder(
                view.namespace.subfolders(node),
                view.changed_at,
                Ownership { mode: 0o444, uid: 0, gid: 0 },
            )),
            // The names come out of the metadata, so whoever may not read that of all backups may not read them.
            Node::Names => {
                let owner = strictest(view.snapshot.entries().map(|entry| entry.metadata_stat.owner));
                Ok(self.owner.folder(view.namespace.subfolders(node), view.changed_at, owner))
            }
            Node::Volume(id) => {
                let backups = view.namespace.backups_of(id);
                let entries: Vec<_> =
                    backups.iter().filter_map(|id| view.snapshot.get(id.as_str())).collect();
                let newest = entries.first().ok_or(Errno(libc::ESTALE))?;
                let owner = strictest(entries.iter().map(|entry| entry.metadata_stat.owner));
                Ok(self.owner.folder(view.namespace.subfolders(node), time_of(newest), owner))
            }
            Node::Backup(id) => {
                let entry = view.entry_of(node, id)?;
                Ok(self.owner.folder(
                    view.namespace.subfolders(node),
                    time_of(&entry),
                    entry.metadata_stat.owner,
                ))
            }
            Node::Image(id, _) => {
                // An open image keeps its attributes, also when the store has lost it by now.
                if let Some(Handle::Image { entry, image, .. }) = self.handles.opened(node).as_deref() {
                    return Ok(self.owner.image(entry, image));
                }
                let entry = view.entry_of(node, id)?;
                Ok(self.owner.image(&entry, &self.image(&entry)?))
            }
            Node::Document(id) => {
                let entry = view.entry_of(node, id)?;
                Ok(self.owner.file(&entry, self.document(&entry).len() as u64))
            }
            Node::BackupLink { backup, .. } => {
                let entry = view.entry_of(node, backup)?;
                Ok(self.owner.link(node, time_of(&entry), entry.metadata_stat.owner))
            }
            Node::NameLink { volume, .. } => {
                let newest = view.namespace.backups_of(volume).first().ok_or(Errno(libc::ESTALE))?;
                let entry = view.entry_of(node, newest)?;
                Ok(self.owner.link(node, time_of(&entry), entry.metadata_stat.owner))
            }
        }
    }
}

/// Where a listing's `index`th entry stands among the children, `.` and `..` left out.
fn child_index(index: u64) -> usize {
    usize::try_from(index.saturating_sub(2)).unwrap_or(usize::MAX)
}

/// Locks; a panic elsewhere left the tables usable, for each is changed by single calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
