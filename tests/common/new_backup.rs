//! Sources in memory, and what a backup of them must be.

#![allow(dead_code, reason = "each test binary uses its part of the kit")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cinderfs::backup::Backup;
use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::format::write::{object_name, object_prefix};
use cinderfs::image::Verification;
use cinderfs::store::posix::PosixStore;
use cinderfs::types::VolumeId;
use cinderfs::writer::create::{Created, NewBackup, create};
use cinderfs::writer::source::Source;
use cinderfs::{Error, ErrorKind, Result};
use md5::{Digest, Md5};
use sha2::Sha256;

pub(crate) const VOLUME: &str = "99999999-2222-4333-8444-555555555555";

pub(crate) fn volume() -> VolumeId {
    VolumeId::parse(VOLUME).unwrap()
}

/// A volume in memory, whose runs of zero pages are holes, and which may fail.
pub(crate) struct MemorySource {
    pub(crate) bytes: Vec<u8>,
    pub(crate) hole_bytes: usize,
    /// Reading this byte is an error of the disk.
    pub(crate) bad_byte: Option<u64>,
    /// Reads at and behind this byte find the end.
    pub(crate) shrinks_to: Option<u64>,
    /// Set when this many bytes were read.
    pub(crate) cancels_after: Option<(u64, Arc<AtomicBool>)>,
    pub(crate) read: AtomicU64,
}

impl MemorySource {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let read = AtomicU64::new(0);
        Self { bytes, hole_bytes: 512, bad_byte: None, shrinks_to: None, cancels_after: None, read }
    }
}

impl Source for MemorySource {
    fn name(&self) -> &str {
        "memory"
    }

    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = offset..offset + buf.len() as u64;
        if let Some(bad) = self.bad_byte.filter(|bad| range.contains(bad)) {
            let message = format!("cannot read the source \"memory\" at byte {bad}");
            return Err(Error::caused_by(ErrorKind::Source, message, std::io::Error::from_raw_os_error(5)));
        }
        if self.shrinks_to.is_some_and(|end| range.end > end) {
            return Err(Error::new(ErrorKind::Source, "the source \"memory\" has become shorter"));
        }
        buf.copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
        let read = self.read.fetch_add(buf.len() as u64, Ordering::Relaxed) + buf.len() as u64;
        if let Some((after, cancel)) = &self.cancels_after
            && read >= *after
        {
            cancel.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        let is_hole = |page: usize| {
            let end = self.bytes.len().min((page + 1) * self.hole_bytes);
            self.bytes[page * self.hole_bytes..end].iter().all(|&byte| byte == 0)
        };
        let pages = self.bytes.len().div_ceil(self.hole_bytes);
        let first = offset as usize / self.hole_bytes;
        let Some(start) = (first..pages).find(|&page| !is_hole(page)) else { return Ok(None) };
        let end = (start..pages).find(|&page| is_hole(page)).unwrap_or(pages);
        let byte = |page: usize| ((page * self.hole_bytes) as u64).min(self.len_bytes());
        Ok(Some(byte(start).max(offset)..byte(end)))
    }

    fn check_len(&self) -> Result<()> {
        match self.shrinks_to {
            Some(_) => Err(Error::new(ErrorKind::Source, "the source \"memory\" has become shorter")),
            None => Ok(()),
        }
    }
}

pub(crate) fn open(store: &Path) -> Catalog {
    Catalog::open(Arc::new(PosixStore::open(store).unwrap()), CatalogOptions::default()).unwrap()
}

/// Makes a backup at a time of no interest.
pub(crate) fn make(store: &Path, source: &MemorySource, new: &NewBackup) -> Result<Created> {
    let cancel = match &source.cancels_after {
        Some((_, cancel)) => cancel.clone(),
        None => Arc::default(),
    };
    let now = "2026-02-03T04:05:06.7Z".parse().unwrap();
    create(store, &open(store), source, new, now, &cancel, &|_| {})
}

/// Where extents of a backup must be: all of each window of a full one; of others the runs of blocks that changed.
pub(crate) fn extents(new: &[u8], old: Option<&[u8]>, block: usize, object: usize) -> Vec<Range<usize>> {
    let mut extents: Vec<Range<usize>> = Vec::new();
    for start in (0..new.len()).step_by(block) {
        let end = new.len().min(start + block);
        let is_stored = old.is_none_or(|old| {
            old.get(start..old.len().min(start + block)).unwrap_or_default() != &new[start..end]
        });
        match extents.last_mut() {
            _ if !is_stored => {}
            Some(last) if last.end == start && start % object != 0 => last.end = end,
            _ => extents.push(start..end),
        }
    }
    extents
}

/// The backup is the volume's bytes, and just what Cinder would have written.
pub(crate) fn check(store: &Path, created: &Created, new: &NewBackup, bytes: &[u8], old: Option<&[u8]>) {
    let catalog = open(store);
    let entry = catalog.snapshot().get(created.id.as_str()).unwrap().clone();
    let image = catalog.image(&entry).unwrap();
    assert_eq!(image.len_bytes(), bytes.len() as u64);
    assert_eq!(image.verification(), Verification::Sha256);
    assert_eq!(image.block_bytes(), new.block_bytes);
    let mut read = vec![1; bytes.len()];
    let mut at = 0;
    while at < read.len() {
        at += image.read_at(&mut read[at..], at as u64).unwrap();
    }
    assert!(read == bytes, "the image is another one");

    let backup = Backup::open(&**catalog.store(), &entry.metadata_name).unwrap();
    let prefix = object_prefix(&created.volume_id, created.created_at, &created.id);
    let folder = store.join(&entry.container);
    let expected =
        extents(bytes, old, new.block_bytes as usize, new.object_bytes.map_or(128 << 20, |n| n as usize));
    let found: Vec<_> =
        backup.objects.iter().map(|o| o.offset as usize..(o.offset + o.len_bytes) as usize).collect();
    assert_eq!(found, expected);
    let mut names = Vec::new();
    for (i, object) in backup.objects.iter().enumerate() {
        let range = object.offset as usize..(object.offset + object.len_bytes) as usize;
        assert_eq!(object.md5.unwrap().0, <[u8; 16]>::from(Md5::digest(&bytes[range])));
        let name = object_name(&prefix, i as u64 + 1);
        assert!(backup.object_name(object).unwrap().as_str().ends_with(&name));
        let stored = fs::metadata(folder.join(&name)).unwrap().len();
        let is_none = object.codec == cinderfs::codec::Codec::None;
        assert!(if is_none { stored == object.len_bytes } else { stored < object.len_bytes });
        assert!(is_none || object.codec == new.codec);
        names.push(name);
    }
    names.extend([format!("{prefix}_metadata"), format!("{prefix}_sha256file")]);
    names.sort();
    let mut there: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(&prefix))
        .collect();
    there.sort();
    assert_eq!(there, names);
    let digests: Vec<String> = bytes
        .chunks(new.block_bytes as usize)
        .map(|block| Sha256::digest(block).iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    let document = fs::read(folder.join(format!("{prefix}_sha256file"))).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    assert_eq!(document["sha256s"], serde_json::json!(digests));
    assert_eq!(document["chunk_size"], new.block_bytes);
}

/// Names in the store's root, hidden ones included.
pub(crate) fn root_names(store: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(store).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
