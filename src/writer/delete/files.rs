//! Which files are a backup's.
//!
//! Problem: Cinder deletes whatever begins with a backup's prefix. Where backups share a folder that takes other people's
//! files with it: the prefix `backup` of old releases begins many names, and a prefix can begin another one. Idea: a file goes
//! only if the backup's metadata lists it, or its name says that it can be no other's.
//!
//! | what begins with the prefix | goes |
//! | --- | --- |
//! | `_metadata`, `_sha256file` | yes |
//! | listed in `objects` | yes, unless its name begins with the longer prefix of another backup, or another backup lists it too |
//! | not listed, `-` and five digits or more | if the prefix or the folder names this backup's id: left by an earlier run of the service |
//! | anything else, folders | no; it is named in the report |
//!
//! A document that cannot be read lists nothing; then the third row is what remains.
//!
//! Invariants: only names in the document's own folder are looked at, so nothing in the metadata leads anywhere else; a
//! link is removed, never what it leads to.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Document, Kept, place_of};
use crate::backup::Backup;
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::{METADATA_SUFFIX, SHA256FILE_SUFFIX};
use crate::types::{BackupId, ObjectName};
use crate::writer::staging::removal::Found;

/// Digits in an object's number, at least.
const NUMBER_DIGITS_MIN: usize = 5;

/// The `_metadata` documents of one folder.
pub(super) struct Neighbours<'a> {
    pub(super) open: &'a dyn Fn(&ObjectName) -> Result<Arc<Backup>>,
    pub(super) documents: &'a [ObjectName],
}

/// A store whose names can be told.
pub(super) trait Names {
    /// What in a folder begins with a prefix.
    fn names(&self, folder: &str, prefix: &str) -> Result<Vec<Found>>;
}

/// The files that go with a document. [`ErrorKind::BackupNotFound`] when it is gone.
pub(super) fn of(
    place: &dyn Names,
    neighbours: &Neighbours<'_>,
    metadata_name: &ObjectName,
    id: &BackupId,
) -> Result<Document> {
    let (folder, prefix) = place_of(metadata_name);
    let listed = neighbours.listed(metadata_name)?;
    let others = neighbours.others(metadata_name, prefix)?;
    let is_named = names_id(folder, prefix, id);
    let (mut first, mut digests, mut objects, mut kept) = (None, None, Vec::new(), Vec::new());
    for Found { suffix, identity } in place.names(folder, prefix)? {
        let Some(identity) = identity else {
            kept.push((suffix, Kept::NoObject));
            continue;
        };
        match &*suffix {
            METADATA_SUFFIX => first = Some((suffix, identity)),
            SHA256FILE_SUFFIX => digests = Some((suffix, identity)),
            _ if others
                .longer
                .iter()
                .any(|longer| suffix.len() > longer.len() && suffix.starts_with(&**longer)) => {}
            _ if others.listed.contains(&suffix) => kept.push((suffix, Kept::Shared)),
            _ if listed.contains(&suffix) || is_named && is_numbered(&suffix) => {
                objects.push((suffix, identity));
            }
            _ => kept.push((suffix, Kept::Unlisted)),
        }
    }
    let Some(first) = first else {
        let message = format!("the document {metadata_name:?} is no longer in the store");
        return Err(Error::new(ErrorKind::BackupNotFound, message));
    };
    objects.sort_by(|(a, _): &(Box<str>, _), (b, _)| a.cmp(b));
    kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    let files = std::iter::once(first).chain(digests).chain(objects).collect();
    Ok(Document { metadata_name: metadata_name.clone(), files, kept })
}

/// What other backups of the folder have to do with names that begin with a prefix, less that prefix.
struct Others {
    /// The rest of longer prefixes.
    longer: Vec<Box<str>>,
    /// Listed by those with a shorter prefix.
    listed: HashSet<Box<str>>,
}

impl Neighbours<'_> {
    /// What a document lists, less the prefix. Nothing, where it is not one of a backup.
    fn listed(&self, metadata_name: &ObjectName) -> Result<HashSet<Box<str>>> {
        let stem = metadata_name.as_str().strip_suffix(METADATA_SUFFIX).unwrap_or_default();
        let backup = match (self.open)(metadata_name) {
            Ok(backup) => backup,
            Err(error) if matches!(error.kind(), ErrorKind::AccessDenied | ErrorKind::StoreIo) => {
                return Err(error);
            }
            Err(_) => return Ok(HashSet::new()),
        };
        let names = backup.objects.iter().filter_map(|object| backup.object_name(object).ok());
        Ok(names.filter_map(|name| Some(name.as_str().strip_prefix(stem)?.into())).collect())
    }

    fn others(&self, metadata_name: &ObjectName, prefix: &str) -> Result<Others> {
        let mut others = Others { longer: Vec::new(), listed: HashSet::new() };
        for document in self.documents.iter().filter(|document| *document != metadata_name) {
            let (_, other) = place_of(document);
            if let Some(rest) = other.strip_prefix(prefix) {
                others.longer.push(rest.into());
            } else if let Some(rest) = prefix.strip_prefix(other) {
                let begin_with_ours = self
                    .listed(document)?
                    .into_iter()
                    .filter_map(|suffix| suffix.strip_prefix(rest).map(Into::into));
                others.listed.extend(begin_with_ours);
            }
        }
        Ok(others)
    }
}

/// Whether nobody but this backup can have files of that name: `…_backup_<id>` since Cinder 10.0.3, the folder before.
pub(in crate::writer) fn names_id(folder: &str, prefix: &str, id: &BackupId) -> bool {
    let by_prefix = prefix.strip_suffix(id.as_str()).is_some_and(|rest| rest.ends_with("_backup_"));
    by_prefix || folder.rsplit('/').next() == Some(id.as_str())
}

/// Whether a name's rest is an object's.
pub(in crate::writer) fn is_numbered(suffix: &str) -> bool {
    let digits = suffix.strip_prefix('-').unwrap_or_default();
    digits.len() >= NUMBER_DIGITS_MIN && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_named_by_a_prefix_or_a_folder() {
        let id = BackupId::parse("b-1").unwrap();
        assert!(names_id("team/one", "volume_v_2024_backup_b-1", &id));
        assert!(names_id("b-/1/b-1", "backup", &id));
        assert!(names_id("b-1", "backup", &id));
        for (folder, prefix) in [
            ("team/one", "backup"),
            ("", "b-1"),
            ("x", "volume_v_backup_ab-1"),
            ("b-1/x", "backup"),
            ("", ""),
        ] {
            assert!(!names_id(folder, prefix, &id), "{folder} {prefix}");
        }
    }

    #[test]
    fn objects_have_numbers_of_five_digits_or_more() {
        assert!(is_numbered("-00001") && is_numbered("-100000"));
        for other in ["", "-", "-0001", "-0000x", "00001", "-00001.tmp", "_metadata"] {
            assert!(!is_numbered(other), "{other}");
        }
    }
}
