//! `cinderfs repair`: damaged files of a backup, mended out of copies in the store.
//!
//! The engine is [`crate::writer::repair`]; here are the words, the order of a chain, the table and the exit code.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::args::{OutputArgs, StoreArg, threads};
use super::exit::{Failure, Outcome, note};
use super::progress::{Mode, Reporter};
use super::render::Format;
use super::restore::{RANGES_SHOWN_MAX, THREADS_MAX, said};
use super::signals::Signals;
use super::watch::Watch;
use super::{perhaps_unseen, print, render, select};
use crate::catalog::Entry;
use crate::error::ResultExt;
use crate::types::{BackupId, count};
use crate::writer::repair::{self as engine, Finding, Outcome as Became, RepairOptions};

const EXAMPLES: &str = "\
Examples:
  cinderfs repair /backup_mount db@latest --dry-run
  cinderfs repair /backup_mount db@latest
  cinderfs repair /backup_mount 52e81dfa --only

An object is written anew when every block of it can be had: from what is left
of it, or from any backup of the store that has a block of the same sha256. It
takes the place of the damaged one when it is whole and proven; a run that is
killed leaves one or the other. A digest file is made anew out of objects whose
md5 is right. Make sure first that the disk is sound, or work on a copy.

In an object store, new objects wait in TMPDIR until all are ready; each then
replaces by one request what still is as it was found. What was in pieces there
becomes one object; segments of Swift's stay.

Exit codes: 0 repaired, or nothing was wrong; 1 failed; 2 wrong usage; 3 some
damage stays, of which the report tells the ranges; 10 store not found; 12 the
store may not be changed; 130, 143 interrupted.";

/// Mend a damaged backup, and what it builds on, out of copies that the store holds elsewhere
///
/// Reads every object of the chain and compares it. Nothing is written that a digest has not proven, and nothing is removed.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backup: an id, a unique name, a unique prefix of an id, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave the backups alone that it builds on
    #[arg(long)]
    only: bool,
    /// Look at so many objects at once; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// How to show progress, on stderr
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is told of each damaged file.
const COLUMNS: [&str; 6] = ["Backup", "File", "Outcome", "Copied Blocks", "Lost Ranges", "Fault"];

/// Runs `repair`. `quiet` takes away the summary.
pub(crate) fn run(args: &RepairArgs, quiet: bool) -> Result<Outcome, Failure> {
    let chosen = args.output.choose(&COLUMNS)?;
    let store = args.store.writable()?;
    let catalog = args.store.catalog_to_write()?;
    let _watch = Watch::start(store.location(), args.store.timeout());
    let snapshot = catalog.snapshot();
    let entries = select::newest_first(&snapshot);
    let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
    let entry = select::backup(&entries, &args.backup, args.volume.as_deref(), &usable)
        .map_err(|failure| perhaps_unseen(failure, &snapshot))?;
    let signals = Signals::watch()?;
    let reporter = Reporter::new(args.progress, quiet, 0);
    let options = RepairOptions {
        dry_run: args.dry_run,
        threads: threads(args.threads),
        cancel: &signals.cancel,
        progress: &|done, total| reporter.update(done, total),
        hook: None,
    };
    let chain: Vec<BackupId> = match args.only {
        true => vec![entry.id.clone()],
        // The full one first: what builds on it heals from it.
        false => {
            let image = catalog.image(&entry).context(|| format!("backup {}", entry.id))?;
            image.chain().iter().rev().cloned().collect()
        }
    };
    let mut found: Vec<(BackupId, Finding)> = Vec::new();
    for id in chain {
        let findings = engine::repair(store.target(), &id, &options).context(|| format!("backup {id}"));
        let findings = findings.map_err(|error| signals.blame(error.into()))?;
        found.extend(findings.into_iter().map(|finding| (id.clone(), finding)));
    }
    let staying = found.iter().filter(|(_, finding)| !finding.outcome.is_good()).count();
    reporter.finish(|| json!({ "damaged_files": found.len(), "repaired_files": found.len() - staying, "dry_run": args.dry_run }));
    if args.output.format == Format::Table && !args.output.names_columns() {
        print(|out| {
            text(out, &found, &|id| {
                snapshot.get(id.as_str()).map_or_else(|| id.to_string(), |entry| said(entry))
            })
        })?;
    } else if !found.is_empty() || args.output.format != Format::Table {
        let titles: Vec<&str> = chosen.iter().map(|&column| COLUMNS[column]).collect();
        let rows: Vec<Vec<Value>> = found
            .iter()
            .map(|(id, finding)| {
                let row = row(id, finding);
                chosen.iter().map(|&column| row[column].clone()).collect()
            })
            .collect();
        print(|out| render::list(out, args.output.format, &titles, &rows))?;
    }
    if !quiet {
        note(&format!("cinderfs: {}: {}\n", said(&entry), summary(found.len(), staying, args.dry_run)));
    }
    Ok(if staying == 0 { Outcome::Done } else { Outcome::Damaged })
}

