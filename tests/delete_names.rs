//! Does `delete` know which files are the backup's, whatever they are called?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/delete_kit.rs"]
mod delete_kit;
#[path = "common/life_kit.rs"]
mod life_kit;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use cinderfs::ErrorKind;
use cinderfs::writer::delete::{self, DeleteOptions, Kept};

use delete_kit::*;
use life_kit::*;
use store_kit::Naming;

/// The prefix `p` begins those of two other backups, one readable and one torn, and is begun by a third one's.
// > `delete` removes no file of another backup, whatever a document claims and however files are called.
#[test]
fn files_of_a_longer_or_shorter_prefix_are_others() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::create_dir(root.join("c")).unwrap();
    let put = |prefix: &str, id: &str, listed: &[&str]| {
        let objects: Vec<_> = listed
            .iter()
            .map(|name| format!("{{\"{name}\": {{\"compression\": \"none\", \"length\": 1, \"offset\": 0, \"md5\": \"\"}}}}"))
            .collect();
        let text = format!(
            "{{\"backup_id\": \"{id}\", \"objects\": [{}], \"parent_id\": null, \"version\": \"1.0.0\", \"volume_id\": \"v\"}}",
            objects.join(", ")
        );
        for name in listed.iter().filter(|name| !name.contains("none")) {
            fs::write(root.join("c").join(name), "x").unwrap();
        }
        fs::write(root.join(format!("c/{prefix}_metadata")), text).unwrap();
    };
    // It claims the others' files, too; one that is not there, and its own documents.
    put(
        "p",
        "victim",
        &[
            "p-00001",
            "p-2-00001",
            "p-2_metadata",
            "p-2_sha256file",
            "p-3-00001",
            "p_metadata",
            "p_sha256file",
            "p-none",
            "p-shared",
        ],
    );
    put("p-2", "longer", &["p-2-00001"]);
    fs::write(root.join("c/p-2_sha256file"), "x").unwrap();
    fs::write(root.join("c/p-3_metadata"), "{").unwrap();
    fs::write(root.join("c/p-3-00001"), "x").unwrap();
    fs::write(root.join("c/p-notes.txt"), "x").unwrap();
    fs::write(root.join("c/p-00002"), "x").unwrap();
    fs::create_dir(root.join("c/p-folder")).unwrap();
    // A name that both list is neither's alone.
    put("q", "shorter", &["q-00001", "q-both-00001"]);
    put("q-both", "both", &["q-both-00001"]);
    let before = files(root);

    let plan = plan(root, "victim", &DeleteOptions::default()).unwrap();
    let kept: Vec<_> = plan.backups[0].kept().collect();
    let name = |name: &str| format!("c/{name}");
    assert_eq!(
        kept,
        [
            (name("p-00002"), Kept::Unlisted),
            (name("p-folder"), Kept::NoObject),
            (name("p-notes.txt"), Kept::Unlisted)
        ]
    );
    assert_eq!(delete(root, "victim", &DeleteOptions::default()).unwrap(), ["victim"]);
    let gone: BTreeSet<_> = ["p_metadata", "p_sha256file", "p-00001", "p-shared"].map(name).into();
    assert_eq!(files(root), before.difference(&gone).cloned().collect());
    assert!(root.join("c/p-folder").is_dir());

    let before = files(root);
    assert_eq!(delete(root, "both", &DeleteOptions::default()).unwrap(), ["both"]);
    let gone: BTreeSet<_> = [name("q-both_metadata")].into();
    assert_eq!(files(root), before.difference(&gone).cloned().collect(), "the shorter one lists it too");
}

