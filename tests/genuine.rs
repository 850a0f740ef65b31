//! Are genuine backups the right bytes when read through a real mount?
//!
//! Each test mounts anew, because the kernel keeps what one way of reading has fetched, and another way that finds it
//! there tests the kernel.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/mountpoint_guard.rs"]
mod mountpoint_guard;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use genuine::{BACKUPS, Genuine, backups, backups_of, root};
use mountpoint_guard::{Mountpoint, run};

fn folder_names(path: &Path) -> BTreeSet<String> {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Reads with plain `read`, `step` bytes at a time.
fn read_in_steps(path: &Path, step: usize) -> Vec<u8> {
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; step]);
    loop {
        match file.read(&mut buffer).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            0 => return bytes,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
}

/// All files below, with length and time of writing.
fn inventory(folder: &Path) -> BTreeSet<(PathBuf, u64, SystemTime)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let stat = entry.metadata().unwrap();
        found.insert((entry.path(), stat.len(), stat.modified().unwrap()));
        if stat.is_dir() {
            found.extend(inventory(&entry.path()));
        }
    }
    found
}

#[test]
fn every_backup_reads_in_order_as_its_volume_was() {
    let before = inventory(&root());
    let mount = Mountpoint::new(&root());
    let all = backups();
    let ids: BTreeSet<_> = all.iter().map(|backup| backup.id.clone()).collect();
    assert_eq!(ids.len(), BACKUPS);
    assert_eq!(folder_names(&mount.path().join("backups")), ids);
    for (n, backup) in all.iter().enumerate() {
        let path = mount.image(&backup.id);
        assert_eq!(fs::metadata(&path).unwrap().len(), backup.bytes, "{backup}");
        let step = [1 << 20, 4096, 7919][n % 3];
        backup.check(&format!("read {step} bytes at a time"), &read_in_steps(&path, step));
    }
    mount.unmount();
    assert_eq!(inventory(&root()), before, "reading changed the store");
}

/// Numbers that are the same in each run, well enough mixed for offsets (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Reads odd sizes, small and large, at any offset, also over and beyond the end.
fn read_at_random(path: &Path, expected: &[u8], mut numbers: Numbers, backup: &Genuine) {
    let file = File::open(path).unwrap();
    for _ in 0..24 {
        let size = ((1_usize << numbers.below(19)) + numbers.below(1000) as usize) | 1;
        let offset = numbers.below(expected.len() as u64 + 2000);
        let from = expected.len().min(offset as usize);
        let wanted = &expected[from..expected.len().min(from + size)];
        let mut buffer = vec![0xa5; size];
        let mut got = 0;
        while got < size {
            match file.read_at(&mut buffer[got..], offset + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(error) => panic!("{backup}: {size} bytes at {offset}: {error}"),
            }
        }
        assert!(
            buffer[..got] == *wanted,
            "{backup}: {size} bytes at {offset}: wrong bytes, or {got} of them"
        );
    }
}

#[test]
fn every_backup_reads_the_same_at_random_from_several_threads() {
    // The second mount has nothing of what was read in order, and a cache that holds no whole image.
    let (in_order, at_random) =
        (Mountpoint::new(&root()), Mountpoint::with(&root(), &["-o", "cache_size=4M"]));
    for (n, backup) in backups().iter().enumerate() {
        let expected = fs::read(in_order.image(&backup.id)).unwrap();
        backup.check("read in order", &expected);
        let path = at_random.image(&backup.id);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let numbers = Numbers(n as u64 * 4 + thread);
                let (path, expected) = (&path, &expected);
                scope.spawn(move || read_at_random(path, expected, numbers, backup));
            }
        });
    }
    at_random.unmount();
    in_order.unmount();
}

/// Mounts, and runs `copy` on each image with a target that does not exist; then the target must hold the volume.
fn every_backup_copied(how: &str, copy: impl Fn(&Path, &Path)) {
    let mount = Mountpoint::new(&root());
    let folder = tempfile::tempdir().unwrap();
    for backup in backups() {
        let target = folder.path().join(&backup.id);
        copy(&mount.image(&backup.id), &target);
        backup.check(how, &fs::read(&target).unwrap());
        fs::remove_file(&target).unwrap();
    }
    mount.unmount();
}

fn dd(block: &str) -> impl Fn(&Path, &Path) {
    let block = format!("bs={block}");
    move |image, target| {
        let (mut from, mut to) = (std::ffi::OsString::from("if="), std::ffi::OsString::from("of="));
        from.push(image);
        to.push(target);
        run(Command::new("dd").args([&from, &to]).arg(&block).arg("status=none"));
    }
}

#[test]
fn dd_copies_every_backup() {
    every_backup_copied("by dd bs=1M", dd("1M"));
}

#[test]
fn dd_with_an_odd_block_size_copies_every_backup() {
    every_backup_copied("by dd bs=12347", dd("12347"));
}

