//! `cinderfs index`: restart points ahead of the first reader.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use clap::Args;
use indicatif::{BinaryBytes, HumanDuration};
use serde_json::json;

use super::args::StoreArg;
use super::exit::{Failure, Outcome, note};
use super::progress::{Mode, Reporter};
use super::restore::{Signals, THREADS_MAX};
use super::{cache, render, select, store_note};
use crate::catalog::{Catalog, CatalogOptions, Entry};
use crate::frontend::index as engine;
use crate::image::Image;

const EXAMPLES: &str = "\
Examples:
  cinderfs index /backup_mount                 after the nightly backup: only what is new is decoded
  cinderfs index /backup_mount db@latest
  cinderfs list /backup_mount --long -c ID -c Indexed

By default Cinder writes a volume as compressed streams of 2 GB, and a stream is read from its beginning. The index tells
where reading can begin in its middle. Mounts note it by themselves while they read; this command does it ahead of the
first reader. It needs no more than 1 % of the volume's size in $CINDERFS_CACHE_DIR.";

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

/// Runs `index`. `quiet` takes away the bar and the summary.
pub(crate) fn run(args: &IndexArgs, quiet: bool) -> Result<Outcome, Failure> {
    cache::refuse_inside_store(&cache::location()?, &args.store.path()?)?;
    let indexes = cache::seek_indexes()?;
    let catalog = args.store.catalog_with(CatalogOptions {
        cache_bytes_max: 0,
        seek_indexes: Some(indexes),
        ..CatalogOptions::default()
    })?;
    let signals = Signals::watch()?;
    let (images, unusable) = choose(args, &catalog)?;
    let threads = match args.threads {
        Some(threads) => usize::try_from(threads).unwrap_or(1),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let reporter = Reporter::new(args.progress, quiet, 0);
    let started = Instant::now();
    let images: Vec<&Image> = images.iter().map(|image| &**image).collect();
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
    reporter.finish(|| {
        json!({
            "backups": images.len(),
            "objects": report.objects,
            "plain_bytes": report.plain_bytes,
            "known_bytes": report.known_bytes,
            "failed_objects": report.failed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            "unusable_backups": unusable,
            "seconds": (seconds.as_secs_f64() * 1000.0).round() / 1000.0,
        })
    });
    for (_, error) in &report.failed {
        note(&format!("cinderfs: not indexed to its end: {}\n", render::visible(&error.to_string())));
    }
    if !quiet && args.progress != Mode::Json {
        note(&format!(
            "indexed {} object(s) of {} backup(s): {}, of which {} were known, in {}\n",
            report.objects,
            images.len(),
            BinaryBytes(report.plain_bytes),
            BinaryBytes(report.known_bytes),
            HumanDuration(seconds),
        ));
        if unusable > 0 {
            note(&format!("{unusable} backup(s) are unusable and were left out; `show` tells why\n"));
        }
        note(&store_note(&catalog.snapshot())?);
    }
    Ok(if report.failed.is_empty() { Outcome::Done } else { Outcome::Damaged })
}

/// The images that the words name, and how many backups are left out because they cannot be used.
fn choose(args: &IndexArgs, catalog: &Catalog) -> Result<(Vec<Arc<Image>>, usize), Failure> {
    let entries = select::newest_first(&catalog.snapshot());
    if args.backups.is_empty() {
        let volume = args.volume.as_deref().map(|words| select::volume(&entries, words)).transpose()?;
        let ours: Vec<_> =
            entries.iter().filter(|entry| volume.is_none() || entry.volume_id == volume).collect();
        let images: Vec<_> = ours.iter().filter_map(|entry| catalog.image(entry).ok()).collect();
        let unusable = ours.len() - images.len();
        return Ok((images, unusable));
    }
    let usable = |entry: &Arc<Entry>| catalog.image(entry).is_ok();
    let mut images = Vec::new();
    for words in &args.backups {
        let entry = select::backup(&entries, words, args.volume.as_deref(), &usable)?;
        images.push(catalog.image(&entry)?);
    }
    Ok((images, 0))
}
