//! `cinderfs index`: restart points ahead of the first reader.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::json;

use super::args::{StoreArg, threads};
use super::exit::{Failure, Outcome, note};
use super::progress::{Mode, Reporter};
use super::restore::THREADS_MAX;
use super::signals::Signals;
use super::{cache, render, select, store_note, unseen};
use crate::cache_dir::seek_indexes::SeekIndexStore;
use crate::catalog::{Catalog, CatalogOptions, Entry};
use crate::error::{Error, ErrorKind};
use crate::frontend::index::{self as engine, Report};
use crate::image::{Image, StoredObject};
use crate::types::{BackupId, ObjectName, count};

const EXAMPLES: &str = "\
Examples:
  cinderfs index /backup_mount
  cinderfs index /backup_mount db@latest
  cinderfs list /backup_mount -c ID -c Indexed

Run it after the nightly backup: only what is new is decoded. By default Cinder writes a volume as \
compressed streams of 2 GB, and a stream is read from its beginning; the index tells where reading can \
begin in its middle. Mounts note that by themselves while they read; this command does it ahead of the \
first reader. It needs no more than 1 % of the volume's size in the cache directory.

It verifies nothing: damage that leaves a stream decodable is not seen here. Every block is compared with \
its digest when it is read, with an index as without one. `verify` checks backups.

Exit codes: 0 all is indexed; 1 nothing could be done, or a part of the store could not be read, or the cache \
directory did not keep it (disk full), and what was kept stays; 3 done, but some backups are unusable or some objects damaged, which stderr \
names, and all others are indexed; 130 interrupted, and what was found is kept.";

/// Find out where compressed objects can be entered, so that first reads are quick
///
/// Each object is decoded once. What is known already is kept, so an interrupted run goes on where it stopped.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct IndexArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backups, with the chains they build on: ids, unique names, unique prefixes of ids, `latest`, VOLUME@latest;
    /// all unless told
    #[arg(value_name = "BACKUP")]
    backups: Vec<String>,
    /// Only backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Decode on this many threads; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// How to show progress, on stderr
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
}

/// How many unusable backups are named; all of them with `--progress json`.
const UNUSABLE_SHOWN_MAX: usize = 20;

/// What is to be indexed, and what cannot be, with the reason.
#[derive(Default)]
struct Chosen {
    entries: Vec<Arc<Entry>>,
    images: Vec<Arc<Image>>,
    unusable: Vec<(BackupId, Error)>,
}

/// Runs `index`. `quiet` takes away the bar and the summary.
pub(crate) fn run(args: &IndexArgs, quiet: bool) -> Result<Outcome, Failure> {
    args.store.refuse_cache_inside(&cache::location()?)?;
    let indexes = cache::seek_indexes()?;
    let folder = indexes.path().to_owned();
    let catalog = open_catalog(args, indexes)?;
    let signals = Signals::watch()?;
    let chosen = choose(args, &catalog)?;
    // Before hours of decoding, not after them.
    let needs_room = |image: &Arc<Image>| image.objects().iter().any(StoredObject::needs_restart_points);
    if chosen.images.iter().any(needs_room) {
        engine::try_to_write(&folder).map_err(no_room)?;
    }
    let threads = threads(args.threads);
    let reporter = Reporter::new(args.progress, quiet, 0);
    let started = Instant::now();
    let images: Vec<&Image> = chosen.images.iter().map(|image| &**image).collect();
    let result = engine::index(&images, threads, &signals.cancel, &|progress| {
        reporter.update(progress.done_bytes, progress.total_bytes);
    });
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            drop(reporter);
            return Err(signals.blame(error.into()));
        }
    };
    let seconds = started.elapsed();
    let lost = not_kept(args, &chosen.entries, &report)?;
    for (id, error) in chosen.unusable.iter().take(UNUSABLE_SHOWN_MAX) {
        note(&format!("cinderfs: backup {id} cannot be indexed: {}\n", render::visible(&error.to_string())));
    }
    if let Some(more @ 1..) = chosen.unusable.len().checked_sub(UNUSABLE_SHOWN_MAX) {
        note(&format!("cinderfs: {more} more cannot be indexed; `list --status error` names them\n"));
    }
    for (_, error) in &report.failed {
        note(&format!("cinderfs: not indexed to its end: {}\n", render::visible(&error.to_string())));
    }
    let snapshot = catalog.snapshot();
    note(&store_note(&snapshot)?);
    if !quiet && args.progress != Mode::Json && lost.is_empty() && !chosen.images.is_empty() {
        note(&format!("{}\n", summary(&report, chosen.images.len(), seconds)));
    }
    reporter.finish(|| {
        json!({
            "backups": chosen.images.len(),
            "objects": report.objects,
            "plain_bytes": report.plain_bytes,
            "known_bytes": report.known_bytes,
            "failed_objects": report.failed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            "not_kept_objects": lost.iter().map(ObjectName::as_str).collect::<Vec<_>>(),
            "unusable_backups": chosen.unusable.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(),
            "seconds": (seconds.as_secs_f64() * 1000.0).round() / 1000.0,
        })
    });
    if !lost.is_empty() {
        return Err(not_kept_because(&folder, lost.len(), report.decoded.len()));
    }
    if unseen(&snapshot).is_some() {
        return Ok(Outcome::Damaged);
    }
    outcome(
        chosen.unusable.into_iter().map(|(_, error)| error),
        report.failed.into_iter().map(|(_, error)| error),
    )
}

