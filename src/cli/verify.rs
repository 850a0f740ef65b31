//! `cinderfs verify`: is everything in a store right?
//!
//! The engine is [`crate::frontend::verify`]; here are the words, the report, and the exit code.

mod document;
mod text;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;

use super::args::{OutputArgs, StoreArg, threads};
use super::exit::{Failure, Outcome};
use super::progress::{Mode, Reporter};
use super::render::{self, Format};
use super::restore::THREADS_MAX;
use super::signals::Signals;
use super::sizes::bytes;
use super::{cache, print, select, spans, store_note};
use crate::cache_dir::CacheDir;
use crate::cache_dir::verified::Verified;
use crate::catalog::Catalog;
use crate::error::ErrorKind;
use crate::frontend::verify::{self as engine, Report, Subset, VerifyOptions};
use crate::types::BackupId;

const EXAMPLES: &str = "\
Examples:
  cinderfs verify /backup_mount
  cinderfs verify /backup_mount db@latest
  cinderfs verify /backup_mount --subset 1/7
  cinderfs verify /backup_mount --subset 500G --max-duration 4h -f json

Of the chosen backups and all they build on, each object is decoded once and compared with its md5 and with the digests \
of its blocks, and each backup is looked at as the image that a reader would see. With the documents and names of the \
whole store come strays, broken chains, and objects without metadata. Nothing in the store is changed.

For each backup it is told whether genuine Cinder would restore it: yes; no, it ends with an error; or wrongly, with \
wrong bytes and no error, since Cinder compares nothing.

JSON holds `backups` (a verdict each), `findings` and a `summary`; the README lists all keys and the words for what is \
found.

When each object was verified last is kept in the cache directory, so that --subset SIZE and --max-duration take what \
was verified longest ago. What was found damaged is verified again each time.

Exit codes: 0 all that was looked at is right; 1 a part of the store could not be read, or what a backup builds on is in no \
container that is seen; 2 wrong usage; 3 something \
is damaged, or Cinder would not restore a backup rightly; 130, 143 interrupted, after what was found so far is told.";

/// Check everything: objects, digests, chains, and what else lies in the store
///
/// Each finding tells which backups and which ranges of the volume it touches, and whether Cinder would restore them.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backups, with all they build on: ids, unique names, unique prefixes of ids, `latest`, VOLUME@latest; all
    /// unless told
    #[arg(value_name = "BACKUP")]
    backups: Vec<String>,
    /// Only backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Only a share of the objects: n/t is the n-th of t parts, x% a random share of the bytes, a SIZE (50G) those
    /// verified longest ago
    #[arg(long, value_name = "n/t|x%|SIZE", value_parser = subset)]
    subset: Option<Subset>,
    /// Begin no object after this time: 90s, 2h, 1h30m
    #[arg(long, value_name = "TIME", value_parser = spans::span)]
    max_duration: Option<Duration>,
    /// Leave out objects that were verified within this time and were right: 12h, 30d
    #[arg(long, value_name = "TIME", value_parser = spans::span)]
    stale_after: Option<Duration>,
    /// Decode on this many threads; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// How to show progress, on stderr
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
    #[command(flatten)]
    output: OutputArgs,
}

/// Reads the word of `--subset`.
fn subset(word: &str) -> Result<Subset, String> {
    if let Some((part, of)) = word.split_once('/') {
        return match (part.trim().parse(), of.trim().parse()) {
            (Ok(part), Ok(of)) if 1 <= part && part <= of => Ok(Subset::Part { part, of }),
            _ => Err(format!("{word:?} is no part; expected one from 1/7 to 7/7")),
        };
    }
    if let Some(percent) = word.strip_suffix('%') {
        return match percent.trim().parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Subset::Share(percent / 100.0)),
            _ => Err(format!("{word:?} is no share; expected more than 0% and at most 100%")),
        };
    }
    match bytes(word) {
        Ok(bytes @ 1..) => Ok(Subset::Bytes(bytes)),
        _ => Err(format!("{word:?} is neither a part (2/7), nor a share (5%), nor a size (50G)")),
    }
}

