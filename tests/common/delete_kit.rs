//! Deleting by the library: what goes, and what must be left.

#![allow(dead_code, reason = "each test binary uses its part of the kit")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

use std::collections::BTreeSet;
use std::path::Path;

use cinderfs::Result;
use cinderfs::types::BackupId;
use cinderfs::writer::delete::{self, DeleteOptions, Plan};

use crate::life_kit::{Made, catalog};

pub(crate) fn id(id: &str) -> BackupId {
    BackupId::parse(id).unwrap()
}

pub(crate) fn plan(root: &Path, name: &str, options: &DeleteOptions) -> Result<Plan> {
    delete::plan(&catalog(root), root, &[id(name)], options)
}

/// Deletes one; the ids in the order in which they went.
pub(crate) fn delete(root: &Path, name: &str, options: &DeleteOptions) -> Result<Vec<String>> {
    let plan = plan(root, name, options)?;
    let mut gone = Vec::new();
    delete::delete(root, &plan, options, &|| false, &mut |backup| gone.push(backup.entry.id.to_string()))?;
    Ok(gone)
}

pub(crate) fn cascade() -> DeleteOptions {
    DeleteOptions { cascade: true, ..DeleteOptions::default() }
}

pub(crate) fn store_of(backups: &[&Made]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    backups.iter().for_each(|made| _ = made.put(folder.path()));
    folder
}

pub(crate) fn less(all: &BTreeSet<String>, gone: &[&Made]) -> BTreeSet<String> {
    let gone: BTreeSet<_> = gone.iter().flat_map(|made| made.file_names()).collect();
    all.difference(&gone).cloned().collect()
}
