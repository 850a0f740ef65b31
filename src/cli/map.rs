//! `cinderfs map`: which object holds each byte of a backup's volume.
//!
//! The engine is [`crate::frontend::map`]; here are the words, the rows, and what the picture shows.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::args::{OutputArgs, StoreArg, threads};
use super::canvas::{self, When};
use super::exit::{Failure, Outcome, note};
use super::picture::{Class, Ink, Picture};
use super::render::{self, Format};
use super::restore::THREADS_MAX;
use super::rows::{Column, Rows, digits};
use super::select;
use super::signals::Signals;
use crate::catalog::{Entry, Snapshot};
use crate::error::{Error, ErrorKind, ResultExt};
use crate::frontend::map::{self as engine, MapEntry, State};
use crate::image::{Image, Verification};
use crate::types::BackupId;

const EXAMPLES: &str = "\
Examples:
  cinderfs map /backup_mount db@latest
  cinderfs map /backup_mount 52e81dfa --summary     the picture alone
  cinderfs map /backup_mount 52e81dfa -f json | jq 'map(select(.zero))'

JSON is a list like that of `qemu-img map --output=json`, an entry on each line: `depth` is 0 for what the backup stored \
itself, 1 for what its parent did; `present` says that some object holds the range, `zero` that it is zeros, `data` that it \
has to be read. `lost` is what cannot be had: its digest is damaged, or no object holds all of it. `object_offset` counts \
plain bytes, before compression.";

/// Show which backup and which object hold each range of a volume, and where zeros are
///
/// Nothing but the documents of the chain is read. Zeros are known from digests: a backup without them shows none.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct MapArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backup: an id, a unique name, a unique prefix of an id, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Read digests on this many threads; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// Draw the volume, coloured by backup
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = When::Auto)]
    picture: When,
    /// Leave the rows out: only the picture and its legend
    #[arg(short, long)]
    summary: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Keys of JSON, in its order; the first of them as `qemu-img map` has them.
const KEYS: [(&str, &str); 11] = [
    ("Start", "start"),
    ("Length", "length"),
    ("Depth", "depth"),
    ("Present", "present"),
    ("Zero", "zero"),
    ("Data", "data"),
    ("State", "state"),
    ("Backup", "backup"),
    ("Object", "object"),
    ("Offset", "object_offset"),
    ("Codec", "compression"),
];

/// Those that fit into 80 columns, and say all that a person wants to know.
const TABLE: [usize; 7] = [0, 1, 6, 7, 8, 9, 10];

/// Digits of an id that tables show: as many as people type.
const ID_SHOWN: usize = 8;

/// Runs `map`.
pub(crate) fn run(args: &MapArgs) -> Result<Outcome, Failure> {
    canvas::check_summary(args.summary, args.output.format)?;
    let catalog = args.store.catalog()?;
    let snapshot = catalog.snapshot();
    let entries = select::newest_first(&snapshot);
    let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
    let entry = select::backup(&entries, &args.backup, args.volume.as_deref(), &usable)?;
    let image = catalog.image(&entry).context(|| format!("backup {}", entry.id))?;
    if image.verification() == Verification::Md5 {
        note("cinderfs: the backup has no usable digests: where zeros are is not known\n");
    }

    let format = args.output.format;
    let titles = KEYS.map(|(title, _)| title);
    let chosen = match (format, args.output.names_columns()) {
        (Format::Table, false) => TABLE.to_vec(),
        _ => args.output.choose(&titles)?,
    };
    let columns: Vec<Column> = KEYS.iter().enumerate().map(|(n, key)| column(n, key, &image)).collect();
    let when = if args.summary { When::Always } else { args.picture };
    let (classes, class_of) = classes(&image, &snapshot);
    let mut picture =
        when.is_now(format).then(|| Picture::new(image.len_bytes(), canvas::columns(), classes));
    let signals = Signals::watch()?;

    let stdout = &mut io::BufWriter::new(io::stdout().lock());
    let mut rows = Rows::new(stdout, format, chosen.iter().map(|&n| &columns[n]).collect());
    let threads = threads(args.threads);
    let result = engine::map(&image, threads, &signals.cancel, &mut |entry| {
        if let Some(picture) = &mut picture {
            picture.add(entry.image.clone(), class_of.of(entry));
        }
        if args.summary {
            return Ok(());
        }
        let cells = cells(&image, entry, format)?;
        let cells: Vec<Value> = chosen.iter().map(|&n| cells[n].clone()).collect();
        rows.add(&cells).map_err(cannot_print)
    });
    let drawn = |picture: Picture| canvas::drawn(&picture, args.summary);
    let result = result.and_then(|()| {
        let stdout = rows.finish().map_err(cannot_print)?;
        let text = picture.map(drawn).unwrap_or_default();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(cannot_print)
    });
    conclude(result, &signals)
}

/// What printing rows failed with, for the engine.
pub(super) fn cannot_print(error: io::Error) -> Error {
    Error::caused_by(ErrorKind::Target, "cannot write to stdout", error)
}

/// The end of a command that prints while it works. A reader that stops reading (`| head`) is no failure.
pub(super) fn conclude(result: crate::Result<()>, signals: &Signals) -> Result<Outcome, Failure> {
    match result {
        Err(error) if error.io_kind() == Some(io::ErrorKind::BrokenPipe) => Ok(Outcome::Done),
        Err(error) => Err(signals.blame(error.into())),
        Ok(()) => Ok(Outcome::Done),
    }
}

