//! Whole images into the cache directory, and out of it again.
//!
//! Problem: the fastest way to read an image is to let the kernel read a plain file in its place, and what the kernel
//! reads nobody verifies any more. Idea: an image is written down once as a whole, every block verified, by the engine of
//! `restore`, and is used only while the file is as it was left and holds the very content that the backup has now.
//!
//! Invariants: an image with one damaged block is not kept; two processes never write one image file; what is wrong with
//! an image file costs time, never a byte: it is then not used, or its blocks are compared with their digests one by one.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::BinaryBytes;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::restore::{self, OnDamage, Progress, Report, RestoreOptions, Target};
use crate::cache_dir::images::{Claim, Images, Record, State};
use crate::error::{Error, ErrorKind, Result, ResultExt as _};
use crate::image::Image;
use crate::types::VolumeId;

/// Between two tries to claim an image that another process is writing.
const CLAIM_AGAIN: Duration = Duration::from_millis(100);

/// Read at once while a file is compared with the digests, in bytes, unless a block is larger.
const WINDOW_BYTES: u64 = 1 << 20;

/// Left free on the disk beside what an image needs: for the record, the file system's own blocks, and others.
const SPARE_BYTES: u64 = 16 << 20;

/// Most digests read while somebody waits for `open`, when the digests' document is not the version that was compared:
/// 128 GiB of volume at 32 KiB a block, about a second.
const COMPARED_AT_ONCE_MAX: u64 = 4 << 20;

/// The attribute that holds an [`Origin`], as JSON.
const ORIGIN_NAME: &str = "user.cinderfs.origin";

/// Longest [`Origin`], in bytes: ext4 gives all attributes of a file 4 KiB.
const ORIGIN_BYTES_MAX: usize = 3 << 10;

/// Settings of [`hydrate`] and [`check`].
#[derive(Clone, Copy)]
pub struct HydrateOptions<'a> {
    /// How many threads decode or hash, at least 1.
    pub threads: usize,
    /// Once this is true the work ends with [`ErrorKind::Interrupted`].
    pub cancel: &'a AtomicBool,
    /// Called when another process is at the same image and has to be waited for.
    pub waiting: &'a dyn Fn(),
    /// Told how far it is.
    pub observer: &'a dyn Fn(Progress),
    /// Noted beside the image, for people.
    pub origin: Option<&'a Origin>,
}

/// Where a hydrated image came from, for people: nothing is decided by it. It is kept in an attribute of the image file, and
/// lost without harm where the file system has none, or the file is copied.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Origin {
    /// The store's directory.
    pub store: Option<String>,
    /// The volume's display name.
    pub volume_name: Option<String>,
}

impl Origin {
    /// That of the image file at `path`; empty where none is noted.
    pub fn of(path: &Path) -> Self {
        let mut buffer = vec![0; ORIGIN_BYTES_MAX];
        let read = rustix::fs::lgetxattr(path, ORIGIN_NAME, &mut buffer[..]);
        read.ok().and_then(|len| serde_json::from_slice(&buffer[..len]).ok()).unwrap_or_default()
    }

    /// To be called before the file's times are recorded: this changes them.
    fn note(&self, path: &Path) {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let noted = match text.len() {
            ..=ORIGIN_BYTES_MAX => rustix::fs::lsetxattr(path, ORIGIN_NAME, &text, XattrFlags::empty()),
            _ => Err(Errno::TOOBIG),
        };
        if let Err(errno) = noted {
            tracing::debug!(?path, "where the image came from is not noted: {errno}");
        }
    }
}

/// What [`hydrate`] did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hydrated {
    /// The image was written.
    Written(Report),
    /// It was there already.
    There,
    /// It was there, but touched: its bytes were compared with the digests again and are right.
    Confirmed,
    /// The backup is damaged in these ranges; nothing was kept.
    Damaged(Report),
}

/// What [`check`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Checked {
    /// There is no image file.
    Missing,
    /// All bytes are right.
    Right,
    /// The bytes of these ranges are wrong.
    Wrong(Vec<Range<u64>>),
}

