//! `cinderfs diff`: what changed from one backup to another.
//!
//! The engine is [`crate::frontend::diff`]; here are the words, the rows, the picture and the summary.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::args::{OutputArgs, StoreArg, threads};
use super::canvas::{self, When};
use super::exit::{Failure, Outcome, note};
use super::map::{cannot_print, conclude, short};
use super::picture::{Class, Ink, Picture};
use super::render::Format;
use super::restore::THREADS_MAX;
use super::rows::{Column, Rows, digits};
use super::select;
use super::signals::Signals;
use crate::catalog::Entry;
use crate::error::{ErrorKind, ResultExt};
use crate::frontend::diff::{self as engine, Change, Differences};
use crate::types::count;

const EXAMPLES: &str = "\
Examples:
  cinderfs diff /backup_mount 52e81dfa 37bf0e4f
  cinderfs diff /backup_mount monday db@latest --summary
  cinderfs diff /backup_mount 52e81dfa 37bf0e4f -f json > changed.json

JSON is a list of the whole of NEW, with `dirty` true where it differs from OLD: what `cinderfs create --changed-from` takes. \
`change` is data, zeroed (zeros now), removed (behind the end of NEW, in tables only), unknown (a digest is damaged), or same.";

/// Show which ranges differ between two backups, without reading their data
///
/// Their digests are compared, so both must have them, with blocks of one size. The exit code is 0 whether they differ or not.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    store: StoreArg,
    /// The older backup: an id, a unique name, a unique prefix of an id, `latest`, or VOLUME@latest
    #[arg(value_name = "OLD")]
    old: String,
    /// The newer one
    #[arg(value_name = "NEW")]
    new: String,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Compare on this many threads; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// Draw the volume, coloured by change
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = When::Auto)]
    picture: When,
    /// Leave the rows out: only the picture and the summary
    #[arg(short, long)]
    summary: bool,
    #[command(flatten)]
    output: OutputArgs,
}

const TITLES: [&str; 4] = ["Start", "Length", "Change", "Dirty"];

/// Runs `diff`. `quiet` takes the summary away where it is not part of a table.
pub(crate) fn run(args: &DiffArgs, quiet: bool) -> Result<Outcome, Failure> {
    canvas::check_summary(args.summary, args.output.format)?;
    let catalog = args.store.catalog()?;
    let entries = select::newest_first(&catalog.snapshot());
    let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
    let open = |words: &str| -> Result<_, Failure> {
        let entry = select::backup(&entries, words, args.volume.as_deref(), &usable)?;
        let image = catalog.image(&entry).context(|| format!("backup {}", entry.id))?;
        Ok((entry, image))
    };
    let ((old_entry, old), (new_entry, new)) = (open(&args.old)?, open(&args.new)?);
    if old_entry.volume_id != new_entry.volume_id {
        note("cinderfs: these are backups of different volumes\n");
    }

    let format = args.output.format;
    let chosen = match (format, args.output.names_columns()) {
        (Format::Table, false) => vec![0, 1, 2],
        _ => args.output.choose(&TITLES)?,
    };
    let width = digits(old.len_bytes().max(new.len_bytes()));
    let columns = [
        Column { title: TITLES[0], key: "start", width, is_number: true },
        Column { title: TITLES[1], key: "length", width, is_number: true },
        Column { title: TITLES[2], key: "change", width: 7, is_number: false },
        Column { title: TITLES[3], key: "dirty", width: 5, is_number: false },
    ];
    let when = if args.summary { When::Always } else { args.picture };
    let mut picture =
        when.is_now(format).then(|| Picture::new(new.len_bytes(), canvas::columns(), classes()));
    let signals = Signals::watch()?;

    let stdout = &mut io::BufWriter::new(io::stdout().lock());
    let mut rows = Rows::new(stdout, format, chosen.iter().map(|&n| &columns[n]).collect());
    let result = engine::diff(&old, &new, threads(args.threads), &signals.cancel, &mut |range, change| {
        if let Some(picture) = &mut picture {
            picture.add(range.clone(), class_of(change));
        }
        if args.summary || !is_row(format, change) {
            return Ok(());
        }
        let cells = cells(&range, change);
        let cells: Vec<Value> = chosen.iter().map(|&n| cells[n].clone()).collect();
        rows.add(&cells).map_err(cannot_print)
    });
    let found = match result {
        Ok(found) => found,
        Err(error) => {
            let cannot_compare = error.kind() == ErrorKind::Unsupported;
            let ended = conclude(Err(error), &signals);
            let hint = "restore or mount both, and compare the images: cmp -l, or qemu-img compare";
            return ended.map_err(|failure| if cannot_compare { failure.hint(hint) } else { failure });
        }
    };
    let summary = format!("{} -> {}: {}\n", short(old.id()), short(new.id()), summary(&found));
    let end = rows.finish().and_then(|stdout| {
        if format == Format::Table {
            stdout.write_all(
                picture.map(|picture| canvas::drawn(&picture, args.summary)).unwrap_or_default().as_bytes(),
            )?;
            stdout.write_all(summary.as_bytes())?;
        }
        stdout.flush()
    });
    if format != Format::Table && !quiet {
        note(&summary);
    }
    conclude(end.map_err(cannot_print), &signals)
}