/// Damage is what nobody can mend by running it again; else the first failure of the store is told.
fn outcome(
    unusable: impl Iterator<Item = Error>,
    failed: impl Iterator<Item = Error>,
) -> Result<Outcome, Failure> {
    let (damage, store): (Vec<_>, Vec<_>) =
        unusable.chain(failed).partition(|error| error.kind().is_damage());
    match store.into_iter().next() {
        _ if !damage.is_empty() => Ok(Outcome::Damaged),
        Some(error) => Err(error.context("a part of the store could not be read").into()),
        None => Ok(Outcome::Done),
    }
}

fn open_catalog(args: &IndexArgs, indexes: Arc<SeekIndexStore>) -> Result<Catalog, Failure> {
    args.store.catalog_with(CatalogOptions {
        cache_bytes_max: 0,
        seek_indexes: Some(indexes),
        ..CatalogOptions::default()
    })
}

/// Objects that were decoded for nothing. Asked of a catalog of its own, which knows only what the cache directory holds.
fn not_kept(args: &IndexArgs, entries: &[Arc<Entry>], report: &Report) -> Result<Vec<ObjectName>, Failure> {
    if report.decoded.is_empty() {
        return Ok(Vec::new());
    }
    let catalog = open_catalog(args, cache::seek_indexes()?)?;
    let snapshot = catalog.snapshot();
    let images: Vec<_> =
        entries.iter().filter_map(|entry| catalog.image(snapshot.get(entry.id.as_str())?).ok()).collect();
    let images: Vec<&Image> = images.iter().map(|image| &**image).collect();
    Ok(engine::not_kept(&images, &report.decoded))
}

/// Why a folder did not keep what was found, as far as another try to write there tells.
fn not_kept_because(folder: &Path, lost: usize, decoded: usize) -> Failure {
    let what = format!("the index of {lost} of {} was not kept", count(decoded as u64, "decoded object"));
    match engine::try_to_write(folder) {
        Err(error) => no_room(error.context(what)),
        // Indexes drive each other out, or are too large one by one.
        Ok(()) => Failure::new(
            ErrorKind::Target,
            format!("{what} in {folder:?}: too little room for them there"),
        )
        .hint("all indexes together may take 4 GiB, and a twentieth of their disk; set CINDERFS_CACHE_DIR to a larger one"),
    }
}

fn no_room(error: Error) -> Failure {
    Failure::from(error).hint("make room there, or set CINDERFS_CACHE_DIR to a directory on another disk")
}

