//! `cinderfs hydrate`: whole images into the cache directory, for mounts to hand to the kernel.
//!
//! The engine is [`crate::frontend::hydrate`]; here are the words, the summary and the list of what is there.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::args::{OutputArgs, StoreArg};
use super::exit::{Failure, Outcome, note};
use super::progress::{Mode, Reporter};
use super::restore::{RANGES_SHOWN_MAX, Signals, THREADS_MAX, said};
use super::{cache, print, render, select};
use crate::cache_dir::CacheDir;
use crate::cache_dir::images::{Images, State};
use crate::catalog::{Catalog, Entry};
use crate::error::ResultExt;
use crate::frontend::hydrate::{self as engine, Checked, HydrateOptions, Hydrated};

const EXAMPLES: &str = "\
Examples:
  cinderfs hydrate /backup_mount db@latest        from now on mounts read it as fast as a plain file
  cinderfs hydrate /backup_mount --list
  cinderfs hydrate /backup_mount --check 52e81dfa
  cinderfs hydrate /backup_mount --drop 52e81dfa

A mount uses it from the next opening of volume.img on. Where root mounted, and the kernel is 6.9 or newer, the kernel
reads it in the image's place: it was verified when it was written, and is not verified again at each read. Everywhere
else, and with `mount -o passthrough=off`, each block of it is verified at each read.";

/// Write whole images into the cache directory, verified, so that mounts read them at the speed of a disk
///
/// A sparse file is written to $CINDERFS_CACHE_DIR/images (as root /var/cache/cinderfs/images). It takes as much room as
/// the volume has data and stays until --drop. A damaged backup is refused with exit code 3.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct HydrateArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backups: ids, unique names, unique prefixes of ids, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP", required_unless_present = "list")]
    backups: Vec<String>,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Compare what is there with the digests again, and remove it where it is wrong (exit code 3)
    #[arg(long, group = "action")]
    check: bool,
    /// Remove what is there; whoever has it open keeps it
    #[arg(long, group = "action")]
    drop: bool,
    /// List what is there, of this store and of others
    #[arg(long, group = "action", conflicts_with_all = ["backups", "volume"])]
    list: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// Decode on this many threads; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// How to show progress, on stderr
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
}

/// Columns of `--list`.
const COLUMNS: [&str; 6] = ["ID", "Volume", "Size", "Stored", "Status", "Verified At"];

/// Runs `hydrate`. `quiet` takes away the bar and the summary.
pub(crate) fn run(args: &HydrateArgs, quiet: bool) -> Result<Outcome, Failure> {
    let chosen = args.output.choose(&COLUMNS)?;
    let location = cache::location()?;
    if args.list {
        return list(args, &Images::below(&location), &chosen);
    }
    if args.drop {
        return drop_all(args, &Images::below(&location), quiet);
    }
    let store = args.store.path()?;
    cache::refuse_inside_store(&location, &store)?;
    let images = Images::of(&CacheDir::open(&location)?);
    images.sweep()?;
    let catalog = args.store.catalog()?;
    let wanted = choose(args, &catalog)?;
    let signals = Signals::watch()?;
    let mut outcome = Outcome::Done;
    for entry in wanted {
        let is_right = one(args, quiet, &catalog, &entry, &images, &signals)?;
        if !is_right {
            outcome = Outcome::Damaged;
        }
    }
    Ok(outcome)
}

/// All that the words name, each once, before the work on the first begins.
fn choose(args: &HydrateArgs, catalog: &Catalog) -> Result<Vec<Arc<Entry>>, Failure> {
    let entries = select::newest_first(&catalog.snapshot());
    let usable = |entry: &Arc<Entry>| catalog.image(entry).is_ok();
    let mut wanted: Vec<Arc<Entry>> = Vec::new();
    for words in &args.backups {
        let entry = select::backup(&entries, words, args.volume.as_deref(), &usable)?;
        if wanted.iter().all(|known| known.id != entry.id) {
            wanted.push(entry);
        }
    }
    Ok(wanted)
}

