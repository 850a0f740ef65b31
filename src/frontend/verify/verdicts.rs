//! What becomes of each backup: the objects' faults and what its image shows, put together.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::at_risk;
use super::findings::{BackupReport, Cinder, Finding, Kind, Ranges, Severity, Verdict};
use super::image;
use super::judge::Fault;
use super::layers::{NOT_LOOKED_AT, is_of_the_store, number};
use super::object::Checked;
use super::report::Report;
use super::run::{GOOD, NOT_CHECKED, Work, lock};
use super::sight::{Cause, Known, Sight};
use crate::backup::DigestFile;
use crate::catalog::Entry;
use crate::chain::extent_map::ObjectIndex;
use crate::error::{Error, ErrorKind, Result};
use crate::types::{BackupId, ObjectName};

impl Work<'_> {
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
        let name = image.layers().last().and_then(|tip| tip.digest_name().ok());
        let digests = digests.map(|finding| Finding { object: name.map(|name| name.to_string()), ..finding });
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
                // Frames that Cinder's decompressor may refuse end its restore as well, shown or not.
                let may_stop_cinder = checked.fault.as_ref().is_some_and(|fault| {
                    fault.cinder == Cinder::No
                        || fault.kind == Kind::ForeignFrames && fault.cinder == Cinder::Unknown
                });
                if let (true, Some(&finding)) = (may_stop_cinder || layer == chain[0], of_object.get(key)) {
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
            let finding = Finding::new(Kind::BackupUnusable, error.to_string(), cinder, reason);
            report.findings.push(finding.object(entry.metadata_name.as_str()));
        }
        let lost = sight.lost_by_cause.keys().filter_map(|cause| match cause {
            Cause::Object(object) => Some(object),
            _ => None,
        });
        for object in sight.visible.iter().chain(lost) {
            let layer = chain.len().checked_sub(1 + object.layer as usize).and_then(|at| chain.get(at));
            if let Some(&finding) = layer.and_then(|layer| of_object.get(&(number(*layer), object.object))) {
                let is_felt = report.findings[finding].cinder != Cinder::Yes
                    || sight.lost_by_cause.contains_key(&Cause::Object(*object));
                if is_felt {
                    ours.push(finding);
                }
            }
        }
        let digest_file = self.catalog.backup(entry).and_then(|backup| backup.digest_name()).ok();
        ours.extend(findings_of(&sight, digest_file.as_ref(), report));
        ours.sort_unstable();
        ours.dedup();
        let mut answer = (Cinder::Yes, "");
        let mut is_damaged = false;
        for &index in &ours {
            let finding = &mut report.findings[index];
            finding.touch(&entry.id);
            is_damaged |= finding.kind.severity() == Severity::Damage;
            if finding.cinder > answer.0 {
                answer = (finding.cinder, finding.reason);
            }
        }
        let is_document = |kind| matches!(kind, Kind::BackupUnusable | Kind::ParentElsewhere);
        for finding in report.findings.iter().filter(|finding| is_document(finding.kind)) {
            if finding.backups.contains(&entry.id) && finding.cinder > answer.0 {
                answer = (finding.cinder, finding.reason);
            }
        }
        let is_part = checked_bytes < total_bytes || sight.unread_bytes > 0 || is_unknown;
        let is_unseen = |problem: &Error| is_of_the_store(problem) || problem.kind() == ErrorKind::OutOfSight;
        let is_unreadable = entry.problem.as_ref().is_some_and(is_unseen);
        let verdict = match () {
            () if is_unreadable && !is_damaged => Verdict::Unchecked,
            () if is_unreadable => Verdict::Damaged,
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
fn findings_of(sight: &Sight, digest_file: Option<&ObjectName>, report: &mut Report) -> Vec<usize> {
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
        let in_digests = matches!(kind, Kind::DigestDamaged | Kind::DigestWrong);
        let object = digest_file.filter(|_| in_digests).map(ToString::to_string);
        add(Finding { ranges, object, ..Finding::new(kind, message, cinder, reason) });
    }
    if sight.block_size_changed {
        let message = "backups of this chain have blocks of different sizes";
        let reason = "it restores them, and refuses only to make the next incremental";
        add(Finding::new(Kind::BlockSizeChanged, message, Cinder::Yes, reason));
    }
    made
}
