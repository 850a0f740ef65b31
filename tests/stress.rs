//! Does a mount hold while many read it and others add to its store and delete from it?
//!
//! `CINDERFS_STRESS_SECONDS=N` reads for N seconds with each way of caching instead of a few, and then also demands that the daemon's memory stays
//! as it is; `CINDERFS_STRESS_WRITE=1` writes the figures to `docs/RELIABILITY.md`. `scripts/stress.sh` does these.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]
#![allow(clippy::print_stdout, reason = "the figures are what a long run is for")]
#![allow(dead_code, reason = "each test uses its part of the kit")]

#[path = "common/genuine.rs"]
mod genuine;
#[path = "common/mount.rs"]
mod mount;
#[path = "common/stress/mod.rs"]
mod stress;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use mount::*;
use stress::life::{CHURNERS, Life};
use stress::pattern::Random;
use stress::readers::{Reader, Tally};
use stress::report;
use stress::watch::{Watch, mean, most, processes_with};

const READERS: u64 = 24;

/// In each run of the tests, for each way of caching.
const SECONDS: u64 = 8;

/// `cache_size` of the mounts.
const CACHE_MIB: u64 = 64;

/// What the daemon may take beside its cache: decoders of all codecs for each thread, digests, open images.
const BESIDE_CACHE_MIB: u64 = 160;

/// The caches take some minutes to fill: in the first half of a run memory rises, and a run of less than this says nothing of growth.
const GROWTH_SECONDS_MIN: u64 = 600;

/// What the third and the last quarter of a run may differ by. Idle decoders come and go by megabytes.
const NOISE_MIB: u64 = 12;

/// Threads come and go with what readers wait for; so many more at one time than at another are no leak.
const NOISE_THREADS: u64 = 24;

/// The same for descriptors.
const NOISE_DESCRIPTORS: u64 = 48;

/// Threads that stay once there was something to do for them, beside a worker for each core: those that ask the store now and then.
const THREADS_KEPT: u64 = 4;

/// Inodes that one backup has: its folder, image, document and link; and its volume's folder and two links, were each alone in its volume.
const INODES_PER_BACKUP: u64 = 7;

/// And of these the kernel may remember so many of each backup that is gone: names that nobody looks at again it keeps until it needs the memory.
/// A mount that forgot none would have five or six.
const INODES_KEPT_BY_THE_KERNEL: u64 = 2;

fn setup(options: &str) -> Setup {
    let options = format!("cache_size={CACHE_MIB}M,{options}");
    Setup::default().options(&options).log("info,cinderfs::frontend::fuse::tree=debug")
}

fn reader<'t>(
    life: &'t Life,
    mount: &'t Mount,
    tally: &'t Tally,
    seed: u64,
    stop: &'t AtomicBool,
) -> Reader<'t> {
    Reader { life, mount: mount.root(), tally, random: Random(seed << 32), stop }
}

#[test]
fn many_readers_with_a_disk_cache_get_right_bytes_and_nothing_leaks() {
    run_for("with", "With a disk cache", "disk_cache=96M");
}

#[test]
fn many_readers_without_a_disk_cache_get_right_bytes_and_nothing_leaks() {
    run_for("without", "Without a disk cache", "seek_index=on");
}

