//! `cinderfs list`: the backups of a store, one row each.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::args::{self, OutputArgs, StoreArg};
use super::exit::{Failure, Outcome, note};
use super::{print, render, require_answers, select, store_note, unseen};
use crate::catalog::{Catalog, Entry};
use crate::error::{Error, ErrorKind};
use crate::frontend::document::{self, STATUS_AVAILABLE, STATUS_ERROR};
use crate::image::Image;
use crate::in_order::in_order;

const EXAMPLES: &str = "\
Examples:
  cinderfs list /backup_mount --volume db --status available
  cinderfs list /backup_mount --long -f json
  cinderfs list /backup_mount -c ID -c Indexed
  cinderfs list /backup_mount -f value -c ID | xargs -n1 \\
      cinderfs show /backup_mount";

/// List the backups of a store, newest first
///
/// A backup is `available` when its whole chain is there and fits together, and `error` otherwise; `show` tells the
/// reason. Listing opens the backups, and reads none of their data.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Also print the columns Volume, Container and Indexed
    ///
    /// Indexed is how much of the backup can be entered at once: in percent of the bytes in large compressed objects, 100
    /// where there are none (see `cinderfs index`; what `create` wrote needs none). `-c` prints each of them without --long too.
    #[arg(long)]
    long: bool,
    /// Only backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Only backups of exactly this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Only backups of this status
    #[arg(long, value_enum, value_name = "STATUS")]
    status: Option<Status>,
    #[command(flatten)]
    output: OutputArgs,
    /// Sort by this column; may be repeated, the first one counts most
    #[arg(long = "sort-column", value_name = "COLUMN")]
    sort_columns: Vec<String>,
    /// Sort downwards instead of upwards
    #[arg(long, requires = "sort_columns")]
    sort_descending: bool,
}

/// What a backup's Status column can say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Status {
    Available,
    Error,
}

/// Titles in the OpenStack client's order; `--long` adds those from [`SHORT_COLUMNS`] on.
const COLUMNS: [&str; 10] = [
    "ID",
    "Name",
    "Description",
    "Status",
    "Size",
    "Incremental",
    "Created At",
    "Volume",
    "Container",
    "Indexed",
];
const SHORT_COLUMNS: usize = 7;
const STATUS: usize = 3;
const SIZE: usize = 4;
const INDEXED: usize = 9;

/// Runs `list`.
pub(crate) fn run(args: &ListArgs) -> Result<Outcome, Failure> {
    // Wrong words are refused before the store is read, which can take a while. Whoever names a
    // column need not say --long.
    let mut chosen = args.output.choose(&COLUMNS)?;
    if !args.long && !args.output.names_columns() {
        chosen.truncate(SHORT_COLUMNS);
    }
    let sort =
        args.sort_columns.iter().map(|word| args::column(&COLUMNS, word)).collect::<Result<Vec<_>, _>>()?;
    // Opening an image reads its whole chain's metadata; not for those who ask only for ids.
    let wants = |column| chosen.contains(&column) || sort.contains(&column);
    let wants_status = wants(STATUS) || args.status.is_some();

    let wants_indexed = wants(INDEXED);
    let catalog = if wants_indexed { args.store.catalog_to_read()? } else { args.store.catalog()? };
    let snapshot = catalog.snapshot();
    let entries = select::newest_first(&snapshot);
    let volume = args.volume.as_deref().map(|words| select::volume(&entries, words)).transpose()?;
    let mut fault = entries.iter().find_map(|entry| entry.problem.clone().filter(is_of_store));
    let listed: Vec<_> = entries
        .iter()
        .filter(|entry| volume.is_none() || entry.volume_id == volume)
        .filter(|entry| args.name.is_none() || entry.name == args.name)
        .collect();
    let look_at = |entry: &Arc<Entry>| {
        let wants_image = wants_status || wants_indexed || wants(SIZE) && entry.volume_size_gib.is_none();
        let image = wants_image.then(|| open(&catalog, entry)).transpose();
        let (image, fault) = image.map_or_else(|error| (None, Some(error)), |image| (image, None));
        let indexed = image.as_deref().filter(|_| wants_indexed).map(indexed_percent);
        (row(entry, image.as_deref(), indexed), fault.filter(is_of_store))
    };
    let mut rows = Vec::with_capacity(listed.len());
    let take = |_, (row, failed): (Vec<Value>, Option<Error>)| {
        fault = fault.take().or(failed);
        let is_wanted = match args.status {
            None => true,
            Some(Status::Available) => row[STATUS] == STATUS_AVAILABLE,
            Some(Status::Error) => row[STATUS] == STATUS_ERROR,
        };
        rows.extend(is_wanted.then_some(row));
        Ok(())
    };
    in_order(
        listed.len() as u64,
        catalog.store().calls_at_once(),
        &AtomicBool::new(false),
        || (),
        |(), index| Ok(look_at(listed[index as usize])),
        take,
    )?;
    require_answers(&catalog, fault.as_ref())?;
    sort_rows(&mut rows, &sort, args.sort_descending);

    let titles: Vec<&str> = chosen.iter().map(|&column| COLUMNS[column]).collect();
    let rows: Vec<Vec<Value>> =
        rows.iter().map(|row| chosen.iter().map(|&column| row[column].clone()).collect()).collect();
    print(|out| render::list(out, args.output.format, &titles, &rows))?;
    note(&store_note(&snapshot)?);
    // What could not be seen may hold backups: a script must not take the rest for all.
    Ok(if unseen(&snapshot).is_some() { Outcome::Damaged } else { Outcome::Done })
}

