//! Images that are opened, read and closed while they are hydrated and dropped.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::mount::{Mount, PATIENCE, names, within};
use super::store::BLOCK;
use super::{ID, World, reads};

/// Whether the daemon has an image file open, unlinked ones too.
fn holds_image(mount: &Mount) -> bool {
    let open = fs::read_dir(format!("/proc/{}/fd", mount.pid().as_raw_nonzero())).unwrap();
    let mut links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.any(|link| link.to_string_lossy().contains(".img"))
}

/// Waits until the daemon knows that everything is closed.
#[track_caller]
fn wait_for_release(mount: &Mount) {
    within(PATIENCE, "the image file is closed", || !holds_image(mount));
}

#[test]
fn an_image_that_is_open_while_it_is_hydrated_stays_readable() {
    let (world, backup) = World::with_backup(200);
    let mount = world.mount("cache_size=4M");
    let first = File::open(mount.image(ID)).unwrap();
    let mut begin = [0; 4096];
    first.read_exact_at(&mut begin, 0).unwrap();
    world.hydrate(&[ID]);
    let before = reads(&mount);
    // Through the daemon like the first, from the new file.
    let second = File::open(mount.image(ID)).unwrap();
    world.lose_objects(&backup);
    let mut bytes = vec![0; backup.image.len()];
    second.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == backup.image && reads(&mount) > before);
    first.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == backup.image);
    drop((first, second));
    wait_for_release(&mount);
    // Now by the kernel; the next too, and after each other.
    let before = reads(&mount);
    let (third, fourth) = (File::open(mount.image(ID)).unwrap(), File::open(mount.image(ID)).unwrap());
    third.read_exact_at(&mut bytes, 0).unwrap();
    drop(third);
    fourth.read_exact_at(&mut bytes[..5000], 70_000).unwrap();
    assert_eq!(reads(&mount), before);
    assert!(bytes[..5000] == backup.image[70_000..75_000]);
}

#[test]
fn an_image_that_is_dropped_while_it_is_open_stays_readable_and_gives_its_space_back() {
    let (world, backup) = World::with_backup(200);
    for options in ["", "passthrough=off"] {
        world.hydrate(&[ID]);
        let mount = world.mount(options);
        let first = File::open(mount.image(ID)).unwrap();
        world.hydrate(&["--drop", ID]);
        assert_eq!(names(&world.images()), [""; 0]);
        let second = File::open(mount.image(ID)).unwrap();
        for file in [&first, &second] {
            let mut bytes = vec![0; backup.image.len()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == backup.image);
        }
        assert_eq!(reads(&mount) == 0, options.is_empty());
        assert!(holds_image(&mount));
        drop((first, second));
        wait_for_release(&mount);
        let before = reads(&mount);
        let third = File::open(mount.image(ID)).unwrap();
        let mut byte = [0; 1];
        third.read_exact_at(&mut byte, 100 * BLOCK as u64).unwrap();
        assert_eq!(byte[0], backup.image[100 * BLOCK]);
        assert!(!holds_image(&mount));
        if options.is_empty() {
            // What the kernel read for itself before is not in the page cache of the image.
            assert!(reads(&mount) > before, "{}", mount.log());
        }
    }
}

/// Opens and closes in many threads while images come and go: nobody may see an error or a wrong byte.
// > How an image is read is decided when it is first opened and stays so until it is last closed; no open fails because an image is hydrated or dropped meanwhile.
#[test]
fn opens_while_images_come_and_go_all_succeed() {
    let (world, backup) = World::with_backup(40);
    let mount = world.mount("");
    let (path, image) = (mount.image(ID), &backup.image);
    let end = Instant::now() + Duration::from_secs(4);
    thread::scope(|scope| {
        for n in 0..6 {
            let path = &path;
            scope.spawn(move || {
                let mut at = n * 7;
                while Instant::now() < end {
                    let file = File::open(path).unwrap();
                    at = (at + 11) % 39;
                    let mut bytes = vec![0; BLOCK];
                    file.read_exact_at(&mut bytes, (at * BLOCK + 100) as u64).unwrap();
                    assert!(bytes == image[at * BLOCK + 100..][..BLOCK]);
                    if at % 3 == 0 {
                        thread::sleep(Duration::from_millis(3));
                    }
                }
            });
        }
        while Instant::now() < end {
            world.hydrate(&[ID]);
            world.hydrate(&["--drop", ID]);
        }
    });
    assert!(!mount.log().contains("ERROR"), "{}", mount.log());
}

/// Two first opens at once must agree on one name of the file in the kernel: with two, one of them fails.
#[test]
fn first_opens_at_once_all_succeed() {
    const THREADS: usize = 8;
    let (world, backup) = World::with_backup(4);
    world.hydrate(&[ID]);
    let mount = world.mount("threads=8");
    let (path, image) = (mount.image(ID), &backup.image);
    let barrier = Barrier::new(THREADS);
    let failed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..300 {
                    barrier.wait();
                    let file = File::open(&path);
                    barrier.wait();
                    let mut bytes = [0; 100];
                    let read = file.and_then(|file| file.read_exact_at(&mut bytes, 70));
                    // Nobody panics here: the others would wait for him.
                    if read.is_err() || bytes != image[70..170] {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    // Until the daemon knows that all are closed.
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0);
    assert_eq!(reads(&mount), 0);
}