fn run_for(name: &str, title: &str, options: &str) {
    let seconds = std::env::var("CINDERFS_STRESS_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let folder = open_folder();
    let life = Life::begin(folder.path());
    let mut mount = setup(options).mount(life.store());
    let (tally, stop) = (Tally::default(), AtomicBool::new(false));
    let mut watch = Watch::new(mount.pid().as_raw_nonzero().get());
    let at_rest = watch.look(&mount.log(), 0);
    watch.samples.clear();
    thread::scope(|scope| {
        // A churner that panics must not leave the others running.
        let watched = WatchedStop(&stop);
        let mut threads = Vec::new();
        for number in 0..CHURNERS {
            let (life, root, stop) = (&life, mount.root(), &stop);
            threads.push(scope.spawn(move || {
                let _watched = WatchedStop(stop);
                life.churn(number, root, stop);
            }));
        }
        for seed in 0..READERS {
            let reader = reader(&life, &mount, &tally, seed, &stop);
            threads.push(scope.spawn(move || reader.run()));
        }
        let began = Instant::now();
        let pause = Duration::from_millis((seconds * 5).clamp(50, 2000));
        while began.elapsed() < Duration::from_secs(seconds) && !stop.load(Ordering::Relaxed) {
            thread::sleep(pause);
            watch.look(&mount.log(), life.images().len());
        }
        drop(watched);
    });
    let text = report::render(title, &tally, &life.deeds, &watch.samples);
    println!("{text}");
    if std::env::var_os("CINDERFS_STRESS_WRITE").is_some() {
        report::write(name, &text);
    }
    let complaints = tally.complaints.lock().unwrap();
    assert!(complaints.is_empty(), "{complaints:#?}\n{}", mount.log());
    assert!(life.deeds.deleted.load(Ordering::Relaxed) > 0, "nothing was deleted");
    drop(complaints);

    let most_mib = most(&watch.samples, |sample| sample.rss_kib) / 1024;
    assert!(most_mib <= CACHE_MIB + BESIDE_CACHE_MIB, "the daemon takes {most_mib} MiB");
    let most_images = most(&watch.samples, |sample| sample.images);
    let most_inodes = most(&watch.samples, |sample| sample.inodes);
    let deleted = life.deeds.deleted.load(Ordering::Relaxed);
    let inodes_max = INODES_PER_BACKUP * most_images + INODES_KEPT_BY_THE_KERNEL * deleted;
    assert!(most_inodes <= inodes_max, "{most_inodes} inodes of {most_images} backups, {deleted} deleted");
    assert!(most_inodes > 0 && most(&watch.samples, |sample| sample.handles) > 0, "it does not tell of them");
    if seconds >= GROWTH_SECONDS_MIN {
        let mib = |part| mean(watch.part(part), |sample| sample.rss_kib) / 1024;
        let (before, after) = (mib(50..75), mib(75..100));
        println!("memory: {before} MiB in the third quarter, {after} MiB in the last");
        assert!(after <= before + NOISE_MIB, "memory grows from {before} to {after} MiB");
        let (early, late) = (watch.part(10..40), watch.part(70..100));
        let threads = |part| most(part, |sample| sample.threads);
        assert!(threads(late) <= threads(early) + NOISE_THREADS, "{} threads", threads(late));
        let descriptors = |part| most(part, |sample| sample.descriptors);
        assert!(descriptors(late) <= descriptors(early) + NOISE_DESCRIPTORS, "{} files", descriptors(late));
    }

    // When nobody reads any more, it is as it was before anybody did.
    let root = mount.root().to_owned();
    within(PATIENCE, "files of deleted backups are closed", || {
        let _ = std::fs::read_dir(root.join("backups"));
        let gone: Vec<_> =
            watch.descriptors().into_iter().filter(|path| is_deleted_object(path, &life)).collect();
        gone.is_empty()
    });
    let threads_max = at_rest.threads
        + thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
        + THREADS_KEPT;
    let began = Instant::now();
    while watch.look(&mount.log(), 0).threads > threads_max {
        assert!(began.elapsed() < PATIENCE, "{threads_max} expected, but still {:?}", watch.threads());
        thread::sleep(Duration::from_millis(100));
    }
    println!("at rest: before {at_rest:?}, after {:?}: {:?}", watch.samples.last(), watch.threads());

    // At once; but a program that a sibling test starts at this moment holds copies of this one's open files until it runs.
    within(PATIENCE, "the end of the mount", || {
        let output = run(cinderfs().arg("umount").arg(&root));
        assert!(output.status.success() || stderr(&output).contains("in use"), "{}", stderr(&output));
        output.status.success()
    });
    assert_eq!(mount.wait().code(), Some(0), "{}", mount.log());
    assert_eq!(mount_line(&root), None);
    assert_eq!(processes_with(&root), [""; 0]);
}

/// Whether a descriptor leads to a file of the store that has no name any more.
fn is_deleted_object(path: &str, life: &Life) -> bool {
    path.starts_with(life.store().to_str().unwrap()) && path.ends_with(" (deleted)")
}

/// Stops everybody when it is dropped.
struct WatchedStop<'s>(&'s AtomicBool);

impl Drop for WatchedStop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_signal_ends_a_mount_that_many_read() {
    let folder = open_folder();
    let life = Life::begin(folder.path());
    for options in ["disk_cache=96M", "seek_index=on"] {
        let mut mount = setup(options).mount(life.store());
        let (tally, stop) = (Tally::default(), AtomicBool::new(false));
        let root = mount.root().to_owned();
        let errors = thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS)
                .map(|seed| {
                    let reader = Reader {
                        life: &life,
                        mount: &root,
                        tally: &tally,
                        random: Random(seed << 32),
                        stop: &stop,
                    };
                    scope.spawn(move || reader.run_until_the_mount_ends())
                })
                .collect();
            thread::sleep(Duration::from_millis(700));
            mount.signal(Signal::TERM);
            let status = mount.wait();
            assert_eq!(status.code(), Some(0), "{}", mount.log());
            readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
        });
        // Each of them came to an end, with the mount's or that of its empty folder.
        for error in &errors {
            let errno = error.raw_os_error().unwrap_or(0);
            let is_clean = [libc::ENOENT, libc::ENOTCONN, libc::ECONNABORTED, libc::EIO].contains(&errno);
            assert!(is_clean, "{error}");
        }
        assert_eq!(*tally.complaints.lock().unwrap(), [""; 0]);
        assert!(tally.reads.load(Ordering::Relaxed) > 0);
        assert_eq!(mount_line(&root), None);
        assert_eq!(processes_with(&root), [""; 0]);
    }
}
