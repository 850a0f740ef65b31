//! `cinderfs hydrate`: whole images into the cache directory, for mounts to hand to the kernel.
//!
//! The engine is [`crate::frontend::hydrate`]; here are the words, the summary and the list of what is there.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::args::{OutputArgs, StoreArg, threads};
use super::exit::{Failure, Outcome, note};
use super::progress::{Mode, Reporter};
use super::restore::{RANGES_SHOWN_MAX, THREADS_MAX, said};
use super::signals::Signals;
use super::{cache, print, render, select};
use crate::cache_dir::CacheDir;
use crate::cache_dir::images::{Images, State};
use crate::catalog::{Catalog, Entry};
use crate::error::ErrorKind;
use crate::frontend::hydrate::{self as engine, Checked, HydrateOptions, Hydrated, Origin};
use crate::image::Image;

const EXAMPLES: &str = "\
Examples:
  cinderfs hydrate /backup_mount db@latest
  cinderfs hydrate --list
  cinderfs hydrate /backup_mount --check 52e81dfa
  cinderfs hydrate /backup_mount --drop 52e81dfa

From then on mounts read it as fast as a plain file, beginning with the next opening of volume.img. Where \
root mounted, and the kernel is 6.9 or newer, the kernel reads it in the image's place: it was verified \
when it was written, and is not verified again at each read. Everywhere else, and with `mount -o \
passthrough=off`, each block of it is verified at each read.

Exit codes: 0 it is there, and right; 1 failed, or --check or --drop of an image that is not hydrated; 3 the \
backup is damaged and nothing of it was kept, or --check found the image wrong and removed it; 130 \
interrupted, and nothing of the image in work was kept.";

/// `--list` needs no store, which does not make it optional elsewhere.
const USAGE: &str = "\
cinderfs hydrate [OPTIONS] <STORE> <BACKUP>...
       cinderfs hydrate --list";

/// Write whole images into the cache directory, verified, so that mounts read them at the speed of a disk
///
/// A sparse file is written to $CINDERFS_CACHE_DIR/images (as root /var/cache/cinderfs/images). It takes as much room as
/// the volume has data and stays until --drop. A damaged backup is refused with exit code 3.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES, override_usage = USAGE)]
pub(crate) struct HydrateArgs {
    /// Directory that holds the backups: Cinder's `backup_posix_path`, a mounted share, or a copy; or its file:// URL
    #[arg(value_name = "STORE", required_unless_present = "list")]
    store: Option<OsString>,
    /// Which backups: ids, unique names, unique prefixes of ids, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP", required_unless_present = "list")]
    backups: Vec<String>,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Compare what is there with the digests again, and remove it where it is wrong (exit code 3)
    #[arg(long, group = "action")]
    check: bool,
    /// Remove what is there, by an id of --list or the beginning of one; whoever has it open keeps it
    #[arg(long, group = "action")]
    drop: bool,
    /// List what is there, of all stores
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
const COLUMNS: [&str; 8] =
    ["ID", "Volume", "Volume Name", "Store", "Size", "Stored", "Status", "Verified At"];

/// How the work on one backup ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Right,
    Damaged,
    /// There was nothing to check.
    Missing,
}

/// Runs `hydrate`. `quiet` takes away the bar and the summary.
pub(crate) fn run(args: &HydrateArgs, quiet: bool) -> Result<Outcome, Failure> {
    let chosen = args.output.choose(&COLUMNS)?;
    let location = cache::location()?;
    if args.list {
        return list(args, &Images::below(&location), &chosen);
    }
    // The grammar asks for it unless `--list` is given.
    let store = StoreArg::at(args.store.clone().unwrap_or_default());
    if args.drop {
        return drop_all(args, &store, &Images::below(&location), quiet);
    }
    store.refuse_cache_inside(&location)?;
    let images = Images::of(&CacheDir::open(&location)?);
    images.sweep()?;
    let catalog = store.catalog()?;
    let is_directory = store.directory()?.is_some();
    let wanted = choose(args, &catalog)?;
    let signals = Signals::watch()?;
    let (mut is_damaged, mut missing) = (false, Vec::new());
    for entry in wanted {
        match one(args, quiet, &catalog, &entry, &images, is_directory, &signals)? {
            Ended::Right => {}
            Ended::Damaged => is_damaged = true,
            Ended::Missing => missing.push(said(&entry)),
        }
    }
    if missing.is_empty() {
        return Ok(if is_damaged { Outcome::Damaged } else { Outcome::Done });
    }
    let told = Failure::new(ErrorKind::BackupNotFound, format!("not hydrated: {}", missing.join(", ")));
    if is_damaged {
        // That weighs more.
        told.print();
        return Ok(Outcome::Damaged);
    }
    Err(told)
}