/// A document for programs tells the whole of the newer image, so that a torn one is noticed, and nothing behind its end.
fn is_row(format: Format, change: Change) -> bool {
    match (format, change) {
        (Format::Json | Format::Yaml, Change::Removed) => false,
        (Format::Json | Format::Yaml, _) => true,
        (_, change) => change != Change::Same,
    }
}

fn cells(range: &Range<u64>, change: Change) -> [Value; 4] {
    [
        json!(range.start),
        json!(range.end.saturating_sub(range.start)),
        json!(change.name()),
        json!(change != Change::Same),
    ]
}

fn classes() -> Vec<Class> {
    let class = |label: &str, ink| Class { label: label.to_owned(), ink };
    vec![
        class("changed", Ink::Fill('C', 208)),
        class("zeroed", Ink::Fill('Z', 44)),
        class("same", Ink::Paper),
        class("unknown: a digest is damaged", Ink::Alarm),
        class("removed: behind the end of the newer one", Ink::Fill('R', 170)),
    ]
}

fn class_of(change: Change) -> usize {
    match change {
        Change::Data => 0,
        Change::Zeroed => 1,
        Change::Same => 2,
        Change::Unknown => 3,
        Change::Removed => 4,
    }
}

/// How much differs, in a line, and what is to be said of that in another.
fn summary(found: &Differences) -> String {
    let &Differences { old_bytes, new_bytes, changed_bytes, zeroed_bytes, unknown_bytes, ranges } = found;
    if ranges == 0 {
        return format!("{} without a difference", BinaryBytes(new_bytes));
    }
    let percent = 100.0 * changed_bytes as f64 / new_bytes.max(1) as f64;
    let mut text = format!(
        "{} of {} changed ({percent:.1} %) in {}",
        BinaryBytes(changed_bytes),
        BinaryBytes(new_bytes),
        count(ranges, "range"),
    );
    let mut more = Vec::new();
    for (bytes, what) in [(zeroed_bytes, "of that zeroed"), (unknown_bytes, "of that unknown")] {
        if bytes > 0 {
            more.push(format!("{} {what}", BinaryBytes(bytes)));
        }
    }
    if new_bytes > old_bytes {
        more.push(format!("{} longer", BinaryBytes(new_bytes - old_bytes)));
    } else if new_bytes < old_bytes {
        more.push(format!("{} shorter", BinaryBytes(old_bytes - new_bytes)));
    }
    if !more.is_empty() {
        text.push_str(&format!("\n{}", more.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_short() {
        let mut found = Differences { old_bytes: 2048, new_bytes: 2048, ..Differences::default() };
        assert_eq!(summary(&found), "2.00 KiB without a difference");
        found = Differences { changed_bytes: 1024, zeroed_bytes: 512, ranges: 2, ..found };
        assert_eq!(
            summary(&found),
            "1.00 KiB of 2.00 KiB changed (50.0 %) in 2 ranges\n512 B of that zeroed"
        );
        found.old_bytes = 1024;
        assert!(summary(&found).ends_with("zeroed, 1.00 KiB longer"));
        found = Differences { old_bytes: 4096, ranges: 1, changed_bytes: 0, zeroed_bytes: 0, ..found };
        assert_eq!(summary(&found), "0 B of 2.00 KiB changed (0.0 %) in 1 range\n2.00 KiB shorter");
    }
}
