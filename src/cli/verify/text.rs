//! The report of `verify` for people: what is wrong under the backup that it lies in, then one line for all.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

use indicatif::BinaryBytes;

use super::super::render::{visible, wrapped};
use super::super::restore::said as backup_said;
use super::super::spans;
use crate::catalog::Entry;
use crate::frontend::verify::Report;
use crate::frontend::verify::findings::{BackupReport, Cinder, Finding, Severity, Verdict};
use crate::types::{BackupId, count};

/// Ranges of a finding that are shown; `-f json` has more.
const RANGES_SHOWN_MAX: usize = 3;

/// Other backups of a finding that are named.
const BACKUPS_SHOWN_MAX: usize = 3;

/// Writes the report.
pub(super) fn write(
    out: &mut dyn Write,
    report: &Report,
    entry: &dyn Fn(&BackupId) -> Option<Arc<Entry>>,
) -> io::Result<()> {
    let mut of_backup: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
    let mut of_store = Vec::new();
    for finding in &report.findings {
        match finding.backups.first() {
            Some(id) => of_backup.entry(id.as_str()).or_default().push(finding),
            None => of_store.push(finding),
        }
    }
    for backup in &report.backups {
        let own = of_backup.remove(backup.id.as_str()).unwrap_or_default();
        let is_fine = backup.verdict == Verdict::Good && backup.cinder == Cinder::Yes;
        let is_part = backup.verdict == Verdict::Unchecked && backup.cinder <= Cinder::Unknown;
        if (is_fine || is_part) && own.is_empty() {
            continue;
        }
        let name = entry(&backup.id).map_or_else(|| backup.id.to_string(), |entry| backup_said(&entry));
        writeln!(out, "{name}\n{}", verdict(backup))?;
        findings(out, &own)?;
    }
    for (id, own) in of_backup {
        writeln!(out, "{id}")?;
        findings(out, &own)?;
    }
    if !of_store.is_empty() {
        writeln!(out, "the store")?;
        findings(out, &of_store)?;
    }
    advice(out, report)?;
    writeln!(out, "{}", summary(report))
}

/// What to do about what was found, once for each way out.
fn advice(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let all: BTreeSet<&str> = report.findings.iter().filter_map(|finding| finding.kind.advice()).collect();
    if !all.is_empty() {
        writeln!(out, "what to do")?;
    }
    all.into_iter().try_for_each(|advice| writeln!(out, "{}", wrapped("  - ", "    ", advice)))
}

fn verdict(backup: &BackupReport) -> String {
    let mut text = backup.verdict.name().to_owned();
    if !backup.lost.is_empty() {
        text.push_str(&format!(": {} lost", BinaryBytes(backup.lost.bytes())));
    }
    if backup.healed_bytes > 0 {
        text.push_str(&format!(", {} had from other backups", BinaryBytes(backup.healed_bytes)));
    }
    text.push_str(&format!("\nwould Cinder restore it: {}", backup.cinder.name()));
    if !backup.reason.is_empty() {
        text.push_str(&format!(" ({})", backup.reason));
    }
    let lines: Vec<_> = text.lines().map(|line| wrapped("  ", "    ", line)).collect();
    lines.join("\n")
}

fn findings(out: &mut dyn Write, findings: &[&Finding]) -> io::Result<()> {
    for finding in findings {
        let (severity, kind) = (finding.kind.severity().name(), finding.kind.name());
        let head = format!("{severity} {kind}: {}", visible(&finding.message));
        writeln!(out, "{}", wrapped("  ", "    ", &head))?;
        // Names are long, and are copied; what the message has, it has with the whole name.
        if let Some(object) = finding.object.as_deref().filter(|name| !finding.message.contains(name)) {
            writeln!(out, "    {}", visible(object))?;
        }
        let ranges = ranges(finding);
        if !ranges.is_empty() {
            writeln!(out, "{}", wrapped("    ", "      ", &format!("volume bytes {ranges}")))?;
        }
        if let [_, others @ ..] = &finding.backups[..]
            && !others.is_empty()
        {
            let mut names: Vec<_> = others.iter().take(BACKUPS_SHOWN_MAX).map(ToString::to_string).collect();
            if others.len() > BACKUPS_SHOWN_MAX {
                names.push(format!("{} more", others.len() - BACKUPS_SHOWN_MAX));
            }
            writeln!(out, "{}", wrapped("    ", "      ", &format!("also in {}", names.join(", "))))?;
        }
    }
    Ok(())
}

fn ranges(finding: &Finding) -> String {
    let kept = finding.ranges.kept();
    let mut shown: Vec<String> =
        kept.iter().take(RANGES_SHOWN_MAX).map(|range| format!("{} to {}", range.start, range.end)).collect();
    if kept.len() > RANGES_SHOWN_MAX {
        shown.push(format!("and more, {} in all", BinaryBytes(finding.ranges.bytes())));
    }
    shown.join(", ")
}

fn summary(report: &Report) -> String {
    let seconds = report.elapsed.as_secs_f64();
    let rate = (report.plain_bytes as f64 / seconds.max(0.001)) as u64;
    let of = |verdict: Verdict| report.backups.iter().filter(|backup| backup.verdict == verdict).count();
    let mut text = format!("{}: {} good", count(report.backups.len() as u64, "backup"), of(Verdict::Good));
    for verdict in [Verdict::Damaged, Verdict::Unusable, Verdict::Unchecked] {
        if of(verdict) > 0 {
            text.push_str(&format!(", {} {}", of(verdict), verdict.name()));
        }
    }
    text.push_str(&format!(
        "\n{}, {} verified in {seconds:.1} s, {}/s",
        count(report.objects, "object"),
        BinaryBytes(report.plain_bytes),
        BinaryBytes(rate),
    ));
    for severity in [Severity::Damage, Severity::Warning, Severity::Note] {
        if report.count(severity) > 0 {
            let what = if severity == Severity::Damage { "case of damage" } else { severity.name() };
            let n = report.count(severity) as u64;
            let text_of = if severity == Severity::Damage && n != 1 {
                format!("{n} cases of damage")
            } else {
                count(n, what)
            };
            text.push_str(&format!(", {text_of}"));
        }
    }
    if report.is_late {
        text.push_str("\nthe time was up before everything was looked at");
    }
    if let Some(age) = report.oldest_seconds {
        text.push_str(&format!("\nbefore this run: oldest check {} ago", spans::said(age)));
        if report.never_objects > 0 {
            text.push_str(&format!(
                ", {} never verified ({})",
                count(report.never_objects, "object"),
                BinaryBytes(report.never_bytes)
            ));
        }
    }
    text
}
