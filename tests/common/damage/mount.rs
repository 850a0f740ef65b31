//! Through a real mount: what is in the tree, and what a read of `volume.img` gives.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::case::{Case, Is, Verdict};
use super::forge::Random;
use super::library::any_of;
use super::watch::{TIME_MAX, peak_of};
use super::world::{Truth, World};

/// What the kernel asks for at the least: damage cannot show in smaller pieces through its cache.
const PAGE_BYTES: u64 = 4096;

/// All pages of images up to this are read, and some of larger ones.
const READ_WHOLE_MAX: u64 = 8 << 20;

const EIO: i32 = 5;

/// For so long a mount may be in use after all files were closed.
const IN_USE_MAX: Duration = Duration::from_secs(5);

/// A mount in the foreground of a process of ours, which ends with this value.
struct Mounted {
    mountpoint: PathBuf,
    process: Child,
}

impl Mounted {
    fn new(store: &Path, mountpoint: PathBuf, log: &Path) -> Result<Self, String> {
        fs::create_dir(&mountpoint).unwrap();
        let log = File::create(log).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
            .args(["mount".as_ref(), "-f".as_ref(), store.as_os_str(), mountpoint.as_os_str()])
            .env_remove("CINDERFS_LOG")
            .env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut mounted = Self { mountpoint, process };
        let started = Instant::now();
        while !mounted.mountpoint.join("backups").is_dir() {
            if let Some(status) = mounted.process.try_wait().unwrap() {
                return Err(format!("the mount ended before it was there: {status}"));
            }
            if started.elapsed() > TIME_MAX {
                return Err(format!("no mount within {TIME_MAX:?}"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(mounted)
    }

    /// Unmounts; the process must end well by that, and must not have grown.
    fn end(mut self, peak_kib_max: u64) -> Result<(), String> {
        let peak_kib = peak_of(self.process.id());
        let started = Instant::now();
        loop {
            let mut umount = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
            let unmounted = umount.arg("umount").arg(&self.mountpoint).output().unwrap();
            if unmounted.status.success() {
                break;
            }
            // Another thread's child holds our open files between its fork and its exec.
            let words = String::from_utf8_lossy(&unmounted.stderr);
            if !words.contains("is in use") || started.elapsed() > IN_USE_MAX {
                return Err(format!("cannot be unmounted: {words}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let started = Instant::now();
        while started.elapsed() < TIME_MAX {
            if let Some(status) = self.process.try_wait().unwrap() {
                return match (status.success(), peak_kib) {
                    (false, _) => Err(format!("the mount's process ended with {status}")),
                    (true, peak) if peak > 0 && peak <= peak_kib_max => Ok(()),
                    (true, _) => Err(format!("the mount took {peak_kib} KiB, at most {peak_kib_max}")),
                };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(format!("the mount's process goes on {TIME_MAX:?} after the unmount"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH);
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

pub(crate) fn check(case: &Case, world: &World, wrong: &mut Vec<String>) {
    let log = world.scratch("mount.log");
    let mounted = match Mounted::new(&world.root(), world.scratch("mnt"), &log) {
        Ok(mounted) => mounted,
        Err(what) => return wrong.push(format!("mount: {what}: {}", fs::read_to_string(log).unwrap())),
    };
    let backups = mounted.mountpoint.join("backups");
    let mut found: Vec<_> = fs::read_dir(&backups)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let verdicts = world.verdicts(case);
    let mut expected: Vec<_> =
        verdicts.iter().filter(|(_, v)| v.is != Is::Absent).map(|(id, _)| id.clone()).collect();
    found.sort();
    expected.sort();
    if found != expected {
        wrong.push(format!("mount: shows {found:?}, not {expected:?}"));
    }
    for (id, verdict) in verdicts.iter().filter(|(_, verdict)| verdict.is != Is::Absent) {
        if let Err(what) = check_backup(&backups.join(id), verdict, world.truth.get(id)) {
            wrong.push(format!("mount: backup {id}: {what}"));
        }
    }
    if let Err(what) = mounted.end(case.peak_kib_max()) {
        wrong.push(format!("mount: {what}"));
    }
    let log = fs::read_to_string(log).unwrap();
    if log.contains("panicked") {
        wrong.push(format!("mount: a panic: {log}"));
    }
}

fn check_backup(folder: &Path, verdict: &Verdict, truth: Option<&Truth>) -> Result<(), String> {
    let path = folder.join("volume.img");
    if verdict.is == Is::Unusable {
        if path.exists() {
            return Err("an unusable backup has an image".into());
        }
    } else {
        read_image(&path, verdict, truth.ok_or("an image of which nobody knows the truth")?)?;
    }
    let text = fs::read(folder.join("metadata.json")).map_err(|error| format!("metadata.json: {error}"))?;
    let document: Value = serde_json::from_slice(&text).map_err(|error| format!("metadata.json: {error}"))?;
    let told = match verdict.is {
        Is::Unusable => any_of(verdict.says.as_deref(), |word| {
            document["fail_reason"].as_str().is_some_and(|reason| reason.contains(word))
        }),
        _ => document["fail_reason"].is_null() && document["verification"] == verdict.verification.as_str(),
    };
    let counts = (document["damage"]["blocks"].as_u64() > Some(0)) == (verdict.is == Is::Lost);
    if told && counts { Ok(()) } else { Err(format!("metadata.json tells {document}")) }
}

fn read_image(path: &Path, verdict: &Verdict, truth: &Truth) -> Result<(), String> {
    let image = File::open(path).map_err(|error| format!("no image: {error}"))?;
    let len = image.metadata().unwrap().len();
    if len != truth.len() {
        return Err(format!("has {len} bytes, not {}", truth.len()));
    }
    let is_lost = |start: u64, end: u64| verdict.lost.iter().any(|lost| lost.0 < end && start < lost.1);
    // Large reads: what they give must be right, and they must not reach into what is lost.
    let mut random = Random(len + 1);
    let (large, pages) = if len > READ_WHOLE_MAX { (2, 8) } else { (10, len.div_ceil(PAGE_BYTES)) };
    let mut buffer = vec![0xEE; 200_000];
    for _ in 0..large {
        let offset = random.below(len);
        if let Ok(n) = image.read_at(&mut buffer, offset)
            && (n == 0 || !truth.has(offset, &buffer[..n]) || is_lost(offset, offset + n as u64))
        {
            return Err(format!("WRONG BYTES, or lost ones, in {n} bytes at {offset}"));
        }
    }
    // Then page by page: an error exactly where something is lost.
    let some = |page: u64| match len > READ_WHOLE_MAX {
        true if page.is_multiple_of(2) => random.below(len) / PAGE_BYTES,
        // Around what is lost.
        true => verdict.lost.first().map_or(page, |lost| (lost.0 / PAGE_BYTES + page / 2).saturating_sub(1)),
        false => page,
    };
    for page in (0..pages).map(some) {
        let (start, end) = (page * PAGE_BYTES, len.min((page + 1) * PAGE_BYTES));
        let bytes = &mut buffer[..(end - start) as usize];
        match (image.read_exact_at(bytes, start), is_lost(start, end)) {
            (Ok(()), false) if truth.has(start, bytes) => {}
            (Ok(()), false) => return Err(format!("WRONG BYTES at {start}")),
            (Ok(()), true) => return Err(format!("bytes {start} to {end} were read, and are lost")),
            (Err(error), true) if error.raw_os_error() == Some(EIO) => {}
            (Err(error), _) => return Err(format!("bytes {start} to {end}: {error}")),
        }
    }
    Ok(())
}
