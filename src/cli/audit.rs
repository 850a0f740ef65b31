//! `cinderfs audit`: is a device or a file the volume as it was backed up?
//!
//! The engine is [`crate::frontend::audit`]; here are the words, the question before a repair, and the report.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::{Map, Value, json};

use super::args::{OutputArgs, StoreArg, threads};
use super::exit::{Failure, Outcome, note};
use super::map::short;
use super::progress::{Mode, Reporter};
use super::render::{self, Format};
use super::restore::{THREADS_MAX, refuse_inside_store, said};
use super::signals::Signals;
use super::{print, select};
use crate::catalog::Entry;
use crate::error::{ErrorKind, ResultExt};
use crate::frontend::audit::{self as engine, Finding, Repair, Repaired, Report, Wrong};
use crate::image::Image;
use crate::types::{BackupId, count};
use crate::writer::source::in_use::{self, InUse};
use crate::writer::source::{FileSource, host::Host};

const EXAMPLES: &str = "\
Examples:
  cinderfs audit /backup_mount db@latest /dev/vg/restored
  cinderfs audit /backup_mount 52e81dfa restored.img -f json
  cinderfs audit /backup_mount 52e81dfa /dev/vg/restored --repair

What is found:
  stale_data  zeros expected, an older backup's data found: what Cinder 22 to
              28 leave behind when they restore to a new volume
  older_data  other data of an older backup
  zeros       zeros where there should be data
  other       bytes that no backup of the chain has there
  unreadable  the target cannot be read
  missing     the target ends before
  unknown     the backup's digest is damaged

Exit codes: 0 the target is as it was backed up, or is so after --repair; 3 it differs; 1 it could not be compared, as \
with a backup without digests.";

/// Compare a device or a file with a backup, reading none of the backup's data
///
/// Each block of TARGET is compared with its digest, so that a volume that Cinder restored wrongly is found. Nothing is written
/// without --repair. A volume that is in use differs where it was written to since the backup.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backup: an id, a unique name, a unique prefix of an id, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// What to compare with it: a file or a block device
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Write the right bytes where TARGET differs, verified, after asking
    #[arg(long)]
    repair: bool,
    /// Repair without asking
    #[arg(long, requires = "repair")]
    yes: bool,
    /// Repair a target that is mounted or otherwise in use
    #[arg(long, requires = "repair")]
    force: bool,
    /// Compare on this many threads; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// How to show progress, on stderr
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
    #[command(flatten)]
    output: OutputArgs,
}

/// Titles of the table, and keys of JSON.
const TITLES: [&str; 4] = ["Start", "Length", "Found", "Backup"];
const KEYS: [&str; 4] = ["start", "length", "found", "backup"];

/// Most rows of a table; people want to know how bad it is, programs take another format.
const ROWS_MAX: usize = 100;

/// Runs `audit`. `quiet` takes away the bar.
pub(crate) fn run(args: &AuditArgs, quiet: bool) -> Result<Outcome, Failure> {
    if args.repair && !args.yes && !io::stdin().is_terminal() {
        return Err(Failure::new(
            ErrorKind::Usage,
            "--repair asks before it writes, and stdin is no terminal",
        )
        .hint("--yes repairs without asking"));
    }
    let chosen = args.output.choose(&TITLES)?;
    let catalog = args.store.catalog_to_read()?;
    let snapshot = catalog.snapshot();
    let entries = select::newest_first(&snapshot);
    let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
    let entry = select::backup(&entries, &args.backup, args.volume.as_deref(), &usable)?;
    let image = catalog.image(&entry).context(|| format!("backup {}", entry.id))?;
    refuse_inside_store("target", &args.target, Path::new(catalog.store().location()))?;

    let signals = Signals::watch()?;
    let target = FileSource::open_target(&args.target)?;
    // Before the hours of comparing, not after them. The claim keeps others from mounting it meanwhile.
    let (_claim, repair) = match args.repair {
        true => {
            let in_use = unused(&args.target, args.force)?;
            (Some(in_use), Some(Repair::open(&args.target, image.len_bytes())?))
        }
        false => (None, None),
    };
    let older = |id: &BackupId| catalog.image(snapshot.get(id.as_str())?).ok();
    let reporter = Reporter::new(args.progress, quiet, image.len_bytes());
    let started = Instant::now();
    let observer = |done| reporter.update(done, image.len_bytes());
    let threads = threads(args.threads);
    let audited = engine::audit(&image, &target, &older, threads, &signals.cancel, &observer);
    let seconds = started.elapsed().as_secs_f64();
    let report = match audited {
        Ok(report) => report,
        Err(error) => {
            drop(reporter);
            let has_no_digests = error.kind() == ErrorKind::Unsupported;
            let failure = signals.blame(error.into());
            return Err(match has_no_digests {
                true => failure
                    .hint("without digests only its data tells: restore it to a file, and compare that"),
                false => failure,
            });
        }
    };
    let repaired = match &repair {
        Some(repair) if !report.is_equal() => {
            // The bar must not be drawn over the question.
            drop(reporter);
            let is_wanted = args.yes || is_confirmed(&report, &args.target)?;
            let run = || run_repair(repair, &image, &report, &signals, args.progress, quiet);
            let repaired = is_wanted.then(run).transpose()?;
            catalog.keep_indexes();
            repaired
        }
        _ => {
            reporter.finish(|| document(&entry, &args.target, &report, None, seconds));
            None
        }
    };
    let told =
        Told { entry: &entry, target: &args.target, report: &report, repaired: repaired.as_ref(), seconds };
    told.print(args.output.format, &chosen)?;
    let is_right = report.is_equal() || repaired.is_some_and(|repaired| repaired.left.is_empty());
    Ok(if is_right { Outcome::Done } else { Outcome::Damaged })
}