#[test]
fn cp_makes_sparse_copies_of_every_backup() {
    let (bytes, allocated) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    every_backup_copied("by cp --sparse=always", |image, target| {
        run(Command::new("cp").arg("--sparse=always").args([image, target]));
        let stat = fs::metadata(target).unwrap();
        bytes.set(bytes.get() + stat.len());
        allocated.set(allocated.get() + stat.blocks() * 512);
    });
    let (bytes, allocated) = (bytes.get(), allocated.get());
    assert!(allocated < bytes / 2, "most of the fixtures are zeros, and {allocated} of {bytes} are stored");
}

/// qemu-img makes lengths a multiple of the sector: it adds zeros up to there.
fn without_padding(mut bytes: Vec<u8>, backup: &Genuine) -> Vec<u8> {
    let len = backup.bytes as usize;
    assert_eq!(bytes.len(), len.next_multiple_of(512), "{backup}");
    assert!(bytes[len..].iter().all(|&byte| byte == 0), "{backup}");
    bytes.truncate(len);
    bytes
}

#[test]
fn qemu_img_converts_every_backup() {
    let mount = Mountpoint::new(&root());
    let folder = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for backup in backups() {
        let (image, target) = (mount.image(&backup.id), folder.path().join(&backup.id));
        run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw"]).args([&image, &target]));
        backup.check("by qemu-img convert -O raw", &without_padding(fs::read(&target).unwrap(), &backup));
        fs::remove_file(&target).unwrap();
        // The newest of most stores, so that incrementals are among them.
        if backup.order == 3 {
            run(Command::new("qemu-img")
                .args(["convert", "-f", "raw", "-O", "qcow2"])
                .args([&image, &target]));
            run(Command::new("qemu-img")
                .args(["compare", "-f", "raw", "-F", "qcow2"])
                .args([&image, &target]));
            fs::remove_file(&target).unwrap();
            compared += 1;
        }
    }
    assert!(compared > 90, "only {compared} were compared");
    mount.unmount();
}

#[test]
#[expect(unsafe_code, reason = "a mapping is what is tested")]
fn every_backup_maps_into_memory() {
    let mount = Mountpoint::new(&root());
    for backup in backups() {
        let file = File::open(mount.image(&backup.id)).unwrap();
        // SAFETY: an image never changes while it is open, and the store's files are not touched by any test.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        // The last page first, so that not everything arrives by read-ahead from the start.
        let _ = std::hint::black_box(map[map.len() - 1]);
        backup.check("by mmap", &map);
    }
    mount.unmount();
}

#[test]
fn every_backup_tells_where_it_comes_from() {
    let mount = Mountpoint::new(&root());
    let mut incrementals = 0;
    for backup in backups() {
        let folder = mount.path().join("backups").join(&backup.id);
        let document: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("metadata.json")).unwrap()).unwrap();
        let parent = backup.parent_id.as_deref();
        incrementals += usize::from(parent.is_some());
        for (field, expected) in [
            ("id", backup.id.as_str().into()),
            ("parent_id", parent.into()),
            ("is_incremental", parent.is_some().into()),
            ("object_count", backup.objects.into()),
            ("image_bytes", backup.bytes.into()),
            ("volume_id", backup.volume_id.as_str().into()),
            ("container", format!("{}/{}", backup.store, backup.container).into()),
            ("object_prefix", backup.prefix.as_str().into()),
            ("status", "available".into()),
            ("verification", "sha256".into()),
            ("fail_reason", serde_json::Value::Null),
        ] {
            assert_eq!(document[field], expected, "{field} of {backup}");
        }
        for path in [folder.join("volume.img"), folder.join("metadata.json"), folder] {
            let attribute = |name: &str| attribute(&path, &format!("user.cinder.{name}"));
            assert_eq!(attribute("backup_id").as_deref(), Some(&*backup.id), "{backup}");
            assert_eq!(attribute("volume_id").as_deref(), Some(&*backup.volume_id), "{backup}");
            assert_eq!(attribute("parent_id").as_deref(), parent, "{backup}");
            assert_eq!(attribute("verified").as_deref(), Some("sha256"), "{backup}");
        }
    }
    assert!(incrementals > BACKUPS / 2);
    mount.unmount();
}

