//! One thing in the tree.
//!
//! Invariant: a node holds all that its content depends on, so that other content is another node.

use crate::store::ObjectVersion;
use crate::types::{BackupId, VolumeId};

/// One thing in the tree. Equal nodes have equal content (except for folders and [`Node::Document`]).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Node {
    /// The mount's root.
    Root,
    /// `/backups`
    Backups,
    /// `/volumes`
    Volumes,
    /// `/names`
    Names,
    /// `/backups/<id>`
    Backup(BackupId),
    /// `/backups/<id>/volume.img` of one version of the backup.
    Image(BackupId, ObjectVersion),
    /// `/backups/<id>/metadata.json`
    Document(BackupId),
    /// `/volumes/<id>`
    Volume(VolumeId),
    /// `/volumes/<id>/<name>`, a link to a backup.
    BackupLink {
        /// The folder.
        volume: VolumeId,
        /// The name in it.
        name: String,
        /// Where it leads.
        backup: BackupId,
    },
    /// `/names/<name>`, a link to a volume.
    NameLink {
        /// The name.
        name: String,
        /// Where it leads.
        volume: VolumeId,
    },
}

/// What kind of file a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A folder.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
}

impl Node {
    /// What kind of file it is.
    pub fn kind(&self) -> Kind {
        match self {
            Node::Root | Node::Backups | Node::Volumes | Node::Names | Node::Backup(_) | Node::Volume(_) => {
                Kind::Directory
            }
            Node::Image(..) | Node::Document(_) => Kind::File,
            Node::BackupLink { .. } | Node::NameLink { .. } => Kind::Link,
        }
    }

    /// Where a link leads, relative to its own folder; `None` for other nodes.
    pub fn target(&self) -> Option<String> {
        match self {
            Node::BackupLink { backup, .. } => Some(format!("../../backups/{backup}")),
            Node::NameLink { volume, .. } => Some(format!("../volumes/{volume}")),
            _ => None,
        }
    }

    /// The folder that a folder stands in; the root stands in itself.
    pub fn parent(&self) -> Node {
        match self {
            Node::Root | Node::Backups | Node::Volumes | Node::Names => Node::Root,
            Node::Backup(_) => Node::Backups,
            Node::Volume(_) => Node::Volumes,
            Node::Image(id, _) | Node::Document(id) => Node::Backup(id.clone()),
            Node::BackupLink { volume, .. } => Node::Volume(volume.clone()),
            Node::NameLink { .. } => Node::Names,
        }
    }
}

pub(super) fn backup_link(volume: &VolumeId, name: &str, backup: &BackupId) -> Node {
    Node::BackupLink { volume: volume.clone(), name: name.to_owned(), backup: backup.clone() }
}

pub(super) fn name_link(name: &str, volume: &VolumeId) -> Node {
    Node::NameLink { name: name.to_owned(), volume: volume.clone() }
}