/// Hydrates or checks one backup; whether nothing is damaged.
fn one(
    args: &HydrateArgs,
    quiet: bool,
    catalog: &Catalog,
    entry: &Entry,
    images: &Images,
    signals: &Signals,
) -> Result<bool, Failure> {
    let image = catalog.image(entry).context(|| format!("backup {}", entry.id))?;
    let name = said(entry);
    let reporter = Reporter::new(args.progress, quiet, image.len_bytes());
    let say = |text: &str| {
        if !quiet && args.progress != Mode::Json {
            note(text);
        }
    };
    let options = HydrateOptions {
        threads: match args.threads {
            Some(threads) => usize::try_from(threads).unwrap_or(1),
            None => thread::available_parallelism().map_or(1, usize::from),
        },
        cancel: &signals.cancel,
        waiting: &|| say(&format!("waiting: another process is at {name}\n")),
        observer: &|progress| reporter.update(progress.done_bytes, progress.total_bytes),
    };
    let started = Instant::now();
    let volume = entry.volume_id.as_ref();
    let result = match args.check {
        true => engine::check(&image, volume, images, &options).map(|checked| match checked {
            Checked::Missing => ("missing", format!("{name} is not hydrated"), Vec::new()),
            Checked::Right => ("right", format!("{name} is right"), Vec::new()),
            Checked::Wrong(ranges) => {
                ("wrong", format!("the hydrated image of {name} was wrong and is removed"), ranges)
            }
        }),
        false => engine::hydrate(&image, volume, images, &options).map(|hydrated| match hydrated {
            Hydrated::There => ("there", format!("{name} is hydrated already"), Vec::new()),
            Hydrated::Confirmed => (
                "confirmed",
                format!("{name} was hydrated already; its file was touched, and is right"),
                Vec::new(),
            ),
            Hydrated::Written(report) => {
                let (data, holes) = (BinaryBytes(report.data_bytes), BinaryBytes(report.hole_bytes));
                let text = format!(
                    "hydrated {name} in {:.1} s: {data} of data, {holes} of holes",
                    started.elapsed().as_secs_f64()
                );
                ("written", text, Vec::new())
            }
            Hydrated::Damaged(report) => {
                let lost = BinaryBytes(report.damaged_bytes);
                ("damaged", format!("{name} is damaged, {lost} are lost; nothing was kept"), report.damaged)
            }
        }),
    };
    let (status, text, ranges) = match result {
        Ok(told) => told,
        Err(error) if error.kind().is_damage() => {
            ("damaged", format!("{name} is damaged; nothing was kept: {error}"), Vec::new())
        }
        Err(error) => {
            drop(reporter);
            return Err(signals.blame(error.context(format!("backup {}", entry.id)).into()));
        }
    };
    let is_right = matches!(status, "written" | "there" | "confirmed" | "right");
    reporter.finish(|| {
        json!({
            "backup_id": entry.id.as_str(),
            "status": status,
            "image_bytes": image.len_bytes(),
            "path": images.path(&image.key()).to_string_lossy(),
            "damaged_ranges": ranges.iter().map(|range| [range.start, range.end - range.start]).collect::<Vec<_>>(),
            "seconds": (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
        })
    });
    if is_right {
        say(&format!("{text}\n"));
    } else {
        note(&format!("cinderfs: {text}{}\n", shown(&ranges)));
    }
    Ok(is_right)
}

fn shown(ranges: &[Range<u64>]) -> String {
    let mut text = String::new();
    for range in ranges.iter().take(RANGES_SHOWN_MAX) {
        text.push_str(&format!("\n  offset {} length {}", range.start, range.end - range.start));
    }
    if ranges.len() > RANGES_SHOWN_MAX {
        text.push_str(&format!(
            "\n  and {} more; --progress json names them all",
            ranges.len() - RANGES_SHOWN_MAX
        ));
    }
    text
}

/// Removes images by the ids that `--list` shows, also when the store is gone; else by what the store says.
fn drop_all(args: &HydrateArgs, images: &Images, quiet: bool) -> Result<Outcome, Failure> {
    images.sweep()?;
    let mut known: Vec<(String, String)> = Vec::new();
    for key in images.keys()? {
        if let State::Ready(record, _) | State::Changed(record, _) = images.state(&key) {
            known.push((record.backup_id, key));
        }
    }
    let mut catalog = None;
    for words in &args.backups {
        let mut keys: Vec<&String> = known.iter().filter(|(id, _)| id == words).map(|(_, key)| key).collect();
        let own;
        if keys.is_empty() {
            let catalog = match &catalog {
                Some(catalog) => catalog,
                None => catalog.insert(args.store.catalog()?),
            };
            let entries = select::newest_first(&catalog.snapshot());
            let usable = |entry: &Arc<Entry>| catalog.image(entry).is_ok();
            own = select::backup(&entries, words, args.volume.as_deref(), &usable)?;
            keys = known.iter().filter(|(id, _)| *id == own.id.as_str()).map(|(_, key)| key).collect();
        }
        let mut was_there = false;
        for key in keys {
            was_there |= engine::drop_image(key, images)?;
        }
        if !quiet {
            let what = render::visible(words);
            note(&if was_there { format!("dropped {what}\n") } else { format!("{what} was not hydrated\n") });
        }
    }
    Ok(Outcome::Done)
}

fn list(args: &HydrateArgs, images: &Images, chosen: &[usize]) -> Result<Outcome, Failure> {
    let mut rows: Vec<Vec<Value>> = Vec::new();
    for key in images.keys()? {
        let (record, status) = match images.state(&key) {
            State::Missing => continue,
            State::Unusable(why) => {
                tracing::warn!(path = ?images.path(&key), "not a hydrated image: {why}");
                (None, "unusable")
            }
            State::Changed(record, why) => {
                tracing::warn!(path = ?images.path(&key), "{why}; hydrate it again to have it checked");
                (Some(record), "changed")
            }
            State::Ready(record, _) => (Some(record), "ready"),
        };
        let stored = images.stored_bytes(&key);
        let row = [
            json!(record.as_ref().map(|record| &record.backup_id)),
            json!(record.as_ref().and_then(|record| record.volume_id.as_ref())),
            json!(record.as_ref().map(|record| record.image_bytes)),
            json!(stored),
            json!(status),
            json!(record.as_ref().map(|record| &record.verified_at)),
        ];
        rows.push(chosen.iter().map(|&column| row[column].clone()).collect());
    }
    let titles: Vec<&str> = chosen.iter().map(|&column| COLUMNS[column]).collect();
    print(|out| render::list(out, args.output.format, &titles, &rows))?;
    Ok(Outcome::Done)
}
