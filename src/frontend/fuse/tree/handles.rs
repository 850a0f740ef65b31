//! What is open, and by which number.
//!
//! Invariant: all that have one node open at a time read the same bytes from the same source.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fuser::BackingId;

use super::super::errno::Errno;
use super::super::hydrated::Backing;
use super::super::namespace::Node;
use super::{Answer, lock};
use crate::catalog::Entry;
use crate::image::Image;

/// An open file or folder.
pub(super) enum Handle {
    Image { node: Node, entry: Arc<Entry>, image: Arc<Image>, backing: Backing },
    Document { node: Node, text: Vec<u8> },
    Folder { node: Node, children: Vec<(String, Node)> },
}

/// An opened file, to be closed with [`Tree::release`](super::Tree::release).
pub struct Opened {
    /// Names this opening.
    pub number: u64,
    pub(super) handle: Arc<Handle>,
}

/// Where the bytes of an opened file come from.
pub enum Source<'o> {
    /// From us; the kernel may keep its pages for good.
    Cached,
    /// The same; what the kernel has kept of it so far is to be forgotten.
    CachedAnew,
    /// From us; they were made for this one opening.
    Uncached,
    /// From a file that the kernel reads.
    Passthrough(&'o BackingId),
}

/// All that are open.
pub(super) struct Handles {
    open: Mutex<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
}

impl Default for Handles {
    fn default() -> Self {
        Self { open: Mutex::default(), next: AtomicU64::new(1) }
    }
}

impl Handles {
    /// Gives a handle a number. All opens of an image share one handle, that of the first, because the kernel wants them
    /// to have one source. Whether this is the first.
    pub(super) fn keep(&self, handle: Arc<Handle>) -> (Opened, bool) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut handles = lock(&self.open);
        let first = match &*handle {
            Handle::Image { node, .. } => find(&handles, node),
            Handle::Document { .. } | Handle::Folder { .. } => None,
        };
        let is_first = first.is_none();
        let handle = first.unwrap_or(handle);
        handles.insert(number, handle.clone());
        (Opened { number, handle }, is_first)
    }

    /// How many files and folders are open.
    pub(super) fn count(&self) -> usize {
        lock(&self.open).len()
    }

    /// What has this number.
    pub(super) fn get(&self, handle: u64) -> Answer<Arc<Handle>> {
        lock(&self.open).get(&handle).cloned().ok_or(Errno(libc::EBADF))
    }

    /// An open handle of an image, if there is one. There are as many handles as open files, so looking through them is
    /// cheap next to a request.
    pub(super) fn opened(&self, node: &Node) -> Option<Arc<Handle>> {
        if !matches!(node, Node::Image(..)) {
            return None;
        }
        find(&lock(&self.open), node)
    }

    /// Closes what has this number.
    pub(super) fn close(&self, handle: u64) -> Answer<()> {
        // Dropped outside the lock: closing an image may cost I/O.
        let closed = lock(&self.open).remove(&handle);
        closed.map(drop).ok_or(Errno(libc::EBADF))
    }
}

impl Opened {
    /// Where its bytes come from; the same for all that have the same node open at a time.
    pub fn source(&self) -> Source<'_> {
        match &*self.handle {
            Handle::Image { backing, image, .. } => match backing.id() {
                Some(id) => Source::Passthrough(id),
                // Whoever opens it anew gets what was repaired meanwhile, and not the zeros of before.
                None if image.take_stand_ins() => Source::CachedAnew,
                None => Source::Cached,
            },
            Handle::Document { .. } | Handle::Folder { .. } => Source::Uncached,
        }
    }
}

impl Handle {
    pub(super) fn node(&self) -> &Node {
        match self {
            Handle::Image { node, .. } | Handle::Document { node, .. } | Handle::Folder { node, .. } => node,
        }
    }
}

fn find(handles: &HashMap<u64, Arc<Handle>>, node: &Node) -> Option<Arc<Handle>> {
    handles.values().find(|handle| handle.node() == node).cloned()
}
