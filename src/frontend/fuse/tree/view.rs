//! The tree of one scan of the store.

use std::sync::Arc;
use std::time::SystemTime;

use super::super::errno::{self, Errno};
use super::super::namespace::{Namespace, Node, Opens, Row};
use super::Answer;
use crate::catalog::{Entry, Snapshot};
use crate::error::ErrorKind;
use crate::types::BackupId;

/// One scan of the store and its tree.
pub(super) struct View {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) namespace: Arc<Namespace>,
    /// When the mount first saw this tree.
    pub(super) changed_at: SystemTime,
}

impl View {
    pub(super) fn new(snapshot: Arc<Snapshot>, last: Option<&View>) -> Self {
        let namespace = Namespace::new(snapshot.entries().map(|entry| Row {
            id: entry.id.clone(),
            volume_id: entry.volume_id.clone(),
            volume_name: entry.volume_name.clone(),
            created_at: entry.created_at,
            version: entry.metadata_stat.version.clone(),
            // What could not be read for the store's sake may be whole: whoever copies the mount must not take it for gone.
            usable: entry.problem.as_ref().is_none_or(|problem| errno::opens(problem) == Opens::Unreachable),
        }));
        match last {
            Some(last) if *last.namespace == namespace => {
                Self { snapshot, namespace: Arc::clone(&last.namespace), changed_at: last.changed_at }
            }
            _ => Self { snapshot, namespace: Arc::new(namespace), changed_at: SystemTime::now() },
        }
    }

    /// The entry of a backup that `node` belongs to, if the tree still holds the node.
    pub(super) fn entry_of(&self, node: &Node, id: &BackupId) -> Answer<Arc<Entry>> {
        let entry = self.snapshot.get(id.as_str()).filter(|_| self.namespace.contains(node));
        entry.cloned().ok_or(Errno::of(ErrorKind::BackupNotFound))
    }
}