/// All that the words name, each once, before the work on the first begins.
fn choose(args: &HydrateArgs, catalog: &Catalog) -> Result<Vec<Arc<Entry>>, Failure> {
    let entries = select::newest_first(&catalog.snapshot());
    let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
    let mut wanted: Vec<Arc<Entry>> = Vec::new();
    for words in &args.backups {
        let entry = select::backup(&entries, words, args.volume.as_deref(), &usable)?;
        if wanted.iter().all(|known| known.id != entry.id) {
            wanted.push(entry);
        }
    }
    Ok(wanted)
}

/// Hydrates or checks one backup.
fn one(
    args: &HydrateArgs,
    quiet: bool,
    catalog: &Catalog,
    entry: &Entry,
    images: &Images,
    is_directory: bool,
    signals: &Signals,
) -> Result<Ended, Failure> {
    let name = said(entry);
    let say = |text: &str| {
        if !quiet && args.progress != Mode::Json {
            note(text);
        }
    };
    let started = Instant::now();
    let image = catalog.image(entry);
    let len_bytes = image.as_ref().map_or(0, |image| image.len_bytes());
    let reporter = Reporter::new(args.progress, quiet, len_bytes);
    let location = catalog.store().location();
    let origin = Origin {
        store: match is_directory {
            true => {
                std::path::absolute(location).ok().and_then(|path| path.into_os_string().into_string().ok())
            }
            false => Some(location.to_owned()),
        },
        volume_name: entry.volume_name.clone(),
    };
    let options = HydrateOptions {
        threads: threads(args.threads),
        cancel: &signals.cancel,
        waiting: &|| say(&format!("waiting: another process is at {name}\n")),
        observer: &|progress| reporter.update(progress.done_bytes, progress.total_bytes),
        origin: Some(&origin),
    };
    let done =
        image.as_ref().map_err(Clone::clone).and_then(|image| work(args, entry, image, images, &options));
    let (status, text, ranges) = match done {
        Ok(Done { status, text, ranges }) => (status, text, ranges),
        Err(error) if error.kind().is_damage() => {
            ("damaged", format!("is damaged; nothing was kept: {error}"), Vec::new())
        }
        Err(error) if error.kind() == ErrorKind::Interrupted => {
            let kept = if args.check { "nothing was changed" } else { "nothing of it was kept" };
            ("interrupted", format!("was interrupted; {kept}"), Vec::new())
        }
        Err(error) => {
            drop(reporter);
            return Err(error.context(format!("backup {}", entry.id)).into());
        }
    };
    let ended = match status {
        "written" | "there" | "confirmed" | "right" => Ended::Right,
        "missing" => Ended::Missing,
        _ => Ended::Damaged,
    };
    let text = match status {
        "written" => format!("hydrated {name} in {:.1} s: {text}", started.elapsed().as_secs_f64()),
        _ => format!("{name} {text}"),
    };
    let json = json!({
        "backup_id": entry.id.as_str(),
        "status": status,
        "message": &text,
        "image_bytes": image.as_ref().ok().map(|image| image.len_bytes()),
        "path": image.as_ref().ok().map(|image| images.path(&image.key()).to_string_lossy().into_owned()),
        "damaged_ranges": ranges.iter().map(|range| [range.start, range.end - range.start]).collect::<Vec<_>>(),
        "seconds": (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
    });
    let is_json = args.progress == Mode::Json;
    if status == "interrupted" {
        reporter.finish(|| json);
        return Err(signals.blame(Failure::new(ErrorKind::Interrupted, text)));
    }
    if ended == Ended::Damaged && !is_json {
        note(&format!("cinderfs: {}{}\n", render::visible(&text), shown(&ranges)));
    }
    // In JSON mode this is the last line, whatever was found.
    reporter.finish(|| json);
    if ended == Ended::Right {
        say(&format!("{text}\n"));
    }
    Ok(ended)
}

/// What was done about one backup.
struct Done {
    /// A word for programs.
    status: &'static str,
    /// What is said after the backup's name.
    text: String,
    /// What is wrong.
    ranges: Vec<Range<u64>>,
}

fn work(
    args: &HydrateArgs,
    entry: &Entry,
    image: &Arc<Image>,
    images: &Images,
    options: &HydrateOptions<'_>,
) -> crate::error::Result<Done> {
    let volume = entry.volume_id.as_ref();
    let done = |status, text: &str| Done { status, text: text.to_owned(), ranges: Vec::new() };
    if args.check {
        return Ok(match engine::check(image, volume, images, options)? {
            Checked::Missing => done("missing", "is not hydrated"),
            Checked::Right => done("right", "is right"),
            Checked::Wrong(ranges) => {
                Done { ranges, ..done("wrong", "had a wrong hydrated image, which is removed") }
            }
        });
    }
    Ok(match engine::hydrate(image, volume, images, options)? {
        Hydrated::There => done("there", "is hydrated already"),
        Hydrated::Confirmed => done("confirmed", "was hydrated already; its file was touched, and is right"),
        Hydrated::Written(report) => {
            let (data, holes) = (BinaryBytes(report.data_bytes), BinaryBytes(report.hole_bytes));
            done("written", &format!("{data} of data, {holes} of holes"))
        }
        Hydrated::Damaged(report) => {
            let lost = BinaryBytes(report.damaged_bytes);
            let text = format!("is damaged, {lost} are lost; nothing was kept");
            Done { ranges: report.damaged, ..done("damaged", &text) }
        }
    })
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

/// Removes images by the ids that `--list` shows or their beginnings, also when the store is gone; else by what the store says.
fn drop_all(args: &HydrateArgs, store: &StoreArg, images: &Images, quiet: bool) -> Result<Outcome, Failure> {
    images.sweep()?;
    let mut known: Vec<(String, String)> = Vec::new();
    for key in images.keys()? {
        if let State::Ready(record, _) | State::Changed(record, _) = images.state(&key) {
            known.push((record.backup_id, key));
        }
    }
    let ids: BTreeSet<String> = known.iter().map(|(id, _)| id.clone()).collect();
    // All that is to go, before anything goes.
    let mut wanted = BTreeSet::new();
    let mut missing = Vec::new();
    let mut catalog = None;
    for words in &args.backups {
        if let Some(id) = hydrated_id(&ids, words)? {
            wanted.insert(id.to_owned());
            continue;
        }
        let catalog = match &catalog {
            Some(catalog) => catalog,
            None => catalog.insert(store.catalog()?),
        };
        let entries = select::newest_first(&catalog.snapshot());
        let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
        let own = select::backup(&entries, words, args.volume.as_deref(), &usable)?;
        match ids.get(own.id.as_str()) {
            Some(id) => _ = wanted.insert(id.clone()),
            None => missing.push(said(&own)),
        }
    }
    for id in &wanted {
        let (mut was_there, mut freed_bytes) = (false, 0);
        for (_, key) in known.iter().filter(|(known, _)| known == id) {
            let stored_bytes = images.stored_bytes(key);
            if engine::drop_image(key, images)? {
                (was_there, freed_bytes) = (true, freed_bytes + stored_bytes);
            }
        }
        let id = render::visible(id);
        match was_there {
            true if quiet => {}
            true => note(&format!("dropped {id}, {} freed\n", BinaryBytes(freed_bytes))),
            // Somebody else was faster.
            false => missing.push(id.into_owned()),
        }
    }
    match missing.as_slice() {
        [] => Ok(Outcome::Done),
        names => Err(Failure::new(ErrorKind::BackupNotFound, format!("not hydrated: {}", names.join(", ")))),
    }
}

/// The hydrated backup that `words` name: an id, or the unique beginning of one.
fn hydrated_id<'i>(ids: &'i BTreeSet<String>, words: &str) -> Result<Option<&'i str>, Failure> {
    if let Some(id) = ids.get(words) {
        return Ok(Some(id));
    }
    let fitting: Vec<&String> = ids.iter().filter(|id| !words.is_empty() && id.starts_with(words)).collect();
    match fitting.as_slice() {
        [] => Ok(None),
        [id] => Ok(Some(id)),
        several => Err(Failure::new(
            ErrorKind::Ambiguous,
            format!("{words:?} fits {} hydrated backups", several.len()),
        )
        .hint("give more of the id; --list shows them")),
    }
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
        let origin = Origin::of(&images.path(&key));
        let row = [
            json!(record.as_ref().map(|record| &record.backup_id)),
            json!(record.as_ref().and_then(|record| record.volume_id.as_ref())),
            json!(origin.volume_name),
            json!(origin.store),
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
