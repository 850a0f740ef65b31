//! Names: of objects, and of what the mounted tree shows.

use std::collections::BTreeSet;

use cinderfs::format::names::Place;
use cinderfs::frontend::fuse::names::{NAME_BYTES_MAX, component};
use cinderfs::frontend::fuse::namespace::{Kind, Namespace, Node, Opens, Row};
use cinderfs::store::ObjectVersion;
use cinderfs::types::{BackupId, ObjectName, VolumeId};

use super::Input;

/// The objects of a backup stay with it; each name in the tree is one, leads where the listing says, and nowhere else.
pub(super) fn names(data: &[u8]) {
    let mut input = Input::new(data);
    let (metadata_name, object) = (input.text(), input.text());
    places(&metadata_name, &object);
    tree(&mut input);
}

fn places(metadata_name: &str, object: &str) {
    let Ok(name) = ObjectName::parse(metadata_name) else { return };
    for first in [None, Some(object)] {
        let Some(place) = Place::of(&name, first) else { return };
        let Ok(place) = place else { continue };
        let stem = name.as_str().strip_suffix("_metadata").unwrap();
        assert!(stem.starts_with(place.container()) && stem.ends_with(place.prefix()));
        assert!(!place.prefix().is_empty());
        if let Ok(suffix) = place.object_suffix(object) {
            assert!(place.name(suffix).unwrap().as_str().starts_with(stem));
        }
        assert!(BackupId::parse(&place.id_by_name()).is_ok(), "{:?}", place.id_by_name());
    }
}

fn id(input: &mut Input<'_>) -> String {
    let ids = ["a", "ab", "aaaaaaaabbbb", "aaaaaaaacccc", "aaaaaaaacccc-d", "latest", "..x"];
    match input.byte() {
        n if n < 128 => ids[usize::from(n) % ids.len()].to_owned(),
        n => format!("aaaaaaaa-{n}"),
    }
}

fn rows(input: &mut Input<'_>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    while !input.is_empty() && rows.len() < 40 {
        let Ok(backup) = BackupId::parse(&id(input)) else { continue };
        let volume = VolumeId::parse(&id(input)).ok();
        let what = input.byte();
        let time = jiff::Timestamp::from_second(i64::from(what / 4) << (what % 32)).ok();
        if rows.iter().any(|row| row.id == backup) {
            continue;
        }
        rows.push(Row {
            id: backup,
            volume_id: volume.filter(|_| !what.is_multiple_of(8)),
            volume_name: (what % 8 > 1).then(|| input.text()),
            created_at: time.filter(|_| what % 8 != 2),
            version: ObjectVersion("1".into()),
            usable: what % 8 != 3,
        });
    }
    rows
}

fn tree(input: &mut Input<'_>) {
    let asked = [input.text(), "latest".to_owned(), "..".to_owned(), ".".to_owned(), String::new()];
    let rows = rows(input);
    for name in rows.iter().filter_map(|row| row.volume_name.as_deref()).chain([asked[0].as_str()]) {
        if let Some(name) = component(name) {
            check_name(&name);
        }
    }
    let namespace = Namespace::new(rows.clone());
    let mut backwards = rows.clone();
    backwards.reverse();
    assert!(Namespace::new(backwards) == namespace, "the order of rows matters");
    let opens = |id: &BackupId| match id.as_str().len() % 3 {
        0 => Opens::Yes,
        1 => Opens::No,
        _ => Opens::Unreachable,
    };
    let mut folders = vec![Node::Root];
    let (mut backups, mut count) = (0, 1);
    while let Some(folder) = folders.pop() {
        let children = namespace.children(&folder, &opens).unwrap();
        let names: BTreeSet<_> = children.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), children.len(), "a name twice in {folder:?}");
        let is_folder = |(_, node): &&(String, Node)| node.kind() == Kind::Directory;
        assert_eq!(children.iter().filter(is_folder).count(), namespace.subfolders(&folder));
        for (name, node) in &children {
            check_name(name);
            assert_eq!(namespace.lookup(&folder, name, &opens).as_ref(), Some(node), "{name:?}");
            assert_eq!(node.parent(), folder);
            assert!(namespace.contains(node), "{node:?}");
            if let Some(target) = node.target() {
                check_target(&namespace, &folder, &target, &opens);
            }
        }
        for name in &asked {
            let listed = children.iter().find(|(child, _)| child == name).map(|(_, node)| node);
            let found = namespace.lookup(&folder, name, &opens);
            // An image is found before it is tried, and listed after.
            if !matches!(found, Some(Node::Image(..))) {
                assert_eq!(found.as_ref(), listed, "{name:?} in {folder:?}");
            }
        }
        count += children.len();
        backups += usize::from(matches!(folder, Node::Backup(_)));
        folders.extend(children.into_iter().filter(|(_, node)| node.kind() == Kind::Directory).map(|c| c.1));
    }
    assert_eq!(backups, rows.len());
    assert!(count <= namespace.node_count(), "{count} nodes, at most {}", namespace.node_count());
}

fn check_name(name: &str) {
    assert!(!name.is_empty() && name.len() <= NAME_BYTES_MAX && name != "." && name != "..", "{name:?}");
    assert!(!name.contains('/') && !name.contains(char::is_control), "{name:?}");
}

/// A link, followed step by step from its folder, leads to a folder of the tree.
fn check_target(namespace: &Namespace, folder: &Node, target: &str, opens: &dyn Fn(&BackupId) -> Opens) {
    let end = target.split('/').fold(folder.clone(), |at, name| match name {
        ".." => {
            assert_ne!(at, Node::Root, "{target:?} leads out");
            at.parent()
        }
        name => namespace.lookup(&at, name, opens).unwrap(),
    });
    assert_eq!(end.kind(), Kind::Directory, "{target:?}");
}
