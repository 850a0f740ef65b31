//! What a run found, put together.

use std::time::Duration;

use super::findings::{BackupReport, Cinder, Finding, Kind, Severity, Verdict};
use super::plan::Item;
use crate::error::Error;
use crate::store::reports::REASONS_MAX;

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// The chosen backups, in the order in which they were chosen.
    pub backups: Vec<BackupReport>,
    /// Whether all backups of the store were chosen.
    pub is_whole_store: bool,
    /// Objects that were decoded and compared.
    pub objects: u64,
    /// Their plain bytes.
    pub plain_bytes: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
    /// Objects of the chosen chains that no run has checked as they are now, before this run.
    pub never_objects: u64,
    /// Their stored bytes.
    pub never_bytes: u64,
    /// Age in seconds of the check that is longest ago among the others, before this run.
    pub oldest_seconds: Option<u64>,
    /// Why a part of the store could not be looked at, if so.
    pub failure: Option<Error>,
    /// Whether the time was up before the work was done.
    pub is_late: bool,
    /// Whether it was interrupted.
    pub is_interrupted: bool,
    /// How long it took.
    pub elapsed: Duration,
}

impl Report {
    pub(super) fn new(is_whole_store: bool) -> Self {
        Self { is_whole_store, ..Self::default() }
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Notes a failure of the store; the first one is told.
    pub(super) fn fail(&mut self, error: &Error) {
        self.failure.get_or_insert_with(|| error.clone());
    }

    /// What of the store at `location` could not be looked into. Of many, the rest is one finding.
    pub(super) fn add_all_unreadable(&mut self, unreadable: &[(String, Error)], location: &str) {
        let (first, rest) = unreadable.split_at(unreadable.len().min(REASONS_MAX));
        for (place, error) in first {
            self.add_unreadable(place, error);
        }
        if let Some((_, error)) = rest.first() {
            let message = format!("{} more folders or objects cannot be read", rest.len());
            self.add_unreadable(location, &Error::new(error.kind(), message));
        }
    }

    fn add_unreadable(&mut self, place: &str, error: &Error) {
        let reason = "what lies there was not looked at";
        self.add(Finding::new(Kind::Unreadable, error.to_string(), Cinder::Unknown, reason).object(place));
        if !error.kind().is_damage() {
            self.fail(error);
        }
    }

    /// Notes how long ago the objects were checked, `now` in seconds since 1970.
    pub(super) fn note_ages(&mut self, items: &[Item], now: u64) {
        for item in items {
            match item.stamp {
                Some(stamp) => {
                    let age = now.saturating_sub(stamp.at);
                    self.oldest_seconds = Some(self.oldest_seconds.map_or(age, |oldest| oldest.max(age)));
                }
                None => {
                    self.never_objects += 1;
                    self.never_bytes += item.stored_bytes;
                }
            }
        }
    }

    pub(super) fn finish(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
        self.findings.sort_by(|a, b| {
            let key = |finding: &Finding| (finding.kind.severity(), finding.kind, finding.object.clone());
            key(a).cmp(&key(b))
        });
    }

    /// How many findings of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.kind.severity() == severity).count()
    }

    /// Whether something that was stored is damaged, or Cinder would not restore one of the backups rightly.
    pub fn is_damaged(&self) -> bool {
        self.count(Severity::Damage) > 0
            || self.backups.iter().any(|backup| {
                backup.cinder > Cinder::Unknown
                    || matches!(backup.verdict, Verdict::Damaged | Verdict::Unusable)
            })
    }
}
