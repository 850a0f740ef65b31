//! Is everything in a store right, and if not, what does it cost?
//!
//! Problem: bit rot is found on the day of the restore, unless somebody looks before. A look at everything is long, and must say more
//! than "damaged": which backups, which ranges, and whether Cinder would notice.
//!
//! Idea: four steps, each on what the one before has found.
//! 1. The documents and names of the store, all of them ([`stock`]): strays, orphans, copies, broken chains.
//! 2. Which objects are looked at in this run ([`plan`]): all of the chains of the chosen backups, or a share.
//! 3. Each of these objects once, on all cores ([`object`]): decoded to its end, md5, digests of its own backup.
//! 4. Each chosen backup as the image that a reader would see ([`image`]), from the digests, reading only what they do not prove;
//!    and chains at risk of a defect of older Cinders ([`at_risk`]).
//!
//! What it says is in [`findings`].
//!
//! Invariants: the store is only read; a store that fails is no damage; memory depends on the number of objects, at some 300
//! bytes each, and not on their size.

mod at_risk;
mod crew;
pub mod findings;
mod folders;
mod image;
mod judge;
mod layer;
mod layers;
mod object;
mod plan;
mod report;
mod run;
mod sight;
mod stock;
mod verdicts;

pub use plan::Subset;
pub use report::Report;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use self::findings::{Cinder, Finding, Kind};
use self::layers::Layers;
use self::run::Work;
use crate::cache_dir::verified::Verified;
use crate::catalog::{Catalog, Entry, Snapshot};
use crate::error::Result;
use crate::format::names::{METADATA_SUFFIX, Place};
use crate::store::ListedObject;
use crate::types::BackupId;

/// Settings of [`verify`].
#[derive(Clone, Copy)]
pub struct VerifyOptions<'a> {
    /// How many threads decode, at least 1.
    pub threads: usize,
    /// Once this is true no more is looked at, and the report says so.
    pub cancel: &'a AtomicBool,
    /// Which share of the objects.
    pub subset: Subset,
    /// What was checked then or later, in seconds since 1970, and was good, is left out.
    pub fresh_since: Option<u64>,
    /// No object is begun at or after this moment.
    pub until: Option<Instant>,
    /// What earlier runs did, and where this one is noted.
    pub stamps: Option<&'a Verified>,
    /// For [`Subset::Share`].
    pub seed: u64,
    /// The directory of the store, if it is one: there may be folders that no listing of objects shows.
    pub root: Option<&'a Path>,
}

impl<'a> VerifyOptions<'a> {
    /// Everything, on one thread, whatever earlier runs did.
    pub fn everything(cancel: &'a AtomicBool) -> Self {
        Self {
            threads: 1,
            cancel,
            subset: Subset::All,
            fresh_since: None,
            until: None,
            stamps: None,
            seed: 0,
            root: None,
        }
    }
}

/// How far a run has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Plain bytes of objects that are checked.
    pub done_bytes: u64,
    /// Plain bytes of objects that are to be checked.
    pub total_bytes: u64,
    /// Things found so far.
    pub findings: u64,
}

/// Verifies the backups of these ids with all they build on, and the store around them; all backups where `chosen` is `None`.
///
/// An error only when the store cannot be listed at all. What else fails is in the report.
pub fn verify(
    catalog: &Catalog,
    chosen: Option<&[BackupId]>,
    options: &VerifyOptions<'_>,
    observer: &dyn Fn(Progress),
) -> Result<Report> {
    let started = Instant::now();
    let snapshot = catalog.snapshot();
    let entries: Vec<Arc<Entry>> = match chosen {
        Some(ids) => ids.iter().filter_map(|id| snapshot.get(id.as_str()).cloned()).collect(),
        None => snapshot.entries().cloned().collect(),
    };
    // Everything, once; the documents are known already.
    let listing = catalog.store().list("")?;
    let mut report = Report::new(chosen.is_none());
    let layers = Layers::of(catalog, &snapshot, &entries);
    report.add_all_unreadable(&listing.unreadable, catalog.store().location());
    if chosen.is_none() {
        report.findings.extend(stock::orphans(&listing.objects, SystemTime::now()));
        report.findings.extend(copies(&snapshot, &listing.objects));
        report.findings.extend(match options.root {
            Some(root) => folders::leftovers(root),
            None => stock::markers(&listing.objects),
        });
    }
    layers.report_problems(&mut report);
    report.findings.extend(layers.strays(&listing.objects, options.root));
    let items = layers.items(&listing.objects, options.stamps);
    report.note_ages(&items, now());
    let chosen_items = plan::choose(items, options.subset, options.fresh_since, options.seed);
    let work = Work::new(catalog, &layers, &listing.objects, chosen_items, options);
    work.run(options.threads, observer);
    work.look_at_images(&entries, options.threads, &mut report);
    if let Some(stamps) = options.stamps {
        if chosen.is_none() && listing.unreadable.is_empty() {
            stamps.keep_only(listing.objects.iter().map(|listed| (&listed.name, &listed.stat)));
        }
        if let Err(error) = stamps.save() {
            tracing::warn!("the next run will not know what this one did: {error}");
        }
    }
    report.finish(started.elapsed());
    Ok(report)
}

/// Now, in seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Documents that stand behind another one of the same backup.
fn copies(snapshot: &Snapshot, names: &[ListedObject]) -> Vec<Finding> {
    let known: HashSet<&str> = snapshot.entries().map(|entry| entry.metadata_name.as_str()).collect();
    let by_name: BTreeMap<String, &Arc<Entry>> =
        snapshot.entries().map(|entry| (entry.id.to_string(), entry)).collect();
    let hidden = names.iter().filter(|listed| {
        let name = listed.name.as_str();
        name.ends_with(METADATA_SUFFIX) && !known.contains(name)
    });
    hidden
        .filter_map(|listed| {
            let place = Place::of(&listed.name, None)?.ok()?;
            let entry = by_name.get(&place.id_by_name());
            let message = match entry {
                Some(entry) => format!(
                    "another document of this backup; {:?} is the one that counts",
                    entry.metadata_name
                ),
                None => "a document of a backup that has another one".to_owned(),
            };
            let reason = "it restores by its database's word where the backup lies";
            let finding = Finding::new(Kind::Copy, message, Cinder::Yes, reason).object(listed.name.as_str());
            Some(match entry {
                Some(entry) => finding.of(&entry.id),
                None => finding,
            })
        })
        .collect()
}
