//! The work of one run: backups opened one after the other, their objects on all cores, then the images.
//!
//! Invariant: no more backups are open at once than there are threads, and one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::findings::{BackupReport, Cinder, Finding, Kind, Ranges, Verdict};
use super::image::{self, Known, Sight};
use super::object::{self, Checked, Fault, Layer};
use super::plan::{Item, draw_of};
use super::report::Report;
use super::stock::{self, Owned};
use super::{Progress, VerifyOptions, at_risk, now};
use crate::backup::DigestFile;
use crate::cache_dir::verified::{Stamp, Verified};
use crate::catalog::{Catalog, Entry, Snapshot};
use crate::chain::extent_map::ObjectIndex;
use crate::chain::resolve::CHAIN_MAX;
use crate::error::{Error, ErrorKind, Result};
use crate::format::names::METADATA_SUFFIX;
use crate::store::ListedObject;
use crate::types::BackupId;

/// How often the observer is told.
const TICK: Duration = Duration::from_millis(100);

/// How often stamps are written down, so that a killed run is not in vain, in ticks.
const SAVE_EVERY: u32 = 600;

/// The backups whose objects are looked at: the chosen ones and all that they build on, as far as there are documents.
pub(super) struct Layers<'a> {
    catalog: &'a Catalog,
    entries: Vec<Arc<Entry>>,
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
    pub(super) fn strays(&self, names: &[ListedObject]) -> Vec<Finding> {
        let of = |entry: &Arc<Entry>| {
            let stem = entry.metadata_name.as_str().strip_suffix(METADATA_SUFFIX)?;
            let backup = self.catalog.backup(entry).ok()?;
            let suffixes = backup.objects.iter().filter_map(|object| {
                let name = backup.object_name(object).ok()?;
                Some(name.as_str().strip_prefix(stem)?.into())
            });
            let owned =
                Owned { id: entry.id.clone(), stem: stem.to_owned(), suffixes: Some(suffixes.collect()) };
            stock::strays(names, &owned)
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
    fn chain(&self, entry: &Entry) -> Vec<usize> {
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

    fn open(&self, layer: usize) -> Result<Layer> {
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

const NOT_LOOKED_AT: &str = "it was not looked at";

/// What became of an object, in one byte.
const NOT_CHECKED: u8 = 0;
const GOOD: u8 = 1;
/// It has an entry in [`Work::noted`].
const NOTED: u8 = 2;

/// What the threads share.
pub(super) struct Work<'a> {
    catalog: &'a Catalog,
    layers: &'a Layers<'a>,
    names: &'a [ListedObject],
    options: &'a VerifyOptions<'a>,
    queue: Mutex<Queue>,
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    stored_bytes: AtomicU64,
    objects: AtomicU64,
    /// By layer and object.
    states: Vec<Vec<AtomicU8>>,
    noted: Mutex<BTreeMap<(u32, u32), Checked>>,
    unread: Mutex<Vec<(u32, u32, Error)>>,
    faults: AtomicU64,
    /// The time was up.
    is_late: AtomicBool,
}

struct Queue {
    items: Vec<Item>,
    next: usize,
    open: Option<(u32, Arc<Layer>)>,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        catalog: &'a Catalog,
        layers: &'a Layers<'a>,
        names: &'a [ListedObject],
        items: Vec<Item>,
        options: &'a VerifyOptions<'a>,
    ) -> Self {
        let mut states = Vec::with_capacity(layers.entries.len());
        let mut total_bytes = 0;
        let wanted: HashSet<(u32, u32)> = items.iter().map(|item| (item.layer, item.object)).collect();
        for (layer, entry) in layers.entries.iter().enumerate() {
            let backup = catalog.backup(entry).ok();
            let objects = backup.as_ref().map_or(&[][..], |backup| &backup.objects);
            states.push(objects.iter().map(|_| AtomicU8::new(NOT_CHECKED)).collect());
            let bytes = |(index, len): (usize, u64)| {
                if wanted.contains(&(number(layer), number(index))) { len } else { 0 }
            };
            total_bytes += objects.iter().map(|object| object.len_bytes).enumerate().map(bytes).sum::<u64>();
        }
        Self {
            catalog,
            layers,
            names,
            options,
            queue: Mutex::new(Queue { items, next: 0, open: None }),
            total_bytes: AtomicU64::new(total_bytes),
            done_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            states,
            noted: Mutex::default(),
            unread: Mutex::default(),
            faults: AtomicU64::new(0),
            is_late: AtomicBool::new(false),
        }
    }

    /// Checks the objects.
    pub(super) fn run(&self, threads: usize, observer: &dyn Fn(Progress)) {
        let tell = || {
            observer(Progress {
                done_bytes: self.done_bytes.load(Ordering::Relaxed),
                total_bytes: self.total_bytes.load(Ordering::Relaxed),
                findings: self.faults.load(Ordering::Relaxed),
            });
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(|| self.check_objects())).collect();
            let mut ticks = 0;
            while running.iter().any(|thread| !thread.is_finished()) {
                std::thread::park_timeout(TICK);
                tell();
                ticks += 1;
                if let (0, Some(stamps)) = (ticks % SAVE_EVERY, self.options.stamps)
                    && let Err(error) = stamps.save()
                {
                    tracing::debug!("{error}");
                }
            }
        });
        tell();
    }

    fn next(&self) -> Option<(Item, Result<Arc<Layer>>)> {
        if self.options.cancel.load(Ordering::Relaxed) {
            return None;
        }
        let mut queue = lock(&self.queue);
        let item = queue.items.get(queue.next)?.clone();
        if self.options.until.is_some_and(|until| std::time::Instant::now() >= until) {
            self.is_late.store(true, Ordering::Relaxed);
            return None;
        }
        queue.next += 1;
        if let Some((layer, open)) = &queue.open
            && *layer == item.layer
        {
            let open = open.clone();
            return Some((item, Ok(open)));
        }
        let opened = self.layers.open(item.layer as usize).map(Arc::new);
        queue.open = opened.as_ref().ok().map(|open| (item.layer, open.clone()));
        Some((item, opened))
    }

    fn check_objects(&self) {
        let tell = |bytes| _ = self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        while let Some((item, layer)) = self.next() {
            let checked = layer.and_then(|layer| {
                let (store, cancel) = (&**self.catalog.store(), self.options.cancel);
                object::check(store, &layer, item.object, cancel, &tell).map(|checked| (layer, checked))
            });
            let (layer, checked) = match checked {
                Ok(checked) => checked,
                Err(error) if error.kind() == ErrorKind::Interrupted => return,
                Err(error) => {
                    lock(&self.unread).push((item.layer, item.object, error));
                    continue;
                }
            };
            self.objects.fetch_add(1, Ordering::Relaxed);
            self.stored_bytes.fetch_add(item.stored_bytes, Ordering::Relaxed);
            self.stamp(&layer, &item, checked.fault.is_none());
            let is_good = checked.fault.is_none() && checked.unproven.is_empty();
            if !is_good {
                self.faults.fetch_add(u64::from(checked.fault.is_some()), Ordering::Relaxed);
                lock(&self.noted).insert((item.layer, item.object), checked);
            }
            self.set_state(&item, if is_good { GOOD } else { NOTED });
        }
    }

    fn set_state(&self, item: &Item, state: u8) {
        let of_layer = self.states.get(item.layer as usize);
        if let Some(known) = of_layer.and_then(|states| states.get(item.object as usize)) {
            known.store(state, Ordering::Release);
        }
    }

    fn state(&self, layer: usize, object: u32) -> u8 {
        let of_layer = self.states.get(layer);
        of_layer
            .and_then(|states| states.get(object as usize))
            .map_or(NOT_CHECKED, |state| state.load(Ordering::Acquire))
    }

    fn stamp(&self, layer: &Layer, item: &Item, is_good: bool) {
        let Some(stamps) = self.options.stamps else { return };
        let object = layer.backup.objects.get(item.object as usize);
        let name = object.and_then(|object| layer.backup.object_name(object).ok());
        if let Some(listed) = name.and_then(|name| stock::find(self.names, &name)) {
            stamps.set(&listed.name, &listed.stat, Stamp { at: now(), is_good });
        }
    }

    /// Looks at the chosen backups as images, and puts everything together.
    pub(super) fn look_at_images(&self, chosen: &[Arc<Entry>], threads: usize, report: &mut Report) {
        let next = AtomicUsize::new(0);
        let looked = Mutex::new(BTreeMap::new());
        let noted = std::mem::take(&mut *lock(&self.noted));
        std::thread::scope(|scope| {
            for _ in 0..threads.clamp(1, chosen.len().max(1)) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(entry) = chosen.get(index) else { return };
                        if self.options.cancel.load(Ordering::Relaxed) {
                            return;
                        }
                        let result = self.look(entry, &noted);
                        lock(&looked).insert(index, result);
                    }
                });
            }
        });
        let mut looked = looked.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.objects = self.objects.load(Ordering::Relaxed);
        report.plain_bytes = self.done_bytes.load(Ordering::Relaxed);
        report.stored_bytes = self.stored_bytes.load(Ordering::Relaxed);
        report.is_late = self.is_late.load(Ordering::Relaxed);
        report.is_interrupted = self.options.cancel.load(Ordering::Relaxed);
        let mut of_object = HashMap::new();
        for (&(layer, object), checked) in &noted {
            let Some(fault) = &checked.fault else { continue };
            of_object.insert((layer, object), report.findings.len());
            report.findings.push(self.finding_of(layer, object, fault));
        }
        self.add_unread(report);
        for (index, entry) in chosen.iter().enumerate() {
            let looked = looked.remove(&index);
            self.sum_up(entry, looked, &noted, &of_object, report);
        }
    }

    fn finding_of(&self, layer: u32, object: u32, fault: &Fault) -> Finding {
        let entry = &self.layers.entries[layer as usize];
        let mut finding =
            Finding::new(fault.kind, fault.message.clone(), fault.cinder, fault.reason).of(&entry.id);
        finding.object = self.name_of(layer, object);
        finding.ranges = fault.bad.iter().cloned().collect();
        finding
    }

    fn name_of(&self, layer: u32, object: u32) -> Option<String> {
        let backup = self.catalog.backup(self.layers.entries.get(layer as usize)?).ok()?;
        let name = backup.object_name(backup.objects.get(object as usize)?).ok()?;
        Some(name.as_str().to_owned())
    }

    fn add_unread(&self, report: &mut Report) {
        for (layer, object, error) in lock(&self.unread).drain(..) {
            let entry = &self.layers.entries[layer as usize];
            let mut finding =
                Finding::new(Kind::ObjectUnreadable, error.to_string(), Cinder::Unknown, NOT_LOOKED_AT)
                    .of(&entry.id);
            finding.object = self.name_of(layer, object);
            report.add(finding);
            report.fail(&error);
        }
    }

    fn look(&self, entry: &Arc<Entry>, noted: &BTreeMap<(u32, u32), Checked>) -> Result<Looked> {
        if entry.problem.is_some() {
            return Ok(Looked::default());
        }
        let image = self.catalog.image(entry)?;
        let mut chain = self.layers.chain(entry);
        chain.reverse();
        let known = |object: ObjectIndex| {
            let Some(&layer) = chain.get(object.layer as usize) else { return Known::Nothing };
            match self.state(layer, object.object) {
                NOT_CHECKED => Known::Nothing,
                GOOD => Known::Checked { bad: &[], unproven: &[], is_faulty: false },
                _ => match noted.get(&(number(layer), object.object)) {
                    Some(checked) => Known::Checked {
                        bad: checked.fault.as_ref().map_or(&[], |fault| &fault.bad),
                        unproven: &checked.unproven,
                        is_faulty: checked.fault.as_ref().is_some_and(|fault| !fault.bad.is_empty()),
                    },
                    None => Known::Nothing,
                },
            }
        };
        let store = &**self.catalog.store();
        let sight = image::look(store, &image, &known, self.options.cancel)?;
        let digests = match image.layers().last().map(|tip| tip.digests(store)) {
            Some(Ok(DigestFile::Missing)) => {
                let message = "there is no document of digests, so only each object's md5 proves the bytes";
                let reason = "it reads no digests; only the next incremental needs them";
                Some(Finding::new(Kind::DigestsMissing, message, Cinder::Yes, reason))
            }
            Some(Ok(DigestFile::Torn(error))) => {
                let reason = "it reads no digests; only the next incremental needs them";
                Some(Finding::new(Kind::DigestsTorn, error.to_string(), Cinder::Yes, reason))
            }
            _ => None,
        };
        let snapshot = self.catalog.snapshot();
        let older = |id: &BackupId| self.catalog.image(snapshot.get(id.as_str())?).ok();
        let at_risk = at_risk::find(&image, &older, self.options.cancel)?;
        Ok(Looked { sight: Some(sight), digests, at_risk })
    }

    /// Cinder's answer to the objects of a chain, whether they show or not.
    fn worst_of(&self, chain: &[usize], noted: &BTreeMap<(u32, u32), Checked>) -> Cinder {
        let of_layer = |&layer: &usize| {
            let faults = noted.range((number(layer), 0)..=(number(layer), u32::MAX));
            faults.filter_map(|(_, checked)| checked.fault.as_ref()).map(|fault| fault.cinder)
        };
        chain.iter().flat_map(of_layer).max().unwrap_or(Cinder::Yes)
    }

    /// One backup's report, and its findings.
    fn sum_up(
        &self,
        entry: &Arc<Entry>,
        looked: Option<Result<Looked>>,
        noted: &BTreeMap<(u32, u32), Checked>,
        of_object: &HashMap<(u32, u32), usize>,
        report: &mut Report,
    ) {
        let chain = self.layers.chain(entry);
        let (mut total_bytes, mut checked_bytes) = (0, 0);
        let mut ours: Vec<usize> = Vec::new();
        for &layer in &chain {
            let Ok(backup) = self.catalog.backup(&self.layers.entries[layer]) else { continue };
            for (index, object) in backup.objects.iter().enumerate() {
                total_bytes += object.len_bytes;
                if self.state(layer, number(index)) != NOT_CHECKED {
                    checked_bytes += object.len_bytes;
                }
            }
            let (first, last) = ((number(layer), 0), (number(layer), u32::MAX));
            for (key, checked) in noted.range(first..=last) {
                let stops_cinder = checked.fault.as_ref().is_some_and(|fault| fault.cinder == Cinder::No);
                if let (true, Some(&finding)) = (stops_cinder || layer == chain[0], of_object.get(key)) {
                    ours.push(finding);
                }
            }
            // What Cinder stumbles over in an ancestor, it stumbles over here.
            let id = &self.layers.entries[layer].id;
            let strays =
                report.findings.iter().enumerate().filter(|(_, finding)| {
                    finding.kind == Kind::Stray && finding.backups.first() == Some(id)
                });
            ours.extend(strays.map(|(index, _)| index).collect::<Vec<_>>());
        }
        let (mut sight, mut is_unknown, mut unusable) = (Sight::default(), entry.problem.is_none(), None);
        match looked {
            Some(Ok(looked)) => {
                for finding in [looked.digests, looked.at_risk].into_iter().flatten() {
                    ours.push(report.findings.len());
                    report.findings.push(finding);
                }
                if let Some(seen) = looked.sight {
                    is_unknown = false;
                    sight = seen;
                }
            }
            Some(Err(error)) if error.kind() == ErrorKind::Interrupted => report.is_interrupted = true,
            Some(Err(error)) if is_of_the_store(&error) => report.fail(&error),
            Some(Err(error)) => unusable = Some(error),
            None => {}
        }
        if let Some(error) = &sight.failure {
            report.fail(error);
        }
        if let Some(error) = &unusable {
            ours.push(report.findings.len());
            // What the documents contradict each other in, Cinder does not look at.
            let (cinder, reason) = match checked_bytes == total_bytes {
                true => (self.worst_of(&chain, noted), "it looks neither at digests nor at lengths"),
                false => (Cinder::Unknown, NOT_LOOKED_AT),
            };
            report.findings.push(Finding::new(Kind::BackupUnusable, error.to_string(), cinder, reason));
        }
        let lost = sight.lost_by_cause.keys().filter_map(|cause| match cause {
            image::Cause::Object(object) => Some(object),
            _ => None,
        });
        for object in sight.visible.iter().chain(lost) {
            let layer = chain.len().checked_sub(1 + object.layer as usize).and_then(|at| chain.get(at));
            if let Some(&finding) = layer.and_then(|layer| of_object.get(&(number(*layer), object.object))) {
                let is_felt = report.findings[finding].cinder != Cinder::Yes
                    || sight.lost_by_cause.contains_key(&image::Cause::Object(*object));
                if is_felt {
                    ours.push(finding);
                }
            }
        }
        ours.extend(findings_of(&sight, report));
        ours.sort_unstable();
        ours.dedup();
        let mut answer = (Cinder::Yes, "");
        let mut is_damaged = false;
        for &index in &ours {
            let finding = &mut report.findings[index];
            finding.touch(&entry.id);
            is_damaged |= finding.kind.severity() == super::findings::Severity::Damage;
            if finding.cinder > answer.0 {
                answer = (finding.cinder, finding.reason);
            }
        }
        for finding in report.findings.iter().filter(|finding| finding.kind == Kind::BackupUnusable) {
            if finding.backups.contains(&entry.id) && finding.cinder > answer.0 {
                answer = (finding.cinder, finding.reason);
            }
        }
        let is_part = checked_bytes < total_bytes || sight.unread_bytes > 0 || is_unknown;
        let is_unreadable = entry.problem.as_ref().is_some_and(is_of_the_store);
        let verdict = match () {
            () if is_unreadable => Verdict::Unchecked,
            () if entry.problem.is_some() || unusable.is_some() => Verdict::Unusable,
            () if is_damaged => Verdict::Damaged,
            () if is_part => Verdict::Unchecked,
            () => Verdict::Good,
        };
        if verdict == Verdict::Unchecked && answer.0 < Cinder::Unknown {
            answer = (Cinder::Unknown, "not all of it was looked at");
        }
        let (cinder, reason) = answer;
        let (lost, healed_bytes) = (sight.lost, sight.healed_bytes);
        let id = entry.id.clone();
        report.backups.push(BackupReport {
            id,
            verdict,
            cinder,
            reason,
            total_bytes,
            checked_bytes,
            lost,
            healed_bytes,
        });
    }
}

