//! The mounted tree: which names stand where, and where the links lead.
//!
//! ```text
//! /backups/<backup-id>/volume.img
//! /backups/<backup-id>/metadata.json
//! /volumes/<volume-id>/<created_at>  -> ../../backups/<backup-id>
//! /volumes/<volume-id>/latest        -> ../../backups/<the newest usable one>
//! /names/<volume display name>       -> ../volumes/<volume-id>
//! ```
//!
//! Problem: a store changes under the mount, and the kernel caches pages and links by inode. Idea: a [`Node`] holds
//! everything that its content depends on (an image the version of its metadata, a link its target), so a change makes
//! another node, never the same one with other content. A [`Namespace`] is the tree of one scan; it is rebuilt, not edited.
//!
//! Invariants: no name is given twice in a folder; every name is one path component; a link never leads out of the mount.
//! Pure: no I/O, no clock, no FUSE. Whether an image opens is asked through a function, and only where the answer shows.

mod node;

use std::collections::BTreeMap;

use jiff::Timestamp;

pub use self::node::{Kind, Node};
use self::node::{backup_link, name_link};
use super::names::{self, Wanted};
use crate::store::ObjectVersion;
use crate::types::{BackupId, VolumeId};

/// The name of the image in a backup's folder.
pub const IMAGE_NAME: &str = "volume.img";
/// The name of the description in a backup's folder.
pub const DOCUMENT_NAME: &str = "metadata.json";
/// The link to a volume's newest usable backup.
pub const LATEST_NAME: &str = "latest";

/// What the tree needs to know of a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The backup; unique among the rows.
    pub id: BackupId,
    /// Its volume; without one it is shown in `/backups` only.
    pub volume_id: Option<VolumeId>,
    /// The volume's display name as this backup tells it, unsafe as it may be.
    pub volume_name: Option<String>,
    /// When it was made.
    pub created_at: Option<Timestamp>,
    /// Version of its `_metadata` object.
    pub version: ObjectVersion,
    /// Its metadata shows nothing that makes it unusable.
    pub usable: bool,
}

/// Whether an image opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opens {
    /// It does.
    Yes,
    /// The backup is damaged or incomplete: it has no image.
    No,
    /// The store does not answer, or does not let us look. The image is there, and using it says why it cannot be read.
    Unreachable,
}

/// A backup in the tree.
#[derive(PartialEq, Eq, Debug)]
struct BackupNode {
    version: ObjectVersion,
    usable: bool,
}

/// A volume's folder.
#[derive(PartialEq, Eq, Default, Debug)]
struct VolumeNode {
    /// `created_at` link to backup.
    links: BTreeMap<String, BackupId>,
    /// All backups, newest first.
    newest_first: Vec<BackupId>,
}

/// The tree as of one scan of the store.
#[derive(PartialEq, Eq, Default, Debug)]
pub struct Namespace {
    backups: BTreeMap<BackupId, BackupNode>,
    volumes: BTreeMap<VolumeId, VolumeNode>,
    names: BTreeMap<String, VolumeId>,
}

