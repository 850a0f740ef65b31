//! `cinderfs restore`: one backup to a file, a block device or stdout.
//!
//! The engine is [`crate::frontend::restore`]; here are the words and the summary.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::args::{StoreArg, threads};
use super::exit::{Failure, Outcome, note};
use super::loss_map::{LossMap, merged};
use super::progress::{Mode, Reporter};
use super::signals::Signals;
use super::{render, select};
use crate::catalog::Entry;
use crate::error::{ErrorKind, ResultExt};
use crate::frontend::restore::{self as engine, Report, RestoreOptions, Target};
use crate::types::count;

const EXAMPLES: &str = "\
Examples:
  cinderfs restore /backup_mount db@latest /dev/vg/new --force
  cinderfs restore /backup_mount 52e81dfa volume.img
  cinderfs restore /backup_mount 52e81dfa - | zstd -o volume.img.zst
  cinderfs restore /backup_mount 52e81dfa rescued.img \\
      --on-damage zero --loss-map rescued.map

The loss map is a mapfile of GNU ddrescue: `+` marks what was restored, `-` what was replaced by zeros.";

/// Most threads that may be asked for; beyond the number of processors they only cost memory.
pub(super) const THREADS_MAX: u64 = 256;

/// How many damaged ranges the summary names when there is no loss map to name them all.
pub(super) const RANGES_SHOWN_MAX: usize = 8;

/// Restore one backup to a file, a block device or stdout
///
/// Every block is verified before it is written. Damage stops the restore, unless --on-damage zero replaces what is
/// damaged by zeros; then the exit code is 3.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backup: an id, a unique name, a unique prefix of an id, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// Where to: a file, a block device, or `-` for stdout
    #[arg(value_name = "TARGET")]
    target: PathBuf,
    /// Overwrite a target that exists
    #[arg(long)]
    force: bool,
    /// What to do about a block that is damaged or missing
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = OnDamage::Stop)]
    on_damage: OnDamage,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Decode on this many threads; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// Write to FILE which ranges were restored and which were replaced by zeros
    #[arg(long, value_name = "FILE")]
    loss_map: Option<PathBuf>,
    /// How to show progress, on stderr
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
}

/// What to do about damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum OnDamage {
    /// Stop, exit code 1.
    #[value(alias = "eio")]
    Stop,
    /// Write zeros instead and go on, exit code 3.
    Zero,
}

/// Runs `restore`. `quiet` takes away the bar and the summary.
pub(crate) fn run(args: &RestoreArgs, quiet: bool) -> Result<Outcome, Failure> {
    let to_stdout = args.target.as_os_str() == OsStr::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::new(ErrorKind::Usage, "a disk image does not belong on a terminal")
            .hint("redirect stdout, or name a file"));
    }
    let catalog = args.store.catalog_to_read()?;
    let entries = select::newest_first(&catalog.snapshot());
    let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
    let entry = select::backup(&entries, &args.backup, args.volume.as_deref(), &usable)?;
    catalog.expect(&entry);
    let image = catalog.image(&entry).context(|| format!("backup {}", entry.id))?;

    let location = Path::new(catalog.store().location());
    if !to_stdout {
        refuse_inside_store("target", &args.target, location)?;
    }
    if let Some(path) = &args.loss_map {
        refuse_inside_store("loss map", path, location)?;
    }
    let signals = Signals::watch()?;
    // Before the hours of restoring, not after them.
    let loss_map = args.loss_map.as_deref().map(|path| LossMap::prepare(path, &args.target)).transpose()?;
    let options = RestoreOptions {
        force: args.force,
        on_damage: match args.on_damage {
            OnDamage::Stop => engine::OnDamage::Stop,
            OnDamage::Zero => engine::OnDamage::Zero,
        },
        threads: threads(args.threads),
        cancel: &signals.cancel,
    };
    let target = if to_stdout { Target::Stdout } else { Target::Path(args.target.clone()) };
    let reporter = Reporter::new(args.progress, quiet, image.len_bytes());
    let started = Instant::now();
    let result = engine::restore(&image, target, &options, &|progress| {
        reporter.update(progress.done_bytes, progress.total_bytes);
    });
    let seconds = started.elapsed().as_secs_f64();
    catalog.keep_indexes();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            drop(reporter);
            let is_lost = error.kind().is_damage() && args.on_damage == OnDamage::Stop;
            let failure = signals.blame(error.into());
            let is_store = matches!(failure.kind(), ErrorKind::StoreIo | ErrorKind::AccessDenied);
            return Err(if is_store && args.on_damage == OnDamage::Zero {
                failure
                    .hint("the store failed, not the backup: what it may still hold is not replaced by zeros")
            } else if is_lost {
                failure.hint(
                    "--on-damage zero --loss-map FILE restores the rest, with zeros in place of what is lost",
                )
            } else {
                failure
            });
        }
    };
    reporter.finish(|| {
        let mut summary = summary_json(&report, seconds);
        summary["backup_id"] = json!(entry.id.as_str());
        summary["target"] = json!(args.target.to_string_lossy());
        summary
    });
    if !quiet && args.progress != Mode::Json {
        note(&format!("restored {} to {}\n", said(&entry), render::visible(&args.target.to_string_lossy())));
        note(&summary(&report, seconds, args.loss_map.as_deref()));
    }
    if let Some(map) = loss_map {
        map.write(&report, entry.id.as_str())?;
    }
    Ok(if report.damaged.is_empty() { Outcome::Done } else { Outcome::Damaged })
}