/// Refuses a target that somebody uses.
fn unused(target: &Path, force: bool) -> Result<InUse, Failure> {
    let found = in_use::look(&Host::default(), target)?;
    if found.uses.is_empty() || force {
        return Ok(found);
    }
    let uses: Vec<String> = found.uses.iter().map(ToString::to_string).collect();
    let message = format!("the target {target:?} is in use: {}", uses.join("; "));
    Err(Failure::new(ErrorKind::Usage, message)
        .hint("stop what uses it first; --force repairs it all the same, and whoever uses it may undo that"))
}

fn is_confirmed(report: &Report, target: &Path) -> Result<bool, Failure> {
    note(&summary(report));
    note(&format!(
        "Write {} to {}? [y/N] ",
        BinaryBytes(report.all_wrong_bytes()),
        render::visible(&target.to_string_lossy())
    ));
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| crate::Error::caused_by(ErrorKind::Usage, "cannot read the answer", error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn run_repair(
    repair: &Repair,
    image: &Image,
    report: &Report,
    signals: &Signals,
    mode: Mode,
    quiet: bool,
) -> Result<Repaired, Failure> {
    let total = report.wrong.bytes();
    let reporter = Reporter::new(mode, quiet, total);
    let repaired = repair.run(image, &report.wrong, &signals.cancel, &|done| reporter.update(done, total));
    let repaired = repaired.map_err(|error| {
        let failure = signals.blame(error.into());
        failure.hint("what was repaired so far is right and stays; run it again for the rest")
    })?;
    reporter
        .finish(|| json!({ "written_bytes": repaired.written_bytes, "left_bytes": repaired.left.bytes() }));
    Ok(repaired)
}

/// What is told at the end.
struct Told<'a> {
    entry: &'a Entry,
    target: &'a Path,
    report: &'a Report,
    repaired: Option<&'a Repaired>,
    seconds: f64,
}

impl Told<'_> {
    fn print(&self, format: Format, chosen: &[usize]) -> Result<(), Failure> {
        let Self { entry, target, report, repaired, seconds } = *self;
        let cells = |finding: &Finding| {
            let of = finding.of.as_ref();
            let of = of.map(|id| if format == Format::Table { short(id) } else { id.as_str() });
            let cells = [
                json!(finding.image.start),
                json!(finding.image.end - finding.image.start),
                json!(finding.wrong.name()),
                json!(of),
            ];
            chosen.iter().map(|&n| cells[n].clone()).collect::<Vec<_>>()
        };
        print(|out| {
            if matches!(format, Format::Json | Format::Yaml) {
                let document = document(entry, target, report, repaired, seconds);
                let fields: Map<String, Value> = document.as_object().cloned().unwrap_or_default();
                return render::one(out, format, &fields);
            }
            let most = if format == Format::Table { ROWS_MAX } else { usize::MAX };
            let rows: Vec<_> = report.findings.iter().take(most).map(cells).collect();
            let titles: Vec<&str> = chosen.iter().map(|&n| TITLES[n]).collect();
            if !(format == Format::Table && rows.is_empty()) {
                render::list(out, format, &titles, &rows)?;
            }
            if format != Format::Table {
                return Ok(());
            }
            if report.finding_count > rows.len() as u64 {
                let more = report.finding_count - rows.len() as u64;
                writeln!(out, "and {more} more; -f csv or -f json tells them")?;
            }
            out.write_all(self.words().as_bytes())
        })
    }

    fn words(&self) -> String {
        let Self { entry, target, report, repaired, seconds } = *self;
        let target = render::visible(&target.to_string_lossy()).into_owned();
        let rate = BinaryBytes((report.image_bytes as f64 / seconds.max(0.001)) as u64);
        let mut text = format!(
            "{target} compared with {}\n{} in {seconds:.1} s ({rate}/s)\n",
            said(entry),
            BinaryBytes(report.image_bytes),
        );
        text.push_str(&summary(report));
        if let Some(repaired) = repaired {
            text.push_str(&format!("repaired: {} written\n", BinaryBytes(repaired.written_bytes)));
            if !repaired.left.is_empty() {
                let reason = repaired.reason.as_ref().map(ToString::to_string).unwrap_or_default();
                let left = BinaryBytes(repaired.left.bytes());
                text.push_str(&format!("LEFT WRONG: {left}: {}\n", render::visible(&reason)));
            }
        } else if !report.is_equal() {
            text.push_str("nothing was written; --repair writes the right bytes\n");
        }
        text
    }
}