impl Namespace {
    /// The tree of these backups, in whatever order they come.
    pub fn new(rows: impl IntoIterator<Item = Row>) -> Self {
        let mut rows: Vec<Row> = rows.into_iter().collect();
        // Newest first; one without a time counts as older than all others.
        rows.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));

        let mut by_volume: BTreeMap<&VolumeId, Vec<&Row>> = BTreeMap::new();
        for row in &rows {
            if let Some(volume) = &row.volume_id {
                by_volume.entry(volume).or_default().push(row);
            }
        }
        let volumes = by_volume.iter().map(|(id, rows)| ((*id).clone(), VolumeNode::new(rows))).collect();
        let names = volume_names(&by_volume);
        let backups = rows
            .iter()
            .map(|row| (row.id.clone(), BackupNode { version: row.version.clone(), usable: row.usable }))
            .collect();
        Self { backups, volumes, names }
    }

    /// What `name` is in the folder `parent`. An image is found where its metadata allows one; that it also opens
    /// shows when it is used.
    pub fn lookup(&self, parent: &Node, name: &str, opens: &dyn Fn(&BackupId) -> Opens) -> Option<Node> {
        match parent {
            Node::Root => match name {
                "backups" => Some(Node::Backups),
                "volumes" => Some(Node::Volumes),
                "names" => Some(Node::Names),
                _ => None,
            },
            Node::Backups => self.backups.get_key_value(name).map(|(id, _)| Node::Backup(id.clone())),
            Node::Volumes => self.volumes.get_key_value(name).map(|(id, _)| Node::Volume(id.clone())),
            Node::Names => self.names.get(name).map(|volume| name_link(name, volume)),
            Node::Backup(id) => {
                let backup = self.backups.get(id)?;
                match name {
                    IMAGE_NAME if backup.usable => Some(Node::Image(id.clone(), backup.version.clone())),
                    DOCUMENT_NAME => Some(Node::Document(id.clone())),
                    _ => None,
                }
            }
            Node::Volume(id) if name == LATEST_NAME => self.latest(id, opens),
            Node::Volume(id) => {
                self.volumes.get(id)?.links.get(name).map(|backup| backup_link(id, name, backup))
            }
            Node::Image(..) | Node::Document(_) | Node::BackupLink { .. } | Node::NameLink { .. } => None,
        }
    }

    /// The names in the folder `parent` with their nodes, in an order that stays; `None` when there is no such folder.
    pub fn children(&self, parent: &Node, opens: &dyn Fn(&BackupId) -> Opens) -> Option<Vec<(String, Node)>> {
        let children = match parent {
            Node::Root => vec![
                ("backups".to_owned(), Node::Backups),
                ("names".to_owned(), Node::Names),
                ("volumes".to_owned(), Node::Volumes),
            ],
            Node::Backups => {
                self.backups.keys().map(|id| (id.to_string(), Node::Backup(id.clone()))).collect()
            }
            Node::Volumes => {
                self.volumes.keys().map(|id| (id.to_string(), Node::Volume(id.clone()))).collect()
            }
            Node::Names => {
                self.names.iter().map(|(name, volume)| (name.clone(), name_link(name, volume))).collect()
            }
            Node::Backup(id) => {
                let backup = self.backups.get(id)?;
                let mut children = vec![(DOCUMENT_NAME.to_owned(), Node::Document(id.clone()))];
                if backup.usable && opens(id) != Opens::No {
                    let image = Node::Image(id.clone(), backup.version.clone());
                    children.push((IMAGE_NAME.to_owned(), image));
                }
                children
            }
            Node::Volume(id) => {
                let volume = self.volumes.get(id)?;
                let links = volume.links.iter();
                let mut children: Vec<_> =
                    links.map(|(name, backup)| (name.clone(), backup_link(id, name, backup))).collect();
                children.extend(self.latest(id, opens).map(|latest| (LATEST_NAME.to_owned(), latest)));
                children
            }
            Node::Image(..) | Node::Document(_) | Node::BackupLink { .. } | Node::NameLink { .. } => {
                return None;
            }
        };
        Some(children)
    }

    /// Whether the tree still holds exactly this node. `latest` counts while its backup is in the volume.
    pub fn contains(&self, node: &Node) -> bool {
        match node {
            Node::Root | Node::Backups | Node::Volumes | Node::Names => true,
            Node::Backup(id) | Node::Document(id) => self.backups.contains_key(id),
            Node::Image(id, version) => {
                self.backups.get(id).is_some_and(|backup| backup.usable && backup.version == *version)
            }
            Node::Volume(id) => self.volumes.contains_key(id),
            Node::BackupLink { volume, name, backup } => self.volumes.get(volume).is_some_and(|volume| {
                volume.links.get(name) == Some(backup)
                    || (name == LATEST_NAME && volume.newest_first.contains(backup))
            }),
            Node::NameLink { name, volume } => self.names.get(name) == Some(volume),
        }
    }

    /// The backups of a volume, newest first.
    pub fn backups_of(&self, volume: &VolumeId) -> &[BackupId] {
        self.volumes.get(volume).map_or(&[], |volume| &volume.newest_first)
    }

    /// How many folders stand in this folder.
    pub fn subfolders(&self, folder: &Node) -> usize {
        match folder {
            Node::Root => 3,
            Node::Backups => self.backups.len(),
            Node::Volumes => self.volumes.len(),
            _ => 0,
        }
    }

    /// How many nodes the tree has, `latest` links and images counted as if all were there.
    pub fn node_count(&self) -> usize {
        let links: usize = self.volumes.values().map(|volume| volume.links.len() + 2).sum();
        4 + 3 * self.backups.len() + links + self.names.len()
    }

    /// The newest that opens, as far as the store tells: an older one in the place of what cannot be read now would be old data, and nobody would
    /// know.
    fn latest(&self, volume: &VolumeId, opens: &dyn Fn(&BackupId) -> Opens) -> Option<Node> {
        let usable = |id: &&BackupId| {
            self.backups.get(*id).is_some_and(|backup| backup.usable) && opens(id) != Opens::No
        };
        let newest = self.backups_of(volume).iter().find(usable)?;
        Some(backup_link(volume, LATEST_NAME, newest))
    }
}

impl VolumeNode {
    fn new(newest_first: &[&Row]) -> Self {
        let wanted: Vec<_> = newest_first
            .iter()
            .map(|row| Wanted {
                base: row.created_at.map_or_else(|| "undated".to_owned(), names::timestamp),
                id: row.id.as_str(),
                with_id: row.created_at.is_none(),
            })
            .collect();
        let named = names::unique(&wanted).into_iter().zip(newest_first);
        Self {
            links: named.filter_map(|(name, row)| Some((name?, row.id.clone()))).collect(),
            newest_first: newest_first.iter().map(|row| row.id.clone()).collect(),
        }
    }
}

/// Every volume's display name, from its newest backup that has one.
fn volume_names(by_volume: &BTreeMap<&VolumeId, Vec<&Row>>) -> BTreeMap<String, VolumeId> {
    let based: Vec<(&VolumeId, String)> = by_volume
        .iter()
        .filter_map(|(id, newest_first)| {
            let base = newest_first.iter().find_map(|row| names::component(row.volume_name.as_deref()?))?;
            Some((*id, base))
        })
        .collect();
    let wanted: Vec<_> = based
        .iter()
        .map(|(id, base)| Wanted { base: base.clone(), id: id.as_str(), with_id: false })
        .collect();
    let named = names::unique(&wanted).into_iter().zip(based);
    named.filter_map(|(name, (id, _))| Some((name?, id.clone()))).collect()
}

#[cfg(test)]
mod tests;