/// Runs `verify`. `quiet` takes away the bar.
pub(crate) fn run(args: &VerifyArgs, quiet: bool) -> Result<Outcome, Failure> {
    let columns = args.output.choose(&document::COLUMNS)?;
    if args.output.names_columns() && !matches!(args.output.format, Format::Value | Format::Csv) {
        return Err(Failure::new(ErrorKind::Usage, "only -f value and -f csv of verify have columns")
            .hint("without -c, -f json is one document, and a table a report"));
    }
    let root = args.store.directory()?;
    let catalog = args.store.catalog_to_read()?;
    let signals = Signals::watch()?;
    let chosen = choose(args, &catalog)?;
    let stamps = match &root {
        Some(root) => stamps(root),
        None => stamps(Path::new(catalog.store().location())),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let options = VerifyOptions {
        threads: threads(args.threads),
        cancel: &signals.cancel,
        subset: args.subset.unwrap_or(Subset::All),
        fresh_since: args.stale_after.map(|age| now.saturating_sub(age).as_secs()),
        until: args.max_duration.and_then(|time| Instant::now().checked_add(time)),
        stamps: stamps.as_ref(),
        root: root.as_deref(),
        seed: u64::from(now.subsec_nanos()) ^ now.as_secs(),
    };
    let reporter = Reporter::new(args.progress, quiet, 0);
    let report = engine::verify(&catalog, chosen.as_deref(), &options, &|progress| {
        reporter.update_with(
            progress.done_bytes,
            progress.total_bytes,
            || json!({ "findings": progress.findings }),
        );
    })?;
    reporter.finish(|| document::summary(&report));
    let snapshot = catalog.snapshot();
    let entry = |id: &BackupId| snapshot.get(id.as_str()).cloned();
    print(|out| match args.output.format {
        Format::Table => text::write(out, &report, &entry),
        Format::Json | Format::Yaml => render::one(out, args.output.format, &document::whole(&report)),
        Format::Value | Format::Csv => {
            let titles: Vec<&str> = columns.iter().map(|&column| document::COLUMNS[column]).collect();
            let rows: Vec<_> = document::rows(&report)
                .into_iter()
                .map(|row| columns.iter().map(|&column| row[column].clone()).collect())
                .collect();
            render::list(out, args.output.format, &titles, &rows)
        }
    })?;
    outcome(report, &signals, &catalog)
}

fn outcome(report: Report, signals: &Signals, catalog: &Catalog) -> Result<Outcome, Failure> {
    if report.is_interrupted {
        let failure = Failure::new(ErrorKind::Interrupted, "interrupted; what was found so far is told");
        return Err(signals.blame(failure));
    }
    if report.is_damaged() {
        return Ok(Outcome::Damaged);
    }
    match report.failure {
        Some(error) if error.kind() == ErrorKind::OutOfSight => {
            Err(error.context("not everything that backups here build on was seen").into())
        }
        Some(error) => Err(error.context("a part of the store could not be read").into()),
        None => {
            super::exit::note(&store_note(&catalog.snapshot())?);
            Ok(Outcome::Done)
        }
    }
}

/// What earlier runs did. A run without it is a run all the same.
fn stamps(store: &Path) -> Option<Verified> {
    let opened =
        cache::location().ok().map(|path| CacheDir::open(&path).and_then(|dir| Verified::open(&dir, store)));
    match opened {
        Some(Ok(stamps)) => Some(stamps),
        Some(Err(error)) => {
            tracing::warn!("what is verified when is not kept: {error}");
            None
        }
        None => None,
    }
}

/// The backups that the words name; `None` for all of them.
fn choose(args: &VerifyArgs, catalog: &Catalog) -> Result<Option<Vec<BackupId>>, Failure> {
    let entries = select::newest_first(&catalog.snapshot());
    if args.backups.is_empty() {
        let Some(words) = &args.volume else { return Ok(None) };
        let volume = Some(select::volume(&entries, words)?);
        let of_volume = entries.iter().rev().filter(|entry| entry.volume_id == volume);
        return Ok(Some(of_volume.map(|entry| entry.id.clone()).collect()));
    }
    let mut ids: Vec<BackupId> = Vec::new();
    for words in &args.backups {
        let usable = |entry: &Arc<_>| select::is_usable(&catalog.image(entry));
        let entry = select::backup(&entries, words, args.volume.as_deref(), &usable)?;
        if !ids.contains(&entry.id) {
            ids.push(entry.id.clone());
        }
    }
    Ok(Some(ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subset_is_a_part_a_share_or_a_size() {
        assert_eq!(subset("2/7"), Ok(Subset::Part { part: 2, of: 7 }));
        assert_eq!(subset("5%"), Ok(Subset::Share(0.05)));
        assert_eq!(subset("0.5 %"), Ok(Subset::Share(0.005)));
        assert_eq!(subset("50G"), Ok(Subset::Bytes(50 << 30)));
        for bad in ["", "0/7", "8/7", "1/0", "a/b", "0%", "101%", "-1%", "NaN%", "0", "-5G", "much"] {
            assert!(subset(bad).is_err(), "{bad}");
        }
    }
}
