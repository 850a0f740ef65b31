//! The report of `verify` for programs.

use serde_json::{Map, Value, json};

use crate::frontend::verify::Report;
use crate::frontend::verify::findings::{BackupReport, Finding, Ranges, Severity};
use crate::types::BackupId;

/// Columns of the formats that are rows: a row for each finding.
pub(super) const COLUMNS: [&str; 7] = ["Severity", "Kind", "Backups", "Object", "Bytes", "Cinder", "Message"];

/// The whole report.
pub(super) fn whole(report: &Report) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("backups".into(), report.backups.iter().map(backup).collect());
    fields.insert("findings".into(), report.findings.iter().map(finding).collect());
    fields.insert("summary".into(), summary(report));
    fields
}

/// The end of it, which is also the last line of `--progress json`.
pub(super) fn summary(report: &Report) -> Value {
    let seconds = report.elapsed.as_secs_f64();
    json!({
        "backups": report.backups.len(),
        "damage": report.count(Severity::Damage),
        "warnings": report.count(Severity::Warning),
        "notes": report.count(Severity::Note),
        "objects": report.objects,
        "plain_bytes": report.plain_bytes,
        "stored_bytes": report.stored_bytes,
        "never_verified_objects": report.never_objects,
        "never_verified_bytes": report.never_bytes,
        "oldest_seconds": report.oldest_seconds,
        "complete": !report.is_late && !report.is_interrupted && report.failure.is_none(),
        "failure": report.failure.as_ref().map(ToString::to_string),
        "seconds": (seconds * 1000.0).round() / 1000.0,
        "verified_at": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    })
}

fn ids(backups: &[BackupId]) -> Vec<&str> {
    backups.iter().map(BackupId::as_str).collect()
}

fn ranges(ranges: &Ranges) -> Value {
    let range =
        |range: &std::ops::Range<u64>| json!({ "offset": range.start, "length": range.end - range.start });
    ranges.kept().iter().map(range).collect()
}

fn finding(finding: &Finding) -> Value {
    json!({
        "kind": finding.kind.name(),
        "severity": finding.kind.severity().name(),
        "backups": ids(&finding.backups),
        "object": finding.object,
        "ranges": ranges(&finding.ranges),
        "ranges_cut": finding.ranges.is_cut(),
        "bytes": finding.ranges.bytes(),
        "message": finding.message,
        "cinder": finding.cinder.name(),
        "reason": finding.reason,
    })
}

fn backup(backup: &BackupReport) -> Value {
    json!({
        "id": backup.id.as_str(),
        "verdict": backup.verdict.name(),
        "cinder": backup.cinder.name(),
        "reason": if backup.reason.is_empty() { Value::Null } else { json!(backup.reason) },
        "checked_bytes": backup.checked_bytes,
        "total_bytes": backup.total_bytes,
        "lost_bytes": backup.lost.bytes(),
        "lost_ranges": ranges(&backup.lost),
        "healed_bytes": backup.healed_bytes,
    })
}

/// A row for each finding.
pub(super) fn rows(report: &Report) -> Vec<Vec<Value>> {
    let row = |finding: &Finding| {
        vec![
            json!(finding.kind.severity().name()),
            json!(finding.kind.name()),
            json!(ids(&finding.backups)),
            json!(finding.object),
            json!(finding.ranges.bytes()),
            json!(finding.cinder.name()),
            json!(finding.message),
        ]
    };
    report.findings.iter().map(row).collect()
}
