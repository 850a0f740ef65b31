//! A damaged backup, mended out of what the store holds elsewhere.
//!
//! Problem: one bad sector in an object of two gigabytes makes genuine Cinder refuse, or restore wrongly, a backup of which the lost 32 KiB
//! often stand in the store once more: in the full backup of last week, in a clone of the same template. Idea: each object is read
//! and compared ([`check`]); what an image of this backup can still give is taken, healed as reads heal it, and the rest is looked for by
//! digest in the whole store ([`copies`]); when every byte is there, the object is compressed anew beside the old one and takes
//! its place ([`rewrite`], [`mod@put`]). The digest file is mended the other way round: out of objects whose md5 is right.
//!
//! What the metadata says of the object stays true: the plain bytes, so length and md5, and the codec are the same. Only restart points, which
//! `create` writes there, may lie elsewhere in the new stream; they are told anew ([`metadata`]) once the object is replaced. In a folder a
//! file takes its place by a rename, in an object store by one request ([`place`]).
//!
//! Invariants: no byte is written that a sha256 of the backup, or an md5 of an object, has not proven; a file is replaced whole or not at all, and
//! only when all of it is proven; a store that fails to answer is an error and never damage; nothing is removed.

mod check;
mod copies;
mod metadata;
mod place;
mod put;
mod rewrite;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::check::State;
use self::copies::Wanted;
use self::place::{Place, Ready};
use self::put::{Waiting, version_of};
use self::rewrite::{DigestWriter, Origin};
use super::Target;
use super::staging::{FileName, Hook};
use crate::backup::{Backup, BlockHashTable, DataObject, DigestFile};
use crate::catalog::{Catalog, CatalogOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::SHA256FILE_SUFFIX;
use crate::format::write::{Sha256FileHead, created_at_text};
use crate::image::Image;
use crate::object::proof::PROOF_BLOCK_BYTES;
use crate::store::deadline::DeadlineStore;
use crate::store::posix::PosixStore;
use crate::store::{ObjectVersion, Store};
use crate::types::{BackupId, BlockHash, ObjectName, count};

/// Bound on the verified blocks that are kept, in bytes: objects are read in order, and copies are few.
const CACHE_BYTES_MAX: u64 = 32 << 20;

/// How to repair.
#[derive(Clone)]
pub struct RepairOptions<'a> {
    /// Change nothing, and tell what would be done.
    pub dry_run: bool,
    /// How many objects are looked at side by side, at least 1.
    pub threads: usize,
    /// Once this is true it ends with [`ErrorKind::Interrupted`], between two objects.
    pub cancel: &'a AtomicBool,
    /// Is told how many plain bytes of how many of the backup were looked at, from any thread; cheap, for it is called for each block.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Is told each step that changes a folder. For tests.
    pub hook: Option<Hook>,
}

/// A damaged file of a backup.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its name in the store.
    pub file: String,
    /// What is wrong with it.
    pub fault: Error,
    /// Blocks of it that only copies elsewhere in the store have, at whatever place.
    pub copied_blocks: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What becomes of a damaged file.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is replaced by a right one.
    Repaired,
    /// It would be.
    Repairable,
    /// It stays as it is; these ranges of the volume, in bytes, are nowhere.
    Lost(Vec<Range<u64>>),
    /// It stays as it is, for this reason.
    Refused(Error),
}

impl Outcome {
    /// Whether the damage is, or would be, gone.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Repaired | Self::Repairable)
    }
}