/// An extended attribute as `getfattr` would print it.
fn attribute(path: &Path, name: &str) -> Option<String> {
    let mut value = [0; 256];
    match rustix::fs::getxattr(path, name, &mut value) {
        Ok(len) => Some(std::str::from_utf8(&value[..len]).unwrap().to_owned()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{name} of {}: {error}", path.display()),
    }
}

#[test]
fn every_store_can_be_mounted_alone() {
    let mut all = backups();
    while let Some(store) = all.last().map(|backup| backup.store.clone()) {
        let rest = all.iter().position(|backup| backup.store == store).unwrap();
        let of_store = all.split_off(rest);
        let mount = Mountpoint::new(&of_store[0].store_path());
        assert_eq!(folder_names(&mount.path().join("backups")).len(), of_store.len(), "{store}");
        for backup in of_store {
            backup.check("from its own store", &fs::read(mount.image(&backup.id)).unwrap());
        }
        mount.unmount();
    }
}

#[test]
fn a_container_can_be_the_root_of_a_store() {
    for store in ["old-names", "ext4", "zlib-chain", "release-7.0.3-zlib", "release-28.0.0-zstd"] {
        let all = backups_of(store);
        let full = &all[0];
        let mount = Mountpoint::new(&full.store_path().join(&full.container));
        full.check("from its container", &fs::read(mount.image(&full.id)).unwrap());
        assert_eq!(folder_names(&mount.path().join("backups")).len(), 1);
        mount.unmount();

        // An incremental without its parent is told of, and is no image.
        let incremental = &all[1];
        let mount = Mountpoint::new(&incremental.store_path().join(&incremental.container));
        let folder = mount.path().join("backups").join(&incremental.id);
        assert_eq!(folder_names(&folder), ["metadata.json".to_owned()].into());
        let text = fs::read_to_string(folder.join("metadata.json")).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let reason = document["fail_reason"].as_str().unwrap();
        assert!(reason.contains(&full.id), "{reason}");
        assert_eq!(document["status"], "error");
        mount.unmount();
    }
    // Four backups of two volumes in one container.
    let all = backups_of("one-container");
    assert_eq!(all.len(), 4);
    let mount = Mountpoint::new(&all[0].store_path().join("team/one"));
    for backup in &all {
        backup.check("from its container", &fs::read(mount.image(&backup.id)).unwrap());
    }
    mount.unmount();
}

/// Copies a backup as the Swift, S3 and Google drivers would have named it, and a tool that copies buckets written it.
fn copy_as_bucket(backup: &Genuine, bucket: &Path) {
    let stamp = backup.prefix.split('_').nth(2).unwrap();
    let prefix = format!("volume_{}/{stamp}/az_nova_backup_{}", backup.volume_id, backup.id);
    let container = backup.store_path().join(&backup.container);
    fs::create_dir_all(bucket.join(&prefix).parent().unwrap()).unwrap();
    let mut copied = 0;
    for name in folder_names(&container) {
        let Some(suffix) = name.strip_prefix(&backup.prefix) else { continue };
        let (from, to) = (container.join(&name), bucket.join(format!("{prefix}{suffix}")));
        if suffix == "_metadata" {
            let text = fs::read_to_string(&from).unwrap();
            let (old, new) = (format!("\"{}-", backup.prefix), format!("\"{prefix}-"));
            assert_eq!(text.matches(&old).count() as u64, backup.objects, "{backup}");
            fs::write(&to, text.replace(&old, &new)).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
        }
        copied += 1;
    }
    assert_eq!(copied, backup.objects + 2, "{backup}");
}

#[test]
fn a_copied_bucket_is_a_store() {
    let stores = ["zlib-chain", "bz2-chain", "none-chain", "ext4", "unaligned", "one-container", "zeros"];
    let all: Vec<_> = stores.into_iter().flat_map(backups_of).collect();
    let folder = tempfile::tempdir().unwrap();
    let bucket = folder.path().join("rclone/volumebackups");
    for backup in &all {
        copy_as_bucket(backup, &bucket);
    }
    let inside = fs::canonicalize(&bucket).unwrap();
    for (root, container) in [(folder.path(), "rclone/volumebackups"), (&inside, "")] {
        let mount = Mountpoint::new(root);
        assert_eq!(folder_names(&mount.path().join("backups")).len(), all.len());
        for backup in &all {
            backup.check("from a copied bucket", &fs::read(mount.image(&backup.id)).unwrap());
            let text = fs::read(mount.path().join("backups").join(&backup.id).join("metadata.json")).unwrap();
            let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(document["container"], container, "{backup}");
            let prefix = document["object_prefix"].as_str().unwrap();
            assert!(
                prefix.starts_with("volume_") && prefix.ends_with(&format!("/az_nova_backup_{}", backup.id))
            );
        }
        mount.unmount();
    }
    // The store's root may even lie inside the bucket: here one volume's folder, where names in the documents say more
    // than the paths.
    for store in stores {
        let of_volume: Vec<_> = {
            let of_store = backups_of(store);
            let volume = of_store[0].volume_id.clone();
            of_store.into_iter().filter(|backup| backup.volume_id == volume).collect()
        };
        let mount = Mountpoint::new(&bucket.join(format!("volume_{}", of_volume[0].volume_id)));
        assert_eq!(folder_names(&mount.path().join("backups")).len(), of_volume.len(), "{store}");
        for backup in &of_volume {
            backup.check("from inside a bucket", &fs::read(mount.image(&backup.id)).unwrap());
        }
        mount.unmount();
    }
}
