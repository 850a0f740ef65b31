//! `cinderfs consolidate`: a full backup out of a chain.
//!
//! The engine is [`crate::writer::consolidate`]; here are the words, the signals, the progress and the summary.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::args::{StoreArg, threads};
use super::create::{self, Compression};
use super::exit::{Failure, Outcome, note};
use super::made::MadeArgs;
use super::progress::{Mode, Reporter};
use super::restore::{THREADS_MAX, said};
use super::signals::Signals;
use super::watch::Watch;
use super::{made, perhaps_unseen, select, sizes};
use crate::catalog::Entry;
use crate::types::{ObjectName, count};
use crate::writer::consolidate::{self as engine, Consolidated, Consolidation};

const EXAMPLES: &str = "\
Examples:
  cinderfs consolidate /backup_mount db@latest
  cinderfs consolidate /backup_mount 52e81dfa --compression zstd --name monthly

The id of the new backup goes to stdout, all else to stderr. Until the backup
is whole, nothing of it can be seen in the store. No backup is deleted: when
nothing else builds on the old ones, `cinderfs delete` takes them away.

Exit codes: 0 made; 1 failed, or a block is damaged or missing; 2 wrong usage;
10 store not found; 12 the store may not be changed; 130, 143 interrupted.";

/// Make a full backup out of an incremental one and all that it builds on
///
/// The volume is not needed: every block is read from the store and verified, and a damaged one ends it. The new backup is
/// dated directly behind the one it was made of, so that it takes its place: if that was the newest of its volume, the next
/// incremental builds on the new one. Then the old ones can be deleted.
#[derive(Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ConsolidateArgs {
    #[command(flatten)]
    store: StoreArg,
    /// Which backup: an id, a unique name, a unique prefix of an id, `latest`, or VOLUME@latest
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// Look among the backups of this volume: its id, a unique prefix of it, or its display name
    #[arg(long, value_name = "VOLUME")]
    volume: Option<String>,
    /// Name of the new backup; none unless told, for two of one name could not be told apart by it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Description of the new backup; which one it was made of, unless told
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Folder of the store to put it in, may be nested; one of its own, named by its id, unless told
    #[arg(long, value_name = "NAME", value_parser = create::container)]
    container: Option<ObjectName>,
    /// How to compress [default: the cinder.conf's, else zlib]
    #[arg(long, value_enum, value_name = "CODEC")]
    compression: Option<Compression>,
    /// Plain bytes of an object, a multiple of the block size, with K, M, G or T for powers of 1024 [default: the cinder.conf's, else 128M]
    #[arg(long, value_name = "BYTES", value_parser = sizes::bytes)]
    object_size: Option<u64>,
    /// Bytes that have a digest; as in the backup, or 32768 where it has no digests, unless told
    #[arg(long, value_name = "BYTES", value_parser = sizes::bytes)]
    block_size: Option<u64>,
    /// Work on this many threads; one per processor unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=THREADS_MAX))]
    threads: Option<u64>,
    /// How to show progress, on stderr
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
    #[command(flatten)]
    made: MadeArgs,
}

/// Runs `consolidate`. `quiet` takes away the bar and the summary.
pub(crate) fn run(args: &ConsolidateArgs, quiet: bool) -> Result<Outcome, Failure> {
    let output = args.made.choose()?;
    let store = args.store.writable()?;
    let catalog = args.store.catalog_to_read_and_write()?;
    let _watch = Watch::start(store.location(), args.store.timeout());
    let snapshot = catalog.snapshot();
    let entries = select::newest_first(&snapshot);
    let usable = |entry: &Arc<Entry>| select::is_usable(&catalog.image(entry));
    let entry = select::backup(&entries, &args.backup, args.volume.as_deref(), &usable)
        .map_err(|failure| perhaps_unseen(failure, &snapshot))?;
    let configured = args.store.place()?.defaults()?;
    let wanted = Consolidation {
        name: args.name.clone(),
        description: args.description.clone(),
        container: args.container.clone().or(configured.container),
        codec: args.compression.map_or(configured.codec, Compression::codec),
        level: None,
        object_bytes: args.object_size.or(configured.object_bytes),
        block_bytes: args.block_size,
        threads: threads(args.threads),
    };
    let signals = Signals::watch()?;
    let reporter = Reporter::new(args.progress, quiet, 0);
    let started = Instant::now();
    let result =
        engine::consolidate(store.target(), &catalog, &entry, &wanted, &signals.cancel, &|progress| {
            reporter.update_backup(progress);
        });
    let seconds = started.elapsed().as_secs_f64();
    let consolidated = match result {
        Ok(consolidated) => consolidated,
        Err(error) => {
            drop(reporter);
            let is_lost = error.kind().is_damage();
            let failure = signals.blame(made::advised(error));
            let failure = args.store.advise_of_container(failure, args.container.as_ref());
            return Err(if is_lost {
                failure.hint("nothing was written; the backup and those it builds on must stay as they are")
            } else {
                failure
            });
        }
    };
    reporter.finish(|| summary_json(&consolidated, seconds));
    if !quiet && args.progress != Mode::Json {
        note(&summary(&consolidated, seconds, &entry));
    }
    made::print_made(output.as_ref(), &consolidated.created, args.name.as_deref())?;
    Ok(Outcome::Done)
}

/// As that of `create`, and what it was made of.
fn summary_json(consolidated: &Consolidated, seconds: f64) -> Value {
    let mut summary = made::summary_json(&consolidated.created, seconds);
    let chain: Vec<&str> = consolidated.chain.iter().map(|id| id.as_str()).collect();
    summary["consolidated_from"] = json!(chain);
    summary["healed_blocks"] = json!(consolidated.healed_blocks);
    summary
}

fn summary(consolidated: &Consolidated, seconds: f64, entry: &Entry) -> String {
    let Consolidated { created, chain, healed_blocks } = consolidated;
    let progress = created.progress;
    let rate = progress.total_bytes as f64 / seconds.max(0.001);
    let mut text = format!(
        "full backup of {}, the newest {}, volume {}\n{} in {seconds:.1} s ({}/s): stored as {} in {}\n",
        count(chain.len() as u64, "backup"),
        said(entry),
        created.volume_id,
        BinaryBytes(progress.total_bytes),
        BinaryBytes(rate as u64),
        BinaryBytes(progress.stored_bytes),
        count(created.objects, "object"),
    );
    if *healed_blocks > 0 {
        text.push_str(&format!(
            "taken from another backup's copy: {}\n",
            count(*healed_blocks, "damaged block")
        ));
    }
    text
}