/// What one backup's image showed.
#[derive(Default)]
struct Looked {
    sight: Option<Sight>,
    digests: Option<Finding>,
    at_risk: Option<Finding>,
}

/// Findings that are no object's fault. Returns where they stand.
fn findings_of(sight: &Sight, report: &mut Report) -> Vec<usize> {
    let mut made = Vec::new();
    let mut add = |finding| {
        made.push(report.findings.len());
        report.findings.push(finding);
    };
    let mut by_kind: BTreeMap<Kind, (Vec<Range<u64>>, Cinder, String)> = BTreeMap::new();
    for (cause, (lost, why)) in &sight.lost_by_cause {
        let Some(kind) = cause.kind() else { continue };
        let why = why.as_ref().map_or_else(String::new, ToString::to_string);
        let (ranges, cinder, _) = by_kind.entry(kind).or_insert_with(|| (Vec::new(), Cinder::Yes, why));
        ranges.extend_from_slice(lost.kept());
        *cinder = (*cinder).max(cause.cinder());
    }
    for (cause, saved) in &sight.saved_by_cause {
        let Some(kind) = cause.kind().filter(|_| cause.cinder() == Cinder::Wrongly) else { continue };
        let why = "the bytes are not those of this backup, and a reader gets them from elsewhere".to_owned();
        let (ranges, cinder, _) = by_kind.entry(kind).or_insert_with(|| (Vec::new(), Cinder::Yes, why));
        ranges.extend_from_slice(saved.kept());
        *cinder = Cinder::Wrongly;
    }
    for (kind, (mut ranges, cinder, message)) in by_kind {
        ranges.sort_by_key(|range| range.start);
        let ranges: Ranges = ranges.into_iter().collect();
        let reason = match cinder {
            Cinder::Yes => "it reads no digests",
            _ => "it compares nothing with the digests",
        };
        add(Finding { ranges, ..Finding::new(kind, message, cinder, reason) });
    }
    if sight.block_size_changed {
        let message = "backups of this chain have blocks of different sizes";
        let reason = "it restores them, and refuses only to make the next incremental";
        add(Finding::new(Kind::BlockSizeChanged, message, Cinder::Yes, reason));
    }
    made
}

fn is_of_the_store(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StoreIo | ErrorKind::AccessDenied | ErrorKind::StoreNotFound)
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
