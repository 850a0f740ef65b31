//! The backups whose objects a run looks at, and what their documents alone tell.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::findings::{Cinder, Finding, Kind};
use super::folders;
use super::layer::Layer;
use super::plan::{Item, draw_of};
use super::report::Report;
use super::stock::{self, Owned};
use crate::backup::DigestFile;
use crate::cache_dir::verified::Verified;
use crate::catalog::{Catalog, Entry, Snapshot};
use crate::chain::resolve::CHAIN_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::METADATA_SUFFIX;
use crate::store::ListedObject;
use crate::types::BackupId;

/// Cinder's answer where something was not looked at.
pub(super) const NOT_LOOKED_AT: &str = "it was not looked at";

/// The backups whose objects are looked at: the chosen ones and all that they build on, as far as there are documents.
pub(super) struct Layers<'a> {
    catalog: &'a Catalog,
    pub(super) entries: Vec<Arc<Entry>>,
    by_id: HashMap<BackupId, usize>,
}

impl<'a> Layers<'a> {
    pub(super) fn of(catalog: &'a Catalog, snapshot: &Snapshot, chosen: &[Arc<Entry>]) -> Self {
        let mut layers = Self { catalog, entries: Vec::new(), by_id: HashMap::new() };
        for entry in chosen {
            let mut next = Some(entry);
            // Who is known is known with all that he builds on.
            while let Some(entry) = next.filter(|entry| !layers.by_id.contains_key(&entry.id)) {
                layers.by_id.insert(entry.id.clone(), layers.entries.len());
                layers.entries.push(entry.clone());
                next = entry.parent_id.as_ref().and_then(|id| snapshot.get(id.as_str()));
            }
        }
        layers
    }

    /// What the documents alone tell.
    pub(super) fn report_problems(&self, report: &mut Report) {
        for entry in &self.entries {
            let Some(problem) = &entry.problem else { continue };
            if is_of_the_store(problem) {
                let finding =
                    Finding::new(Kind::Unreadable, problem.to_string(), Cinder::Unknown, NOT_LOOKED_AT);
                report.add(finding.object(entry.metadata_name.as_str()).of(&entry.id));
                report.fail(problem);
                continue;
            }
            if problem.kind() == ErrorKind::OutOfSight {
                let reason = "it knows in which container each backup lies, and this run sees one";
                let finding =
                    Finding::new(Kind::ParentElsewhere, problem.to_string(), Cinder::Unknown, reason);
                report.add(finding.object(entry.metadata_name.as_str()).of(&entry.id));
                report.fail(problem);
                continue;
            }
            let is_unsupported = |layer: &usize| {
                let ancestor = &self.entries[*layer];
                ancestor.problem.as_ref().is_some_and(|problem| problem.kind() == ErrorKind::Unsupported)
            };
            let (cinder, reason) = match problem.kind() {
                ErrorKind::Ambiguous => (Cinder::Unknown, "its database decides which of them counts"),
                _ if entry.volume_id.is_some() && self.chain(entry).iter().any(is_unsupported) => {
                    (Cinder::Unknown, "it looks at the version of the wanted backup only")
                }
                ErrorKind::Unsupported => (Cinder::No, "it knows no other versions and compressions"),
                ErrorKind::ChainBroken => (Cinder::No, "it needs the whole chain"),
                ErrorKind::LimitExceeded => (Cinder::Unknown, "Cinder has other limits"),
                _ => (Cinder::No, "it cannot read the metadata"),
            };
            let finding = Finding::new(Kind::BackupUnusable, problem.to_string(), cinder, reason);
            report.add(finding.object(entry.metadata_name.as_str()).of(&entry.id));
        }
    }

    /// Files that make Cinder refuse a backup.
    pub(super) fn strays(&self, names: &[ListedObject], root: Option<&Path>) -> Vec<Finding> {
        let container = |entry: &'_ Arc<Entry>| {
            let name = entry.metadata_name.as_str();
            name.rsplit_once('/').map_or("", |(container, _)| container).to_owned()
        };
        let containers: Vec<String> = self.entries.iter().map(container).collect();
        let folders =
            root.map(|root| folders::within(root, containers.iter().map(String::as_str))).unwrap_or_default();
        let of = |entry: &Arc<Entry>| {
            let stem = entry.metadata_name.as_str().strip_suffix(METADATA_SUFFIX)?;
            let backup = self.catalog.backup(entry).ok()?;
            let suffixes = backup.objects.iter().filter_map(|object| {
                let name = backup.object_name(object).ok()?;
                Some(name.as_str().strip_prefix(stem)?.into())
            });
            let owned =
                Owned { id: entry.id.clone(), stem: stem.to_owned(), suffixes: Some(suffixes.collect()) };
            stock::strays(names, &folders, &owned)
        };
        self.entries.iter().filter_map(of).collect()
    }

    /// All objects.
    pub(super) fn items(&self, names: &[ListedObject], stamps: Option<&Verified>) -> Vec<Item> {
        let mut items = Vec::new();
        for (layer, entry) in self.entries.iter().enumerate() {
            let Ok(backup) = self.catalog.backup(entry) else { continue };
            for (index, object) in backup.objects.iter().enumerate() {
                let Ok(name) = backup.object_name(object) else { continue };
                let listed = stock::find(names, &name);
                items.push(Item {
                    layer: number(layer),
                    object: number(index),
                    stored_bytes: listed.map_or(0, |listed| listed.stat.len_bytes),
                    draw: draw_of(name.as_str()),
                    stamp: listed
                        .zip(stamps)
                        .and_then(|(listed, stamps)| stamps.get(&listed.name, &listed.stat)),
                });
            }
        }
        items
    }

    /// The chain of a backup, itself first, as far as it goes.
    pub(super) fn chain(&self, entry: &Entry) -> Vec<usize> {
        let mut chain = Vec::new();
        let mut next = self.by_id.get(&entry.id);
        while let Some(&layer) = next {
            if chain.contains(&layer) || chain.len() > CHAIN_MAX as usize {
                break;
            }
            chain.push(layer);
            next = self.entries[layer].parent_id.as_ref().and_then(|id| self.by_id.get(id));
        }
        chain
    }

    pub(super) fn open(&self, layer: usize) -> Result<Layer> {
        let entry = &self.entries[layer];
        let backup = self.catalog.backup(entry)?;
        let digests = match backup.digests(&**self.catalog.store()) {
            Ok(DigestFile::Usable(table)) => Some(table),
            Ok(DigestFile::Missing | DigestFile::Torn(_)) => None,
            Err(error) if is_of_the_store(&error) => return Err(error),
            Err(_) => None,
        };
        let len_bytes = match entry.problem {
            Some(_) => None,
            None => self.catalog.image(entry).ok().map(|image| image.len_bytes()),
        };
        Ok(Layer::new(backup, digests, len_bytes))
    }
}

/// Whether the store failed, and nothing is known of what it holds.
pub(super) fn is_of_the_store(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StoreIo | ErrorKind::AccessDenied | ErrorKind::StoreNotFound)
}

/// A place in a list, as it is kept.
pub(super) fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