/// The image, or why there is none, also in the log.
fn open(catalog: &Catalog, entry: &Arc<Entry>) -> crate::Result<Arc<Image>> {
    let opened = match &entry.problem {
        Some(problem) => Err(problem.clone()),
        None => catalog.image(entry),
    };
    opened.inspect_err(|error| tracing::info!(backup = %entry.id, %error, "the backup is unusable"))
}

/// Whether it was the store that failed, and not the backup.
fn is_of_store(error: &Error) -> bool {
    error.kind() == ErrorKind::StoreIo
}

/// How much of the image's large compressed objects can be entered at once, in percent.
fn indexed_percent(image: &Image) -> u64 {
    let mut known = (0, 0);
    for object in image.objects().iter().filter(|object| object.needs_restart_points()) {
        let known_to = object.open().map_or(0, |reader| reader.known_to());
        known = (known.0 + known_to, known.1 + object.len_bytes());
    }
    // Rounded down: 100 means all.
    if known.1 == 0 { 100 } else { (u128::from(known.0) * 100 / u128::from(known.1)) as u64 }
}

fn row(entry: &Entry, image: Option<&Image>, indexed: Option<u64>) -> Vec<Value> {
    vec![
        json!(entry.id.as_str()),
        json!(entry.name),
        json!(entry.description),
        json!(if image.is_some() { STATUS_AVAILABLE } else { STATUS_ERROR }),
        json!(document::size_gib(entry, image.map(Image::len_bytes))),
        json!(document::is_incremental(entry)),
        json!(entry.created_at.map(|time| time.to_string())),
        json!(entry.volume_id.as_ref().map(|id| id.as_str())),
        json!(entry.container),
        json!(indexed),
    ]
}

/// Sorts by the first of `columns`, ties by the next. What has no value comes last in either direction.
fn sort_rows(rows: &mut [Vec<Value>], columns: &[usize], descending: bool) {
    rows.sort_by(|a, b| {
        columns.iter().fold(Ordering::Equal, |order, &column| {
            order.then_with(|| match (&a[column], &b[column]) {
                (Value::Null, Value::Null) => Ordering::Equal,
                (Value::Null, _) => Ordering::Greater,
                (_, Value::Null) => Ordering::Less,
                (a, b) if descending => compare(b, a),
                (a, b) => compare(a, b),
            })
        })
    });
}

/// One column holds values of one type, besides null.
fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_u64().cmp(&b.as_u64()),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => a.cmp(b),
        _ => Ordering::Equal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_sort_by_several_columns_with_nothing_last() {
        let mut rows = vec![
            vec![json!("b"), json!(10)],
            vec![json!("a"), json!(9)],
            vec![json!(null), json!(1)],
            vec![json!("a"), json!(10)],
        ];
        let mut shown = |columns: &[usize], descending| {
            sort_rows(&mut rows, columns, descending);
            rows.iter()
                .map(|row| format!("{}{}", row[0].as_str().unwrap_or("-"), row[1]))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(shown(&[0, 1], false), "a9 a10 b10 -1");
        assert_eq!(shown(&[0, 1], true), "b10 a10 a9 -1");
        assert_eq!(shown(&[1], false), "-1 a9 b10 a10");
        // Without columns the order stays.
        assert_eq!(shown(&[], false), "-1 a9 b10 a10");
    }

    #[test]
    fn columns_stand_where_the_code_looks_for_them() {
        assert_eq!(COLUMNS[STATUS], "Status");
        assert_eq!(COLUMNS[SIZE], "Size");
        assert_eq!(COLUMNS[INDEXED], "Indexed");
        assert_eq!(COLUMNS[..SHORT_COLUMNS].last(), Some(&"Created At"));
    }
}