fn column(number: usize, (title, key): &(&'static str, &'static str), image: &Image) -> Column {
    let offset = digits(image.len_bytes());
    let width = match number {
        0 | 1 | 9 => offset,
        7 => ID_SHOWN,
        _ => 5,
    };
    Column { title, key, width, is_number: matches!(number, 0..=2 | 9) }
}

/// All cells of a row.
fn cells(image: &Image, entry: &MapEntry, format: Format) -> crate::Result<Vec<Value>> {
    let is_table = format == Format::Table;
    let held =
        entry.held.map(|(object, offset)| Ok::<_, Error>((image.holder(object)?, offset))).transpose()?;
    let held = held.as_ref();
    // What no backup stored lies beneath the full one, as in qemu-img.
    let bottom = image.chain().len().saturating_sub(1) as u64;
    let (state, zero) = (entry.state, entry.state == State::Zeros);
    Ok(vec![
        json!(entry.image.start),
        json!(entry.image.end - entry.image.start),
        json!(held.map_or(bottom, |(holder, _)| u64::from(holder.depth))),
        json!(held.is_some()),
        json!(zero),
        json!(!zero),
        json!(state.name()),
        json!(held.map(|(holder, _)| if is_table { short(holder.backup) } else { holder.backup.as_str() })),
        json!(held.map(|(holder, _)| {
            let name = holder.name.as_str();
            if is_table { name.rsplit_once('-').map_or(name, |(_, number)| number) } else { name }
        })),
        json!(held.map(|(_, offset)| offset)),
        json!(held.map(|(holder, _)| holder.codec.name())),
    ]
    .into_iter()
    .map(|cell| if is_table && cell.is_null() { json!("-") } else { cell })
    .collect())
}

/// The beginning of an id, as people type it.
pub(super) fn short(id: &BackupId) -> &str {
    id.as_str().get(..ID_SHOWN).unwrap_or(id.as_str())
}

/// Letters and colours of backups, the newest first: colours that stay apart on dark and on light terminals.
const FILLS: [(char, u8); 6] = [('A', 208), ('B', 35), ('C', 170), ('D', 178), ('E', 44), ('F', 99)];

/// Of the full backup at the bottom, and of all backups that have no colour of their own.
const FULL: (char, u8) = ('Z', 68);
const OTHERS: (char, u8) = ('O', 248);

/// Which class of the picture an entry belongs to.
struct ClassOf {
    of_layer: HashMap<u32, usize>,
    zeros: usize,
    lost: usize,
}

impl ClassOf {
    fn of(&self, entry: &MapEntry) -> usize {
        match (entry.state, entry.held) {
            (State::Zeros, _) => self.zeros,
            (State::Data, Some((object, _))) => {
                self.of_layer.get(&object.layer).copied().unwrap_or(self.lost)
            }
            (State::Lost, _) | (State::Data, None) => self.lost,
        }
    }
}

/// The classes of the picture: the backups that hold most have colours of their own.
fn classes(image: &Image, snapshot: &Snapshot) -> (Vec<Class>, ClassOf) {
    let mut bytes_of: HashMap<u32, u64> = HashMap::new();
    for extent in image.extent_map().extents() {
        *bytes_of.entry(extent.object.layer).or_default() += extent.len;
    }
    let mut layers: Vec<(u32, u64)> = bytes_of.into_iter().filter(|(layer, _)| *layer > 0).collect();
    layers.sort_by_key(|&(layer, bytes)| (std::cmp::Reverse(bytes), layer));
    let mut shown: Vec<u32> = layers.iter().take(FILLS.len()).map(|&(layer, _)| layer).collect();
    shown.sort_unstable_by(|a, b| b.cmp(a));
    // `chain` begins with the newest, layers are counted from the full one.
    let id_of = |layer: u32| image.chain().iter().rev().nth(layer as usize);
    let label = |layer: u32| {
        let Some(id) = id_of(layer) else { return String::new() };
        let entry = snapshot.get(id.as_str());
        let made =
            entry.and_then(|entry| entry.created_at).map_or("undated".to_owned(), |time| time.to_string());
        let name = entry.and_then(|entry| entry.name.as_deref()).unwrap_or_default();
        format!("{} {made} {}", short(id), render::visible(name)).trim_end().to_owned()
    };
    let mut classes = Vec::new();
    let mut of_layer = HashMap::new();
    for (&layer, (letter, colour)) in shown.iter().zip(FILLS) {
        of_layer.insert(layer, classes.len());
        classes.push(Class { label: label(layer), ink: Ink::Fill(letter, colour) });
    }
    let others: Vec<u32> =
        layers.iter().map(|&(layer, _)| layer).filter(|layer| !of_layer.contains_key(layer)).collect();
    of_layer.extend(others.iter().map(|&layer| (layer, classes.len())));
    let others = match others[..] {
        [only] => label(only),
        _ => format!("{} other backups", others.len()),
    };
    classes.push(Class { label: others, ink: Ink::Fill(OTHERS.0, OTHERS.1) });
    of_layer.insert(0, classes.len());
    let full = (image.chain().len() > 1, label(0));
    classes.push(Class {
        label: if full.0 { format!("{} (full)", full.1) } else { full.1 },
        ink: Ink::Fill(FULL.0, FULL.1),
    });
    let zeros = classes.len();
    classes.push(Class { label: "zeros".to_owned(), ink: Ink::Paper });
    classes.push(Class { label: "lost: cannot be read".to_owned(), ink: Ink::Alarm });
    (classes, ClassOf { of_layer, zeros, lost: zeros + 1 })
}