/// Repairs the files of one backup, not of those it builds on; what was wrong, in the order of the objects. Nothing is wrong where the
/// list is empty.
///
/// An object store's must have nothing open of objects that were replaced since it was opened.
///
/// [`ErrorKind::BackupNotFound`]; the backup's own problem when it cannot be opened; [`ErrorKind::Usage`] when another run writes it;
/// as the store does when that fails, after which some files may be replaced, each whole.
pub fn repair<'t>(
    target: impl Into<Target<'t>>,
    id: &BackupId,
    options: &RepairOptions<'_>,
) -> Result<Vec<Finding>> {
    let target = target.into();
    // Its own: others' may hold objects open that were replaced since.
    let store: Arc<dyn Store> = match target {
        Target::Folder(root) => Arc::new(PosixStore::open(root)?),
        Target::Objects { store, .. } => store.clone(),
    };
    let store = DeadlineStore::unlimited(store);
    let options_of_reads = CatalogOptions { cache_bytes_max: CACHE_BYTES_MAX, ..CatalogOptions::default() };
    let catalog = Catalog::open(Arc::new(store), options_of_reads)?;
    let gone = || Error::new(ErrorKind::BackupNotFound, format!("the backup {id} is not in the store"));
    let entry = catalog.snapshot().get(id.as_str()).cloned().ok_or_else(gone)?;
    if let Some(problem) = &entry.problem {
        return Err(problem.clone());
    }
    let is_cancelled = || options.cancel.load(Ordering::Relaxed);
    // What is looked at from here on nobody of ours changes.
    let place = match options.dry_run {
        true => None,
        false => Some(Place::begin(target, id, &entry.metadata_name, &is_cancelled, options.hook.clone())?),
    };
    let store = catalog.store().clone();
    let backup = Backup::open(&*store, &entry.metadata_name)?;
    let image = catalog.image(&entry)?;
    let digests_version = version_of(&*store, &backup.digest_name()?)?;
    let (table, digest_fault) = match backup.digests(&*store)? {
        DigestFile::Usable(table) => (Some(table), None),
        DigestFile::Missing => (None, Some(Error::new(ErrorKind::ObjectNotFound, "there is no such file"))),
        DigestFile::Torn(error) => (None, Some(error)),
    };
    let run =
        Run { options, catalog: &catalog, store, backup: &backup, image: &image, table: table.as_ref() };
    run.repair(place.as_ref(), digest_fault, digests_version, &entry.metadata_name)
}

struct Run<'a> {
    options: &'a RepairOptions<'a>,
    catalog: &'a Catalog,
    store: Arc<dyn Store>,
    backup: &'a Backup,
    image: &'a Image,
    table: Option<&'a BlockHashTable>,
}

