//! Does `delete` harm no one who writes, deletes or reads at the same time?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/delete_kit.rs"]
mod delete_kit;
#[path = "common/life_kit.rs"]
mod life_kit;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/store_kit.rs"]
mod store_kit;

use std::fs;
use std::os::unix::fs::FileExt;

use cinderfs::ErrorKind;
use cinderfs::types::ObjectName;
use cinderfs::writer::delete::{self, DeleteOptions, Plan};
use cinderfs::writer::staging::Staging;

use delete_kit::*;
use life_kit::*;
use store_kit::{Naming, Packing};

#[test]
fn two_at_once_delete_once() {
    for round in 0..20 {
        let [a, b, c, d] = &family(if round % 2 == 0 { Naming::New } else { Naming::Named });
        let folder = store_of(&[a, b, c, d]);
        let (root, before) = (folder.path(), files(folder.path()));
        let barrier = std::sync::Barrier::new(4);
        let results: Vec<_> = std::thread::scope(|scope| {
            let run = |name: &'static str| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let planned = plan(root, name, &cascade()).unwrap();
                    barrier.wait();
                    let mut count = 0;
                    let result = delete::delete(root, &planned, &cascade(), &|| false, &mut |_| count += 1);
                    (name, result, count)
                })
            };
            let runs = ["bbbb0000-2", "bbbb0000-2", "cccc0000-3", "dddd0000-4"].map(run);
            runs.into_iter().map(|run| run.join().unwrap()).collect()
        });
        let total: usize = results.iter().map(|(_, _, count)| count).sum();
        for (name, result, _) in &results {
            if let Err(error) = result {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::BackupNotFound | ErrorKind::Target), "{name}: {error}");
            }
        }
        // Each is told by exactly one run, or by none where a run stepped back before the other.
        delete::remove_leftovers(root).unwrap();
        let listed = catalog(root).snapshot();
        let gone: Vec<_> = [b, c, d].into_iter().filter(|made| listed.get(&made.spec.id).is_none()).collect();
        assert_eq!(gone.len(), total, "{results:?}");
        assert!(gone.iter().any(|made| made.spec.id == "dddd0000-4") && gone.len() >= 2, "{results:?}");
        assert_eq!(files(root), less(&before, &gone));
        assert_eq!(hidden(root), Vec::<String>::new());
    }
}

#[test]
fn a_backup_that_has_changed_or_got_a_child_since_it_was_shown_stays() {
    let [a, b, _, _] = &family(Naming::New);
    let folder = store_of(&[a]);
    let root = folder.path();
    let run = |plan: &Plan| {
        let mut never = |_: &delete::DoomedBackup| panic!("deleted");
        delete::delete(root, plan, &cascade(), &|| false, &mut never).unwrap_err()
    };
    let shown = plan(root, "aaaa0000-1", &cascade()).unwrap();
    b.put(root);
    let error = run(&shown);
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("bbbb0000-2"), "{error}");
    check_store(root, &[a, b], "a child came");
    let shown = plan(root, "bbbb0000-2", &cascade()).unwrap();
    let metadata = root.join(b.spec.container()).join(format!("{}_metadata", b.spec.prefix()));
    let text = fs::read_to_string(&metadata).unwrap();
    fs::write(&metadata, text.replace("\"backup_name\": null", "\"backup_name\": \"other\"")).unwrap();
    assert!(run(&shown).to_string().contains("has changed since"));
    // And told to stop, none goes.
    let shown = plan(root, "aaaa0000-1", &cascade()).unwrap();
    let mut never = |_: &delete::DoomedBackup| panic!("deleted");
    let error = delete::delete(root, &shown, &cascade(), &|| true, &mut never).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
    check_store(root, &[a, b], "stopped");
    assert_eq!(hidden(root), Vec::<String>::new());
}

// > A backup that another run is writing or deleting is left to that run.
#[test]
fn a_backup_that_is_being_written_is_left_to_its_writer() {
    let made = Made::full("aaaa0000-1", "volume-1", Naming::New);
    let folder = store_of(&[&made]);
    let root = folder.path();
    let container = ObjectName::parse("elsewhere").unwrap();
    let staging = Staging::begin(root, &made.id(), &container, "volume_x_backup_y").unwrap();
    let error = delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Target);
    assert!(error.to_string().contains("being written or deleted by another run"), "{error}");
    assert_eq!(hidden(root).len(), 1);
    check_store(root, &[&made], "refused");
    drop(staging);
    delete(root, "aaaa0000-1", &DeleteOptions::default()).unwrap();
}

#[test]
fn an_image_that_is_being_read_ends_in_errors_or_right_bytes() {
    let mut full = Made::full("aaaa0000-1", "volume-1", Naming::New);
    full.spec.objects.iter_mut().for_each(|object| object.packing = Packing::Plain("none"));
    let child = full.child("bbbb0000-2", 3);
    let folder = store_of(&[&full, &child]);
    let root = folder.path();
    let catalog = catalog(root);
    let image = catalog.image(catalog.snapshot().get("bbbb0000-2").unwrap()).unwrap();
    let mut block = [0; 512];
    image.read_at(&mut block, 0).unwrap();
    assert_eq!(block, child.volume[..512]);
    delete(root, "aaaa0000-1", &cascade()).unwrap();
    let mut errors = 0;
    for at in 0..child.volume.len() / 512 {
        match image.read_at(&mut block, (at * 512) as u64) {
            Ok(_) => assert_eq!(block, child.volume[at * 512..(at + 1) * 512], "block {at}"),
            Err(error) => {
                errors += 1;
                assert!(matches!(error.kind(), ErrorKind::ObjectNotFound | ErrorKind::StoreIo), "{error}");
            }
        }
    }
    assert!(errors > 0, "nothing of it was read before");
}

/// Needs root and /dev/fuse.
#[test]
fn a_mount_gives_right_bytes_or_eio_and_shows_it_no_more() {
    let mut full = Made::full("aaaa0000-1", "volume-1", Naming::New);
    full.spec.objects.iter_mut().for_each(|object| object.packing = Packing::Plain("none"));
    let child = full.child("bbbb0000-2", 3);
    let other = Made::full("eeee0000-9", "volume-9", Naming::Named);
    let folder = mount::open_folder();
    let root = folder.path().join("store");
    fs::create_dir(&root).unwrap();
    for made in [&full, &child, &other] {
        made.put(&root);
    }
    let mounted = mount::Mount::new(&root);
    let image = fs::File::open(mounted.image("bbbb0000-2")).unwrap();
    ends(&["delete", root.to_str().unwrap(), "aaaa", "--cascade"], 0, "deleted aaaa0000-1");
    let (mut block, mut errors) = ([0; 512], 0);
    for (at, expected) in child.volume.chunks(512).enumerate() {
        match image.read_at(&mut block[..expected.len()], (at * 512) as u64) {
            Ok(len) => assert_eq!(block[..len], *expected, "block {at}"),
            Err(error) => {
                errors += 1;
                assert!(matches!(error.raw_os_error(), Some(5 | 2)), "{error}");
            }
        }
    }
    assert!(errors > 0, "nothing of it was read before");
    mount::within(std::time::Duration::from_secs(5), "the deleted to vanish", || {
        mount::names(&mounted.path("backups")) == ["eeee0000-9"]
    });
    assert_eq!(fs::read(mounted.image("eeee0000-9")).unwrap(), other.volume);
}