/// What was done, in one sentence.
fn summary(report: &Report, backups: usize, elapsed: Duration) -> String {
    let backups = count(backups as u64, "backup");
    let objects = count(report.objects, "large compressed object");
    let (plain, decoded) = (report.plain_bytes, report.plain_bytes - report.known_bytes);
    let seconds = elapsed.as_secs_f64();
    match (report.objects, decoded) {
        (0, _) if report.failed.is_empty() => {
            format!("no index needed: {backups} without large compressed objects")
        }
        (0, _) => format!("nothing indexed to its end of {backups}"),
        (_, 0) => format!("indexed already: {backups}, {objects}, {}", BinaryBytes(plain)),
        _ if decoded == plain => {
            format!("indexed: {backups}, {objects}, {} decoded in {seconds:.1} s", BinaryBytes(plain))
        }
        _ => format!(
            "indexed: {backups}, {objects}, {} decoded in {seconds:.1} s, {} indexed already",
            BinaryBytes(decoded),
            BinaryBytes(report.known_bytes)
        ),
    }
}

/// What the words name; all backups where there are none.
///
/// An error when the words name nothing, or nothing but unusable backups.
fn choose(args: &IndexArgs, catalog: &Catalog) -> Result<Chosen, Failure> {
    let entries = select::newest_first(&catalog.snapshot());
    let image = |entry: &Arc<Entry>| match &entry.problem {
        Some(problem) => Err(problem.clone()),
        None => catalog.image(entry),
    };
    let wanted: Vec<Arc<Entry>> = if args.backups.is_empty() {
        let volume = args.volume.as_deref().map(|words| select::volume(&entries, words)).transpose()?;
        entries.into_iter().filter(|entry| volume.is_none() || entry.volume_id == volume).collect()
    } else {
        let usable = |entry: &Arc<Entry>| select::is_usable(&image(entry));
        let select = |words: &String| select::backup(&entries, words, args.volume.as_deref(), &usable);
        args.backups.iter().map(select).collect::<Result<_, _>>()?
    };
    let mut chosen = Chosen::default();
    let mut seen = HashSet::new();
    for entry in wanted.into_iter().filter(|entry| seen.insert(entry.id.clone())) {
        match image(&entry) {
            Ok(image) => {
                chosen.images.push(image);
                chosen.entries.push(entry);
            }
            Err(error) => chosen.unusable.push((entry.id.clone(), error)),
        }
    }
    match chosen.unusable.first() {
        Some((id, error)) if chosen.images.is_empty() && !args.backups.is_empty() => {
            Err(error.clone().context(format!("backup {id} cannot be indexed")).into())
        }
        _ => Ok(chosen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_fails_is_no_damage() {
        let error = |kind| Error::new(kind, "");
        let (damage, store) = (error(ErrorKind::Codec), error(ErrorKind::StoreIo));
        let code = |unusable: &[&Error], failed: &[&Error]| {
            let all = |errors: &[&Error]| errors.iter().map(|&error| error.clone()).collect::<Vec<_>>();
            outcome(all(unusable).into_iter(), all(failed).into_iter())
                .map_or_else(|failure| failure.code(), |outcome| outcome.code())
        };
        assert_eq!(code(&[], &[]), 0);
        assert_eq!(
            [code(&[&damage], &[]), code(&[&store], &[&damage]), code(&[&damage, &store], &[])],
            [3; 3]
        );
        assert_eq!([code(&[&store], &[]), code(&[], &[&store])], [1; 2]);
    }

    #[test]
    fn the_summary_is_one_plain_sentence() {
        let said = |objects, plain_bytes, known_bytes| {
            let report = Report { objects, plain_bytes, known_bytes, ..Report::default() };
            summary(&report, 3, Duration::from_millis(1240))
        };
        const MIB: u64 = 1 << 20;
        assert_eq!(said(0, 0, 0), "no index needed: 3 backups without large compressed objects");
        assert_eq!(
            said(1, 5 * MIB, 0),
            "indexed: 3 backups, 1 large compressed object, 5.00 MiB decoded in 1.2 s"
        );
        assert_eq!(
            said(2, 5 * MIB, 5 * MIB),
            "indexed already: 3 backups, 2 large compressed objects, 5.00 MiB"
        );
        assert_eq!(
            said(2, 5 * MIB, MIB),
            "indexed: 3 backups, 2 large compressed objects, 4.00 MiB decoded in 1.2 s, 1.00 MiB indexed already"
        );
    }
}