/// A target inside the store would destroy what it restores from, or lie where Cinder counts files.
pub(super) fn refuse_inside_store(what: &str, target: &Path, store: &Path) -> Result<(), Failure> {
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A new target has no path of its own yet. What cannot be resolved fails by itself later, with a better reason.
    let resolved = fs::canonicalize(target).or_else(|_| fs::canonicalize(folder));
    let (Ok(resolved), Ok(store)) = (resolved, fs::canonicalize(store)) else { return Ok(()) };
    if resolved.starts_with(&store) {
        return Err(Failure::new(ErrorKind::Usage, format!("the {what} {target:?} lies inside the store")));
    }
    Ok(())
}

/// A backup in one line: its id, its name and when it was made.
pub(super) fn said(entry: &Entry) -> String {
    let name = entry.name.as_deref().map(|name| format!("{:?}, ", render::visible(name))).unwrap_or_default();
    let created_at = entry.created_at.map_or("undated".to_owned(), |time| time.to_string());
    format!("{} ({name}{created_at})", entry.id)
}

fn summary_json(report: &Report, seconds: f64) -> Value {
    json!({
        "image_bytes": report.image_bytes,
        "data_bytes": report.data_bytes,
        "hole_bytes": report.hole_bytes,
        "healed_blocks": report.healed_blocks,
        "damaged_bytes": report.damaged_bytes,
        "damaged_ranges": merged(&report.damaged, report.image_bytes).len(),
        "seconds": (seconds * 1000.0).round() / 1000.0,
    })
}

fn summary(report: &Report, seconds: f64, loss_map: Option<&Path>) -> String {
    let mut text = format!(
        "{} in {seconds:.1} s: {} of data, {} of holes\n",
        BinaryBytes(report.image_bytes),
        BinaryBytes(report.data_bytes),
        BinaryBytes(report.hole_bytes),
    );
    if report.healed_blocks > 0 {
        text.push_str(&format!(
            "healed: {} from other backups' copies\n",
            count(report.healed_blocks, "block")
        ));
    }
    let damaged = merged(&report.damaged, report.image_bytes);
    if damaged.is_empty() {
        return text;
    }
    let percent = 100.0 * report.damaged_bytes as f64 / report.image_bytes as f64;
    text.push_str(&format!(
        "LOST: {} ({percent:.1} % of the image) in {}, replaced by zeros",
        BinaryBytes(report.damaged_bytes),
        count(damaged.len() as u64, "range")
    ));
    match loss_map {
        Some(path) => text.push_str(&format!("; see {}\n", render::visible(&path.to_string_lossy()))),
        None => {
            for range in damaged.iter().take(RANGES_SHOWN_MAX) {
                text.push_str(&format!("\n  offset {} length {}", range.start, range.end - range.start));
            }
            if damaged.len() > RANGES_SHOWN_MAX {
                text.push_str("\n  and more; --loss-map FILE writes them all");
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn a_target_inside_the_store_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (store, outside) = (directory.path().join("store"), directory.path().join("outside"));
        fs::create_dir(&store).unwrap();
        fs::write(store.join("object"), "precious").unwrap();
        std::os::unix::fs::symlink(store.join("object"), &outside).unwrap();
        for target in [store.join("object"), store.join("new"), outside] {
            assert_eq!(refuse_inside_store("target", &target, &store).unwrap_err().code(), 2, "{target:?}");
        }
        for target in [directory.path().join("new"), directory.path().join("store2")] {
            assert!(refuse_inside_store("target", &target, &store).is_ok(), "{target:?}");
        }
    }

    #[test]
    fn the_summary_names_what_was_lost() {
        assert_eq!(
            summary(&Report::with_damage(3 << 30, &[]), 12.0, None),
            "3.00 GiB in 12.0 s: 3.00 GiB of data, 0 B of holes\n"
        );
        let damaged: Vec<Range<u64>> = (0..9).map(|n| n * 100..n * 100 + 10).collect();
        let text = summary(&Report::with_damage(1000, &damaged), 1.0, None);
        assert!(
            text.contains(
                "LOST: 90 B (9.0 % of the image) in 9 ranges, replaced by zeros\n  offset 0 length 10\n"
            ),
            "{text}"
        );
        assert!(
            text.ends_with("  offset 700 length 10\n  and more; --loss-map FILE writes them all\n"),
            "{text}"
        );
        assert!(
            summary(&Report::with_damage(1000, &damaged), 1.0, Some(Path::new("a\nb")))
                .ends_with("zeros; see a\\nb\n")
        );
        assert_eq!(summary_json(&Report::with_damage(1000, &damaged), 1.23456)["damaged_ranges"], json!(9));
    }
}