/// What was found, in a line for each kind.
fn summary(report: &Report) -> String {
    let mut text = match report.is_equal() {
        true => "equal: it is as it was backed up\n".to_owned(),
        false => format!(
            "DIFFERENT: {} ({:.1} %) in {}\n",
            BinaryBytes(report.all_wrong_bytes()),
            100.0 * report.all_wrong_bytes() as f64 / report.image_bytes.max(1) as f64,
            count(report.finding_count, "range")
        ),
    };
    for wrong in Wrong::ALL {
        let bytes = report.bytes_of(wrong);
        if bytes > 0 {
            let bytes = BinaryBytes(bytes).to_string();
            text.push_str(&format!("  {bytes:>10} {}: {}\n", wrong.name(), meaning(wrong)));
        }
    }
    if report.target_bytes > report.image_bytes {
        let more = BinaryBytes(report.target_bytes - report.image_bytes);
        text.push_str(&format!("  {more:>10} behind the volume's end, not compared\n"));
    }
    text
}

fn meaning(wrong: Wrong) -> &'static str {
    match wrong {
        Wrong::StaleData => "should be zeros; as Cinder 22 to 28 restore wrongly",
        Wrong::OlderData => "bytes of an older backup of the chain",
        Wrong::Zeros => "zeros in place of data",
        Wrong::Other => "other bytes than any backup of the chain",
        Wrong::Unreadable => "the target cannot be read",
        Wrong::Missing => "the target ends before",
        Wrong::Unknown => "the backup's digests are damaged",
    }
}

fn document(
    entry: &Entry,
    target: &Path,
    report: &Report,
    repaired: Option<&Repaired>,
    seconds: f64,
) -> Value {
    let finding = |finding: &Finding| {
        let of = finding.of.as_ref().map(BackupId::as_str);
        let values = [
            json!(finding.image.start),
            json!(finding.image.end - finding.image.start),
            json!(finding.wrong.name()),
            json!(of),
        ];
        Value::Object(KEYS.iter().map(|key| (*key).to_owned()).zip(values).collect())
    };
    let of_kind = |wrong: Wrong| (wrong.name().to_owned(), json!(report.bytes_of(wrong)));
    let left = |repaired: &Repaired| {
        let ranges = repaired
            .left
            .iter()
            .map(|range| json!({ "start": range.start, "length": range.end - range.start }));
        json!({
            "written_bytes": repaired.written_bytes,
            "left": ranges.collect::<Vec<_>>(),
            "reason": repaired.reason.as_ref().map(ToString::to_string),
        })
    };
    json!({
        "backup_id": entry.id.as_str(),
        "bytes_found": Value::Object(Wrong::ALL.into_iter().map(of_kind).collect()),
        "equal": report.is_equal(),
        "finding_count": report.finding_count,
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "image_bytes": report.image_bytes,
        "repaired": repaired.map(left),
        "seconds": (seconds * 1000.0).round() / 1000.0,
        "target": target.to_string_lossy(),
        "target_bytes": report.target_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_each_kind_means_in_80_columns() {
        let mut report = Report { image_bytes: 1 << 40, target_bytes: 1 << 41, ..Report::default() };
        assert!(summary(&report).starts_with("equal: "));
        report.wrong_bytes = [1 << 39; 7];
        report.finding_count = u64::MAX;
        let text = summary(&report);
        assert_eq!(text.lines().count(), 9);
        for line in text.lines() {
            assert!(line.len() <= 80, "{line}");
        }
    }
}
