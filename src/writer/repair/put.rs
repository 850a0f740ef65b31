//! New files take their places, one by one.
//!
//! Problem: hours may lie between the moment at which a file was found damaged and the one at which its new bytes are ready; and a run that is
//! killed here must leave what a reader can use. Idea: each file takes its place by itself, whole; restart points are told last. Old ones that do
//! not fit a new object cost time, for what they lead to is compared; without its own, all that lies behind the damage of an old one were lost.
//!
//! Invariants: what is replaced is the file that was found damaged, as far as its version tells; nothing is put into a backup whose
//! document is another one by now.

use super::place::{Place, Ready};
use super::{Finding, Outcome, Run, metadata};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::format::metadata::METADATA_BYTES_MAX;
use crate::store::{ObjectVersion, Store, read_exact_at};
use crate::types::ObjectName;
use crate::writer::staging::FileName;

/// How often the metadata is read again until it comes the same twice.
const AGAIN_MAX: u32 = 3;

/// A file that waits to take its place.
pub(super) struct Waiting {
    pub(super) ready: Ready,
    pub(super) name: ObjectName,
    /// What was found damaged, if anything was there.
    pub(super) version: Option<ObjectVersion>,
    /// Where the new one may be entered; `None` where that is not told of such a file.
    pub(super) points: Option<Option<String>>,
    /// Of the list of findings.
    pub(super) finding: usize,
}

impl Run<'_> {
    /// Gives new files their places, if each still is as it was found, and so is the document.
    pub(super) fn put(
        &self,
        place: &Place<'_>,
        metadata_name: &ObjectName,
        waiting: Vec<Waiting>,
        findings: &mut [Finding],
    ) -> Result<()> {
        let mut became = |waiting: &Waiting, outcome: Outcome| {
            if let Some(finding) = findings.get_mut(waiting.finding) {
                finding.outcome = outcome;
            }
        };
        let mut unchanged = Vec::new();
        for waiting in waiting {
            match self.is_as_found(&waiting)? {
                true => unchanged.push(waiting),
                false => became(&waiting, Outcome::Refused(replaced_meanwhile())),
            }
        }
        if unchanged.is_empty() {
            return Ok(());
        }
        // Refused before anything is replaced, if it must be.
        self.with_new_points(metadata_name, &unchanged)?;
        let mut replaced = Vec::new();
        let outcome = unchanged.into_iter().try_for_each(|waiting| {
            self.stop()?;
            if !self.is_as_found(&waiting)? {
                became(&waiting, Outcome::Refused(replaced_meanwhile()));
                return Ok(());
            }
            // Cinder may have deleted the backup.
            if version_of(&*self.store, metadata_name)?.as_ref() != Some(&self.backup.version) {
                return Err(metadata_replaced());
            }
            place.replace(&waiting.ready, &waiting.name, metadata_name)?;
            became(&waiting, Outcome::Repaired);
            replaced.push(waiting);
            Ok(())
        });
        // Also behind a failure: of what was replaced the old points are not true any more.
        let told = self.tell_points(place, metadata_name, &replaced);
        outcome.and(told)
    }

    fn is_as_found(&self, waiting: &Waiting) -> Result<bool> {
        Ok(version_of(&*self.store, &waiting.name)? == waiting.version)
    }

    /// Puts the restart points of new objects into the metadata, where it tells some.
    fn tell_points(&self, place: &Place<'_>, metadata_name: &ObjectName, replaced: &[Waiting]) -> Result<()> {
        if replaced.iter().all(|waiting| waiting.points.is_none()) {
            return Ok(());
        }
        let Some(new) = self.with_new_points(metadata_name, replaced)? else { return Ok(()) };
        let file = place.create_file(FileName::Metadata)?;
        file.bytes().append(&new)?;
        place.replace(&place.complete(file)?, metadata_name, metadata_name)
    }

    /// The metadata with the restart points of new objects; `None` where it tells none of them, or the same.
    fn with_new_points(&self, metadata_name: &ObjectName, new_files: &[Waiting]) -> Result<Option<Vec<u8>>> {
        let document = self.document(metadata_name)?;
        let mut new: Option<Vec<u8>> = None;
        for Waiting { name, points, .. } in new_files {
            let Some(points) = points else { continue };
            let name = self.name_in_document(name);
            let told = metadata::with_points(new.as_deref().unwrap_or(&document), name, points.as_deref())
                .context(|| format!("metadata {metadata_name:?}"))?;
            new = told.or(new);
        }
        match new {
            Some(new) if new.len() as u64 > METADATA_BYTES_MAX => {
                let message = format!("metadata {metadata_name:?} would become longer than is read");
                Err(Error::new(ErrorKind::Unsupported, message))
            }
            new => Ok(new),
        }
    }
}

impl Run<'_> {
    /// The metadata's bytes. No digest proves them, and what is wrong for once must not be put in for good: they are asked for until they come
    /// the same twice.
    fn document(&self, metadata_name: &ObjectName) -> Result<Vec<u8>> {
        let read = || {
            let source = self.store.open(metadata_name)?;
            let len_bytes = source.stat().len_bytes;
            if source.stat().version != self.backup.version || len_bytes > METADATA_BYTES_MAX {
                return Err(metadata_replaced());
            }
            let mut document = vec![0; len_bytes as usize];
            read_exact_at(&*source, &mut document, 0)?;
            Ok(document)
        };
        let mut last = read()?;
        for _ in 0..AGAIN_MAX {
            let document = read()?;
            if document == last {
                return Ok(document);
            }
            last = document;
        }
        let message = format!("metadata {metadata_name:?} has other bytes each time it is read");
        Err(Error::new(ErrorKind::StoreIo, message))
    }
}

/// The version that a file has now; `None` where there is none to be had.
pub(super) fn version_of(store: &dyn Store, name: &ObjectName) -> Result<Option<ObjectVersion>> {
    match store.open(name) {
        Ok(source) => Ok(Some(source.stat().version.clone())),
        Err(error) if error.kind().is_damage() => Ok(None),
        Err(error) => Err(error),
    }
}

fn replaced_meanwhile() -> Error {
    Error::new(ErrorKind::Target, "somebody replaced it while it was repaired; look at it again")
}

fn metadata_replaced() -> Error {
    Error::new(ErrorKind::StoreIo, "the metadata was replaced during the repair")
}