/// Writes `image` into the cache directory, unless it is there already.
///
/// [`ErrorKind::Target`] when the disk has too little room or cannot be written, [`ErrorKind::Interrupted`] when it was
/// cancelled; neither leaves anything behind.
pub fn hydrate(
    image: &Arc<Image>,
    volume_id: Option<&VolumeId>,
    images: &Images,
    options: &HydrateOptions<'_>,
) -> Result<Hydrated> {
    let key = image.key();
    // One document has one content: its digests need not be read for it again.
    if let State::Ready(known, _) = images.state(&key)
        && is_of_this_document(&known, image)
    {
        return Ok(Hydrated::There);
    }
    // Before anything is written: damaged digests prove nothing.
    let record = record_of(image, volume_id)?;
    let claim = claim(images, &key, options)?;
    match images.state(&key) {
        State::Ready(known, _) if known.content == record.content => {
            if known.digests_version != record.digests_version {
                claim.confirm(record)?;
            }
            return Ok(Hydrated::There);
        }
        State::Ready(..) | State::Changed(..) => {
            let path = images.path(&key);
            let is_right = wrong_in(&path, image, options).is_ok_and(|wrong| wrong.is_empty());
            check_cancel(options.cancel)?;
            if is_right {
                note_origin(options, &path);
                claim.confirm(record)?;
                return Ok(Hydrated::Confirmed);
            }
            tracing::warn!(?path, "the hydrated image is not right any more and is made anew");
            claim.remove()?;
        }
        State::Missing | State::Unusable(_) => {
            claim.remove()?;
        }
    }
    claim.sweep()?;
    check_room(image, images)?;
    let restore_options = RestoreOptions {
        force: false,
        on_damage: OnDamage::Zero, // all of it shall be told; what is written is thrown away
        threads: options.threads,
        cancel: options.cancel,
    };
    let result = restore::restore(image, Target::Path(claim.new_path()), &restore_options, options.observer);
    let report = result.inspect_err(|_| forget(&claim))?;
    if !report.damaged.is_empty() {
        claim.sweep()?;
        return Ok(Hydrated::Damaged(report));
    }
    note_origin(options, &claim.new_path());
    claim.publish(record).inspect_err(|_| forget(&claim))?;
    Ok(Hydrated::Written(report))
}

/// Compares the image file of `image` with the digests again. A right one is recorded as it is now; a wrong one is
/// removed.
pub fn check(
    image: &Arc<Image>,
    volume_id: Option<&VolumeId>,
    images: &Images,
    options: &HydrateOptions<'_>,
) -> Result<Checked> {
    let record = record_of(image, volume_id)?;
    let key = image.key();
    let claim = claim(images, &key, options)?;
    match images.state(&key) {
        State::Missing => return Ok(Checked::Missing),
        // What has no record is taken for unfinished.
        State::Unusable(_) => {
            claim.remove()?;
            return Ok(Checked::Missing);
        }
        State::Ready(..) | State::Changed(..) => {}
    }
    let path = images.path(&key);
    let wrong = wrong_in(&path, image, options)?;
    if !wrong.is_empty() {
        claim.remove()?;
        return Ok(Checked::Wrong(wrong));
    }
    note_origin(options, &path);
    claim.confirm(record)?;
    Ok(Checked::Right)
}

/// Removes an image file, unless another process is at it; whether there was one.
pub fn drop_image(key: &str, images: &Images) -> Result<bool> {
    match images.claim(key)? {
        Some(claim) => {
            let was_there = claim.remove()?;
            claim.sweep()?;
            Ok(was_there)
        }
        None => {
            Err(Error::new(ErrorKind::Target, format!("another process is writing {:?}", images.path(key))))
        }
    }
}

/// The image file that holds the very bytes of `image`, opened; the reason where there is one that cannot be used.
pub fn find(image: &Image, images: &Images) -> std::result::Result<Option<File>, String> {
    let (record, file) = match images.state(&image.key()) {
        State::Missing => return Ok(None),
        State::Unusable(why) | State::Changed(_, why) => return Err(without_path(why, images, &image.key())),
        State::Ready(record, file) => (record, file),
    };
    if record.image_bytes != image.len_bytes() {
        return Err(format!("it has {} bytes, the image {}", record.image_bytes, image.len_bytes()));
    }
    if is_of_this_document(&record, image) {
        return Ok(Some(file));
    }
    if image.len_bytes() / image.block_bytes() > COMPARED_AT_ONCE_MAX {
        return Err(
            "the backup's digests have moved or changed since; `cinderfs hydrate` compares them".into()
        );
    }
    match image.content() {
        Ok(content) if content.to_string() == record.content => Ok(Some(file)),
        Ok(_) => Err("the backup's digests are others now".to_owned()),
        Err(error) => Err(format!("the backup's digests cannot be compared: {error}")),
    }
}

/// Whether a recorded image was made by the very document of digests that `image` has now.
fn is_of_this_document(record: &Record, image: &Image) -> bool {
    let version = record.digests_version.as_deref();
    record.image_bytes == image.len_bytes() && version.is_some() && version == image.digests_version()
}

