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

use std::collections::BTreeMap;

use jiff::Timestamp;

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

    fn latest(&self, volume: &VolumeId, opens: &dyn Fn(&BackupId) -> Opens) -> Option<Node> {
        let usable = |id: &&BackupId| {
            self.backups.get(*id).is_some_and(|backup| backup.usable) && opens(id) == Opens::Yes
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

fn backup_link(volume: &VolumeId, name: &str, backup: &BackupId) -> Node {
    Node::BackupLink { volume: volume.clone(), name: name.to_owned(), backup: backup.clone() }
}

fn name_link(name: &str, volume: &VolumeId) -> Node {
    Node::NameLink { name: name.to_owned(), volume: volume.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, volume: &str, created_at: &str) -> Row {
        Row {
            id: BackupId::parse(id).unwrap(),
            volume_id: (!volume.is_empty()).then(|| VolumeId::parse(volume).unwrap()),
            volume_name: None,
            created_at: (!created_at.is_empty()).then(|| created_at.parse().unwrap()),
            version: ObjectVersion("1".into()),
            usable: true,
        }
    }

    fn named(mut row: Row, name: &str) -> Row {
        row.volume_name = Some(name.to_owned());
        row
    }

    fn all_open(_: &BackupId) -> Opens {
        Opens::Yes
    }

    /// All paths of the tree with what links lead to, as `path` or `path -> target`.
    fn paths(tree: &Namespace, opens: &dyn Fn(&BackupId) -> Opens) -> Vec<String> {
        fn walk(
            tree: &Namespace,
            opens: &dyn Fn(&BackupId) -> Opens,
            path: &str,
            node: &Node,
            out: &mut Vec<String>,
        ) {
            for (name, child) in tree.children(node, opens).unwrap_or_default() {
                assert_eq!(
                    tree.lookup(node, &name, opens).as_ref(),
                    Some(&child),
                    "lookup agrees with readdir"
                );
                assert!(tree.contains(&child));
                assert_eq!(child.parent(), *node);
                let path = format!("{path}/{name}");
                match child.target() {
                    Some(target) => out.push(format!("{path} -> {target}")),
                    None => out.push(path.clone()),
                }
                walk(tree, opens, &path, &child, out);
            }
        }
        let mut out = Vec::new();
        walk(tree, opens, "", &Node::Root, &mut out);
        out
    }

    #[test]
    fn the_whole_tree() {
        let tree = Namespace::new([
            named(row("b1", "v1", "2024-03-01T01:01:07Z"), "web"),
            named(row("b2", "v1", "2024-03-02T01:01:07.5Z"), "web/2"),
            row("b3", "", ""),
        ]);
        assert_eq!(
            paths(&tree, &all_open),
            [
                "/backups",
                "/backups/b1",
                "/backups/b1/metadata.json",
                "/backups/b1/volume.img",
                "/backups/b2",
                "/backups/b2/metadata.json",
                "/backups/b2/volume.img",
                "/backups/b3",
                "/backups/b3/metadata.json",
                "/backups/b3/volume.img",
                "/names",
                "/names/web_2 -> ../volumes/v1",
                "/volumes",
                "/volumes/v1",
                "/volumes/v1/2024-03-01T01:01:07Z -> ../../backups/b1",
                "/volumes/v1/2024-03-02T01:01:07Z -> ../../backups/b2",
                "/volumes/v1/latest -> ../../backups/b2",
            ]
        );
    }

    #[test]
    fn an_empty_store_has_the_three_folders() {
        let tree = Namespace::default();
        assert_eq!(paths(&tree, &all_open), ["/backups", "/names", "/volumes"]);
        for parent in [Node::Root, Node::Backups, Node::Volumes, Node::Names] {
            for name in ["", ".", "..", "x", "latest", IMAGE_NAME] {
                assert_eq!(tree.lookup(&parent, name, &all_open), None, "{parent:?} {name:?}");
            }
        }
    }

    #[test]
    fn two_backups_in_one_second_both_get_their_short_id() {
        let tree = Namespace::new([
            row("aaaaaaaa-1", "v", "2024-03-01T01:01:07.1Z"),
            row("bbbbbbbb-2", "v", "2024-03-01T01:01:07.9Z"),
            row("cccccccc-3", "v", "2024-03-01T01:01:08Z"),
            row("dddddddd-4", "other", "2024-03-01T01:01:07Z"),
        ]);
        let links: Vec<_> =
            paths(&tree, &all_open).into_iter().filter(|p| p.starts_with("/volumes/")).collect();
        assert_eq!(
            links,
            [
                "/volumes/other",
                "/volumes/other/2024-03-01T01:01:07Z -> ../../backups/dddddddd-4",
                "/volumes/other/latest -> ../../backups/dddddddd-4",
                "/volumes/v",
                "/volumes/v/2024-03-01T01:01:07Z-aaaaaaaa -> ../../backups/aaaaaaaa-1",
                "/volumes/v/2024-03-01T01:01:07Z-bbbbbbbb -> ../../backups/bbbbbbbb-2",
                "/volumes/v/2024-03-01T01:01:08Z -> ../../backups/cccccccc-3",
                "/volumes/v/latest -> ../../backups/cccccccc-3",
            ]
        );
    }

    #[test]
    fn undated_backups_are_named_by_id_and_are_never_newer_than_dated_ones() {
        let tree =
            Namespace::new([row("zzzzzzzz-9", "v", ""), row("aaaaaaaa-1", "v", "1971-01-01T00:00:00Z")]);
        let volume = Node::Volume(VolumeId::parse("v").unwrap());
        let names: Vec<_> = tree.children(&volume, &all_open).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["1971-01-01T00:00:00Z", "undated-zzzzzzzz", "latest"]);
        let latest = tree.lookup(&volume, LATEST_NAME, &all_open).unwrap();
        assert_eq!(latest.target().unwrap(), "../../backups/aaaaaaaa-1");
    }

    #[test]
    fn latest_is_the_newest_usable_backup() {
        let mut broken = row("b4", "v", "2024-01-04T00:00:00Z");
        broken.usable = false;
        let rows = [
            row("b1", "v", "2024-01-01T00:00:00Z"),
            row("b2", "v", "2024-01-02T00:00:00Z"),
            row("b3", "v", "2024-01-03T00:00:00Z"),
            broken,
        ];
        let tree = Namespace::new(rows);
        let volume = Node::Volume(VolumeId::parse("v").unwrap());
        let latest = |opens: &dyn Fn(&BackupId) -> Opens| {
            tree.lookup(&volume, LATEST_NAME, opens).and_then(|node| node.target())
        };
        assert_eq!(latest(&all_open).unwrap(), "../../backups/b3", "b4 has a problem");
        let b3_fails = |id: &BackupId| if id.as_str() == "b3" { Opens::No } else { Opens::Yes };
        assert_eq!(latest(&b3_fails).unwrap(), "../../backups/b2");
        let b3_away = |id: &BackupId| if id.as_str() == "b3" { Opens::Unreachable } else { Opens::Yes };
        assert_eq!(latest(&b3_away).unwrap(), "../../backups/b2");
        assert_eq!(latest(&|_| Opens::No), None);
        let names = tree.children(&volume, &|_| Opens::No).unwrap();
        assert_eq!(names.len(), 4, "no latest in the listing either");
        // Looking for the newest stops there: opening costs I/O.
        let asked = std::cell::RefCell::new(Vec::new());
        latest(&|id| {
            asked.borrow_mut().push(id.to_string());
            Opens::Yes
        });
        assert_eq!(*asked.borrow(), ["b3"]);
    }

    #[test]
    fn a_backup_with_a_problem_has_its_folder_and_document_but_no_image() {
        let mut broken = row("b1", "v", "2024-01-01T00:00:00Z");
        broken.usable = false;
        let tree = Namespace::new([broken, row("b2", "v", "2024-01-02T00:00:00Z")]);
        let folder = |id| Node::Backup(BackupId::parse(id).unwrap());
        let names = |id, opens: &dyn Fn(&BackupId) -> Opens| -> Vec<String> {
            tree.children(&folder(id), opens).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names("b1", &all_open), [DOCUMENT_NAME]);
        assert_eq!(tree.lookup(&folder("b1"), IMAGE_NAME, &all_open), None);
        assert_eq!(names("b2", &|_| Opens::No), [DOCUMENT_NAME]);
        assert_eq!(names("b2", &|_| Opens::Unreachable), [DOCUMENT_NAME, IMAGE_NAME]);
    }

    #[test]
    fn only_a_backups_own_folder_and_latest_ask_whether_images_open() {
        let tree = Namespace::new([named(row("b1", "v", "2024-01-01T00:00:00Z"), "web")]);
        let never = |_: &BackupId| -> Opens { panic!("asked") };
        for parent in [Node::Root, Node::Backups, Node::Volumes, Node::Names] {
            tree.children(&parent, &never).unwrap();
        }
        assert!(tree.lookup(&Node::Backups, "b1", &never).is_some());
        assert!(tree.lookup(&Node::Names, "web", &never).is_some());
        let volume = Node::Volume(VolumeId::parse("v").unwrap());
        assert!(tree.lookup(&volume, "2024-01-01T00:00:00Z", &never).is_some());
    }

    #[test]
    fn a_volume_is_called_what_its_newest_named_backup_says() {
        let tree = Namespace::new([
            named(row("b1", "v1", "2024-01-01T00:00:00Z"), "old"),
            named(row("b2", "v1", "2024-01-02T00:00:00Z"), "new"),
            row("b3", "v1", "2024-01-03T00:00:00Z"),
            named(row("b4", "v1", "2024-01-04T00:00:00Z"), "  "),
        ]);
        assert!(tree.lookup(&Node::Names, "new", &all_open).is_some());
        assert_eq!(tree.children(&Node::Names, &all_open).unwrap().len(), 1);
    }

    #[test]
    fn volumes_that_share_a_name_all_get_their_short_id() {
        let tree = Namespace::new([
            named(row("b1", "aaaaaaaa-1111", "2024-01-01T00:00:00Z"), "web"),
            named(row("b2", "bbbbbbbb-2222", "2024-01-02T00:00:00Z"), "web"),
            named(row("b3", "cccccccc-3333", "2024-01-02T00:00:00Z"), "a/b"),
            named(row("b4", "dddddddd-4444", "2024-01-02T00:00:00Z"), "a\nb"),
            named(row("b5", "eeeeeeee-5555", "2024-01-02T00:00:00Z"), ".."),
        ]);
        let names: Vec<_> =
            tree.children(&Node::Names, &all_open).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["__", "a_b-cccccccc", "a_b-dddddddd", "web-aaaaaaaa", "web-bbbbbbbb"]);
        let link = tree.lookup(&Node::Names, "web-bbbbbbbb", &all_open).unwrap();
        assert_eq!(link.target().unwrap(), "../volumes/bbbbbbbb-2222");
    }

    #[test]
    fn a_replaced_backup_is_another_node() {
        let mut replaced = row("b1", "v", "2024-01-01T00:00:00Z");
        let before = Namespace::new([replaced.clone()]);
        replaced.version = ObjectVersion("2".into());
        let after = Namespace::new([replaced]);
        let folder = Node::Backup(BackupId::parse("b1").unwrap());
        let old = before.lookup(&folder, IMAGE_NAME, &all_open).unwrap();
        let new = after.lookup(&folder, IMAGE_NAME, &all_open).unwrap();
        assert_ne!(old, new);
        assert!(!after.contains(&old) && after.contains(&new));
    }
}
