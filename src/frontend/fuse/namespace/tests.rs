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
            assert_eq!(tree.lookup(node, &name, opens).as_ref(), Some(&child), "lookup agrees with readdir");
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
    let links: Vec<_> = paths(&tree, &all_open).into_iter().filter(|p| p.starts_with("/volumes/")).collect();
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
    let tree = Namespace::new([row("zzzzzzzz-9", "v", ""), row("aaaaaaaa-1", "v", "1971-01-01T00:00:00Z")]);
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
    assert_eq!(latest(&b3_away).unwrap(), "../../backups/b3", "old data must not take its place unnoticed");
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
    let names: Vec<_> = tree.children(&Node::Names, &all_open).unwrap().into_iter().map(|(n, _)| n).collect();
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