fn note_origin(options: &HydrateOptions<'_>, path: &Path) {
    if let Some(origin) = options.origin {
        origin.note(path);
    }
}

/// Whoever tells the reason names the file as well, and once is enough.
fn without_path(why: String, images: &Images, key: &str) -> String {
    let path = format!("{:?} ", images.path(key));
    why.strip_prefix(&path).map(|rest| format!("it {rest}")).unwrap_or(why)
}

fn record_of(image: &Image, volume_id: Option<&VolumeId>) -> Result<Record> {
    // They name the content, tell how much room is needed, and prove each block.
    image.gather_digests()?;
    let content = image.content()?.to_string();
    let record =
        Record::new(image.id().as_str(), volume_id.map(VolumeId::as_str), image.len_bytes(), &content);
    Ok(record.digests(image.digests_version()))
}

fn claim(images: &Images, key: &str, options: &HydrateOptions<'_>) -> Result<Claim> {
    let mut is_first = true;
    loop {
        if let Some(claim) = images.claim(key)? {
            return Ok(claim);
        }
        if std::mem::take(&mut is_first) {
            (options.waiting)();
        }
        check_cancel(options.cancel)?;
        std::thread::sleep(CLAIM_AGAIN);
    }
}

fn check_cancel(cancel: &AtomicBool) -> Result<()> {
    match cancel.load(Ordering::Relaxed) {
        true => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
        false => Ok(()),
    }
}

/// Before hours of writing, not after them.
fn check_room(image: &Image, images: &Images) -> Result<()> {
    let (needed, free) = (image.count_data().unwrap_or(image.len_bytes()), images.free_bytes()?);
    if needed.saturating_add(SPARE_BYTES) <= free {
        return Ok(());
    }
    let (needed, free, folder) = (BinaryBytes(needed), BinaryBytes(free), images.folder());
    Err(Error::new(
        ErrorKind::Target,
        format!("the image needs {needed} in {folder:?}, which has {free} free"),
    ))
}

/// Where the image file at `path` is not the image; of one that is longer or shorter, what is too much or missing.
fn wrong_in(path: &Path, image: &Image, options: &HydrateOptions<'_>) -> Result<Vec<Range<u64>>> {
    let read = |error| Error::caused_by(ErrorKind::Target, format!("cannot read {path:?}"), error);
    let file = File::open(path).map_err(read)?;
    let (found, len) = (file.metadata().map_err(read)?.len(), image.len_bytes());
    match found == len {
        true => compare(image, &file, options),
        false => Ok(std::iter::once(found.min(len)..found.max(len)).collect()),
    }
}

/// Where the bytes of `file`, which is as long as the image, are others than the image's.
fn compare(image: &Image, file: &File, options: &HydrateOptions<'_>) -> Result<Vec<Range<u64>>> {
    let (len, block) = (image.len_bytes(), image.block_bytes());
    let window = (WINDOW_BYTES / block).max(1) * block;
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let progress =
        || Progress { done_bytes: done.load(Ordering::Relaxed), total_bytes: len, ..Progress::default() };
    let failure: Mutex<Option<Error>> = Mutex::default();
    let wrong: Mutex<Vec<Range<u64>>> = Mutex::default();
    let cancel = options.cancel;
    let work = || -> Result<()> {
        let mut bytes = Vec::new();
        loop {
            check_cancel(cancel)?;
            let start = next.fetch_add(window, Ordering::Relaxed);
            if start >= len || lock(&failure).is_some() {
                return Ok(());
            }
            bytes.resize(window.min(len - start) as usize, 0);
            file.read_exact_at(&mut bytes, start).map_err(|error| {
                Error::caused_by(ErrorKind::Target, format!("cannot read the file at {start}"), error)
            })?;
            let differing = image.differing(start, &bytes).context(|| "cannot compare")?;
            lock(&wrong).extend(differing);
            done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads.max(1))
            .map(|_| scope.spawn(|| work().unwrap_or_else(|error| *lock(&failure) = Some(error))))
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            (options.observer)(progress());
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    (options.observer)(progress());
    if let Some(error) = lock(&failure).take() {
        return Err(error);
    }
    let mut wrong = std::mem::take(&mut *lock(&wrong));
    wrong.sort_by_key(|range| range.start);
    wrong.dedup_by(|next, last| {
        let joins = last.end == next.start;
        if joins {
            last.end = next.end;
        }
        joins
    });
    Ok(wrong)
}

/// After a failure, whose reason is told instead.
fn forget(claim: &Claim) {
    if let Err(error) = claim.sweep() {
        tracing::warn!("{error}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