impl Run<'_> {
    fn repair(
        &self,
        place: Option<&Place<'_>>,
        digest_fault: Option<Error>,
        digests_version: Option<ObjectVersion>,
        metadata_name: &ObjectName,
    ) -> Result<Vec<Finding>> {
        let stop = || self.stop();
        let len_bytes = self.image.len_bytes();
        let states = check::all(&self.store, self.backup, self.table, len_bytes, self.options, &stop)?;
        let mut damaged: Vec<(&DataObject, Error, Option<ObjectVersion>)> = Vec::new();
        let mut wrong_digests = BTreeMap::new();
        let has_overlaps = have_overlaps(&self.backup.objects);
        for (index, state) in states {
            match (state, self.backup.objects.get(index)) {
                (State::Damaged(error, version), Some(object)) => damaged.push((object, error, version)),
                // Where objects hide each other, a digest may be of the one that is not looked at.
                (State::WrongDigests(_), _) if has_overlaps => {}
                (State::WrongDigests(blocks), _) => wrong_digests.extend(blocks),
                (State::Damaged(..), None) | (State::Good, _) => {}
            }
        }
        let wanted = self.wanted(damaged.iter().map(|(object, ..)| *object))?;
        let origin = Origin { catalog: self.catalog, image: self.image, table: self.table, wanted: &wanted };
        let (mut findings, mut waiting) = (Vec::new(), Vec::new());
        for (number, (object, fault, version)) in (1..).zip(damaged) {
            self.stop()?;
            let name = self.backup.object_name(object)?;
            let mut finding =
                Finding { file: name.to_string(), fault, copied_blocks: 0, outcome: Outcome::Repairable };
            match place {
                None => {
                    let gathered = origin.read(object, &mut |_| Ok(()))?;
                    finding.copied_blocks = gathered.copied_blocks;
                    if !gathered.lost.is_empty() {
                        finding.outcome = Outcome::Lost(gathered.lost);
                    }
                }
                Some(place) => {
                    let file = place.create_file(FileName::Object(number))?;
                    let rewritten = rewrite::object(&origin, object, file.bytes());
                    let rewritten =
                        rewritten.and_then(|rewritten| match rewritten.gathered.lost.is_empty() {
                            true => Ok((Some(place.complete(file)?), rewritten)),
                            false => Ok((None, rewritten)),
                        });
                    match rewritten {
                        Ok((Some(ready), rewritten)) => {
                            finding.copied_blocks = rewritten.gathered.copied_blocks;
                            let (points, finding) = (Some(rewritten.points), findings.len());
                            waiting.push(Waiting { ready, name, version, points, finding });
                        }
                        Ok((None, rewritten)) => finding.outcome = Outcome::Lost(rewritten.gathered.lost),
                        Err(error)
                            if matches!(error.kind(), ErrorKind::HashMismatch | ErrorKind::Unsupported) =>
                        {
                            finding.outcome = Outcome::Refused(error);
                        }
                        Err(error) => return Err(error.context(format!("while repairing {name:?}"))),
                    }
                }
            }
            findings.push(finding);
        }
        if digest_fault.is_some() || !wrong_digests.is_empty() {
            let fault = digest_fault.unwrap_or_else(|| {
                let message = format!(
                    "{} wrong, though the object is right by its md5",
                    count(wrong_digests.len() as u64, "digest")
                );
                Error::new(ErrorKind::HashMismatch, message)
            });
            let (finding, ready) = self.digests(place, fault, &wrong_digests)?;
            if let Some((ready, name)) = ready {
                let (version, finding) = (digests_version, findings.len());
                waiting.push(Waiting { ready, name, version, points: None, finding });
            }
            findings.push(finding);
        }
        let Some(place) = place else { return Ok(findings) };
        self.stop()?;
        self.put(place, metadata_name, waiting, &mut findings)?;
        Ok(findings)
    }

    fn stop(&self) -> Result<()> {
        match self.options.cancel.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Interrupted, "the repair was interrupted")),
            false => Ok(()),
        }
    }

    /// The blocks that the image has lost, and where in the store they stand as well.
    fn wanted<'o>(&self, damaged: impl Iterator<Item = &'o DataObject>) -> Result<Wanted> {
        let mut wanted = Wanted::new(self.image.block_bytes());
        let nothing = Wanted::new(self.image.block_bytes());
        let origin = Origin { catalog: self.catalog, image: self.image, table: self.table, wanted: &nothing };
        for object in damaged {
            self.stop()?;
            for lost in origin.read(object, &mut |_| Ok(()))?.lost {
                let mut at = lost.start;
                while at < lost.end {
                    let end = (at / self.image.block_bytes() + 1) * self.image.block_bytes();
                    if let Some((block, hash)) = origin.digest_of(&(at..end.min(lost.end)))? {
                        wanted.add(block, hash)?;
                    }
                    at = end;
                }
            }
        }
        if !wanted.is_empty() {
            wanted.look_for(self.catalog, &|| self.stop())?;
        }
        Ok(wanted)
    }

    /// A right digest file: the old one with some digests replaced, or a new one of an image that objects' md5 prove.
    fn digests(
        &self,
        place: Option<&Place<'_>>,
        fault: Error,
        right: &BTreeMap<u64, BlockHash>,
    ) -> Result<(Finding, Option<(Ready, ObjectName)>)> {
        let name = self.backup.summary.place.name(SHA256FILE_SUFFIX)?;
        let mut finding =
            Finding { file: name.to_string(), fault, copied_blocks: 0, outcome: Outcome::Repairable };
        let block_bytes = self.table.map_or_else(|| self.usual_block_bytes(), BlockHashTable::block_bytes);
        let count = match self.table {
            Some(table) => table.count(),
            None => self.image.len_bytes().div_ceil(block_bytes),
        };
        let file = place.map(|place| place.create_file(FileName::Digests)).transpose()?;
        let mut writer = match &file {
            Some(file) => Some(DigestWriter::begin(&self.digest_head(block_bytes), count, file.bytes())?),
            None => None,
        };
        let mut take = |digest| writer.as_mut().map_or(Ok(()), |writer| writer.push(digest));
        let lost = match self.table {
            None => rewrite::digests_of(self.image, block_bytes, &mut take)?,
            Some(table) => {
                let mut lost = Vec::new();
                // Nothing proves the digests that stay: what is wrong for once must not be put in for good.
                let DigestFile::Usable(again) = self.backup.digests(&*self.store)? else {
                    return Err(other_digests(&name));
                };
                for block in 0..count {
                    let digest = |table: &BlockHashTable| match table.get(block..block + 1).pop() {
                        Some(Err(error)) if error.kind() != ErrorKind::Malformed => Err(error),
                        found => Ok(found.and_then(Result::ok)),
                    };
                    let known = match right.get(&block) {
                        Some(hash) => Some(*hash),
                        None => digest(table)?,
                    };
                    if !right.contains_key(&block) && digest(&again)? != known {
                        return Err(other_digests(&name));
                    }
                    match known {
                        Some(hash) => take(hash)?,
                        None => lost.push(block * block_bytes..(block + 1) * block_bytes),
                    }
                }
                lost
            }
        };
        if !lost.is_empty() {
            finding.outcome = Outcome::Lost(lost);
            return Ok((finding, None));
        }
        if let Some(writer) = writer {
            writer.finish()?;
        }
        let ready = match (place, file) {
            (Some(place), Some(file)) => match place.complete(file) {
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    finding.outcome = Outcome::Refused(error);
                    None
                }
                ready => Some((ready?, name)),
            },
            _ => None,
        };
        Ok((finding, ready))
    }

    /// The block size of the chain, or Cinder's own where no backup of it has digests.
    fn usual_block_bytes(&self) -> u64 {
        let snapshot = self.catalog.snapshot();
        let of = |id: &BackupId| {
            let backup = Backup::open(&*self.store, &snapshot.get(id.as_str())?.metadata_name).ok()?;
            match backup.digests(&*self.store).ok()? {
                DigestFile::Usable(table) => Some(table.block_bytes()),
                DigestFile::Missing | DigestFile::Torn(_) => None,
            }
        };
        self.image.chain().iter().find_map(of).unwrap_or(PROOF_BLOCK_BYTES)
    }

    fn digest_head(&self, block_bytes: u64) -> Sha256FileHead {
        let metadata = &self.backup.summary.metadata;
        Sha256FileHead {
            description: metadata.description.clone(),
            backup_id: metadata.backup_id.clone(),
            name: metadata.name.clone(),
            block_bytes,
            created_at: metadata.created_at.map_or("None".to_owned(), created_at_text),
            volume_id: metadata.volume_id.clone(),
        }
    }

    /// What the metadata calls an object: its name without the container.
    fn name_in_document<'n>(&self, name: &'n ObjectName) -> &'n str {
        let container = self.backup.summary.place.container();
        let name = name.as_str();
        name.strip_prefix(container).map_or(name, |rest| rest.strip_prefix('/').unwrap_or(rest))
    }
}

fn other_digests(name: &ObjectName) -> Error {
    Error::new(ErrorKind::StoreIo, format!("digest file {name:?} has other bytes each time it is read"))
}

/// Whether any two objects hold the same byte of the volume.
fn have_overlaps(objects: &[DataObject]) -> bool {
    let mut ranges: Vec<_> = objects.iter().map(|object| (object.offset, object.len_bytes)).collect();
    ranges.sort_unstable();
    ranges.windows(2).any(|pair| pair[0].0.saturating_add(pair[0].1) > pair[1].0)
}