// > `delete` removes no file of another backup, whatever a document claims and however files are called.
#[test]
fn no_name_leads_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "x").unwrap();
    let root = folder.path();
    let other = Made::full("eeee0000-9", "volume-9", Naming::Named);
    other.put(root);
    let mut made = Made::full("aaaa0000-1", "volume-1", Naming::New);
    made.put(root);
    let container = root.join(made.spec.container());
    let prefix = made.spec.prefix();
    // Objects that are links, one of them to an object of another backup; a link to a folder of another's.
    let first = container.join(format!("{prefix}-00001"));
    fs::remove_file(&first).unwrap();
    let others = other.spec.object_path(0);
    symlink(root.join(&others), &first).unwrap();
    let second = container.join(format!("{prefix}-00002"));
    fs::remove_file(&second).unwrap();
    symlink(outside.path().join("victim"), &second).unwrap();
    symlink(root.join(other.spec.container()), container.join(format!("{prefix}-link"))).unwrap();
    let metadata = container.join(format!("{prefix}_metadata"));
    let text = fs::read_to_string(&metadata).unwrap();
    let file = Path::new(&others).file_name().unwrap().to_str().unwrap();
    fs::write(&metadata, text.replacen("-00003\"", &format!("-link/{file}\""), 1)).unwrap();
    let plan = plan(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
    assert_eq!(plan.backups[0].kept().count(), 1, "the link to a folder is not listed");
    delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"x");
    let mut left = other.file_names();
    left.insert(format!("{}/{prefix}-link", made.spec.container()));
    assert_eq!(files(root), left, "-00003 goes: its name is the backup's");
    check_store(root, &[&other], "hostile names");

    // Names that lead away make the document unreadable: then what by its name is the backup's goes.
    fs::remove_dir_all(root.join("aa")).unwrap();
    for hostile in ["../../../../etc/passwd", "/etc/passwd", "../../team/one/x", "x\\u0000"] {
        made.put(root);
        fs::write(&metadata, text.replacen(&format!("{prefix}-00003"), hostile, 1)).unwrap();
        assert_eq!(delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap(), ["aaaa0000-1"]);
        assert_eq!(files(root), other.file_names(), "{hostile}");
    }
    // A folder on the way that becomes a link is not followed.
    made.spec.naming = Naming::Named;
    made.put(root);
    let planned = delete::plan(&catalog(root), root, &[id("aaaa0000-1")], &DeleteOptions::default()).unwrap();
    fs::rename(root.join("team"), outside.path().join("team")).unwrap();
    symlink(outside.path().join("team"), root.join("team")).unwrap();
    let mut never = |_: &delete::DoomedBackup| panic!("deleted");
    let error = delete::delete(root, &planned, &DeleteOptions::default(), &|| false, &mut never).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BackupNotFound, "{error}");
    assert_eq!(files(&outside.path().join("team/one")).len(), 10);
}

#[test]
fn unlisted_objects_go_where_their_name_is_proof() {
    for naming in [Naming::New, Naming::Old, Naming::Named, Naming::Bucket] {
        let made = Made::full("aaaa0000-1", "volume-1", naming);
        let folder = store_of(&[&made]);
        let root = folder.path();
        let stale = root.join(made.spec.object_path(7));
        fs::write(&stale, "left by a longer backup").unwrap();
        delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
        assert!(!stale.exists(), "{naming:?}");
    }
    // The prefix of old releases in a container with a name: whose the rest is cannot be told.
    let made = Made::full("aaaa0000-1", "volume-1", Naming::Old);
    let folder = store_of(&[&made]);
    let root = folder.path();
    fs::create_dir_all(root.join("team")).unwrap();
    fs::rename(root.join(made.spec.container()), root.join("team/one")).unwrap();
    fs::write(root.join("team/one/backup-00008"), "x").unwrap();
    let stays = "team/one/backup-00008 stays: the backup does not list it\n";
    ends(&["delete", root.to_str().unwrap(), "aaaa"], 0, stays);
    assert_eq!(files(root), BTreeSet::from(["team/one/backup-00008".to_owned()]));
}

#[test]
fn unusable_backups_can_be_deleted_by_id() {
    let torn = ["", "{", "[]", "{\"version\": \"1.0.0\"}", "{\"backup_id\": \"other\", \"version\": \"9\"}"];
    for naming in [Naming::New, Naming::Old, Naming::Named] {
        for text in torn {
            let other = Made::full("eeee0000-9", "volume-9", Naming::Named);
            let made = Made::full("aaaa0000-1", "volume-1", naming);
            let folder = store_of(&[&other, &made]);
            let root = folder.path();
            fs::write(
                root.join(made.spec.container()).join(format!("{}_metadata", made.spec.prefix())),
                text,
            )
            .unwrap();
            delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
            assert_eq!(files(root), other.file_names(), "{naming:?} {text}");
        }
    }
    // Parents that are missing, torn, or build on their children.
    let [a, b, c, d] = &family(Naming::New);
    let folder = store_of(&[b, c]);
    assert_eq!(delete(folder.path(), "cccc0000-3", &DeleteOptions::default()).unwrap(), ["cccc0000-3"]);
    assert_eq!(files(folder.path()), b.file_names());
    let folder = store_of(&[a, d]);
    fs::write(folder.path().join(a.spec.container()).join(format!("{}_metadata", a.spec.prefix())), "{")
        .unwrap();
    let error = delete(folder.path(), "aaaa0000-1", &DeleteOptions::default()).unwrap_err();
    assert!(error.to_string().contains("dddd0000-4"), "{error}");
    assert_eq!(delete(folder.path(), "aaaa0000-1", &cascade()).unwrap(), ["dddd0000-4", "aaaa0000-1"]);
    assert_eq!(files(folder.path()), BTreeSet::new());
    let mut circle = a.clone();
    circle.spec.parent_id = Some("bbbb0000-2".into());
    let folder = store_of(&[&circle, b]);
    assert_eq!(
        delete(folder.path(), "aaaa0000-1", &DeleteOptions::default()).unwrap_err().kind(),
        ErrorKind::Usage
    );
    assert_eq!(delete(folder.path(), "aaaa0000-1", &cascade()).unwrap(), ["bbbb0000-2", "aaaa0000-1"]);
    assert_eq!(files(folder.path()), BTreeSet::new());
}