fn summary(found: usize, staying: usize, dry_run: bool) -> String {
    let mended = if dry_run { "could be repaired" } else { "repaired" };
    match (found, staying) {
        (0, _) => "nothing to repair".to_owned(),
        (_, 0) => format!("{}, all {mended}", count(found as u64, "damaged file")),
        _ => {
            let files = count(found as u64, "damaged file");
            format!("{files}, {} {mended}, {staying} not", found - staying)
        }
    }
}

/// What was found, for people: under each backup its files.
fn text(
    out: &mut dyn Write,
    found: &[(BackupId, Finding)],
    backup: &dyn Fn(&BackupId) -> String,
) -> io::Result<()> {
    let mut last = None;
    for (id, finding) in found {
        if last.replace(id) != Some(id) {
            writeln!(out, "{}", backup(id))?;
        }
        let [_, _, outcome, _, lost, fault] = row(id, finding);
        let words = |cell: &Value| cell.as_str().map(str::to_owned).unwrap_or_default();
        writeln!(out, "  {}", render::visible(&finding.file))?;
        let mut told = words(&outcome);
        if finding.copied_blocks > 0 {
            told.push_str(&format!(
                ", {} of it had from elsewhere in the store",
                count(finding.copied_blocks, "block")
            ));
        }
        writeln!(out, "{}", render::wrapped("    ", "      ", &told))?;
        if lost.is_string() {
            writeln!(
                out,
                "{}",
                render::wrapped("    ", "      ", &format!("volume bytes {}", words(&lost)))
            )?;
        }
        writeln!(out, "{}", render::wrapped("    ", "      ", &render::visible(&words(&fault))))?;
    }
    Ok(())
}

fn row(id: &BackupId, finding: &Finding) -> [Value; COLUMNS.len()] {
    let (outcome, lost, fault) = match &finding.outcome {
        Became::Repaired => ("repaired", None, finding.fault.to_string()),
        Became::Repairable => ("repairable", None, finding.fault.to_string()),
        Became::Lost(ranges) => ("lost", Some(shown(ranges)), finding.fault.to_string()),
        Became::Refused(error) => ("refused", None, error.to_string()),
    };
    [
        json!(id.as_str()),
        // The whole name holds the backup's id once or twice, and is too wide for a table.
        json!(finding.file.rsplit_once(id.as_str()).map_or(&*finding.file, |(_, suffix)| suffix)),
        json!(outcome),
        json!(finding.copied_blocks),
        json!(lost),
        json!(fault),
    ]
}

/// Where each begins and ends, of the first few.
fn shown(ranges: &[Range<u64>]) -> String {
    let mut words: Vec<String> = ranges
        .iter()
        .take(RANGES_SHOWN_MAX)
        .map(|range| format!("{} to {}", range.start, range.end))
        .collect();
    if ranges.len() > RANGES_SHOWN_MAX {
        words.push(format!("and {} more", ranges.len() - RANGES_SHOWN_MAX));
    }
    words.join(", ")
}
