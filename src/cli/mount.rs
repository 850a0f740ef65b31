//! `cinderfs mount STORE MOUNTPOINT`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;

use super::args::{StoreArg, StoreWord};
use super::cache;
use super::exit::{Failure, Outcome, note};
use super::place::{Opened, Place};
use super::store_note;
use crate::cache_dir::{self, CacheDir};
use crate::catalog::{Catalog, CatalogOptions};
use crate::error::{Error, ErrorKind};
use crate::frontend::fuse::attr::OwnerOverride;
use crate::frontend::fuse::daemon::{self, Child};
use crate::frontend::fuse::fs::CinderFs;
use crate::frontend::fuse::hydrated::{self, Hydrated};
use crate::frontend::fuse::keeper::Keeper;
use crate::frontend::fuse::mount::{Ended, mount};
use crate::frontend::fuse::mountpoint;
use crate::frontend::fuse::options::MountOptions;
use crate::frontend::fuse::tree::Tree;
use crate::image;
use crate::sandbox::{CapabilitySet, Needs};
use crate::store::deadline::DeadlineStore;
#[cfg(feature = "remote")]
use crate::store::remote::settings::environment;

const EXAMPLES: &str = "\
Examples:
  cinderfs mount /backup_mount /mnt
  ls /mnt/volumes/VOLUME-ID/
  dd if=/mnt/backups/BACKUP-ID/volume.img of=/dev/vg/new bs=1M
  mount -o loop,ro,noload /mnt/backups/BACKUP-ID/volume.img /rec
  cinderfs umount /mnt

Options for -o:
  cache_size=SIZE  bound on the cache of verified blocks, as in 64M or 1G; 256M
                   unless told (below 32M, what is read ahead may have to be
                   decoded again)
  seek_index=off   note and keep no restart points: reads deep in a compressed
                   object decode all before them, unless `create` wrote it
  disk_cache=SIZE  also keep verified blocks in the cache directory, at most
                   that many bytes, for later mounts and for when the store
                   does not answer; off unless told
  threads=N        how many requests are served at once
  allow_other      let other users in; each sees what the store's own
                   permissions allow
  allow_root       let root in
  uid=N, gid=N     show everything as owned by this user, this group
  store_timeout=N  how many seconds the store may take for an answer before a
                   read fails; 30 unless told, 0 for ever
  log=FILE         where the background process logs; syslog unless told
  passthrough=off  do not let the kernel read hydrated images itself
                   (see `cinderfs hydrate`)
  no_sandbox       let the daemon keep all its rights; unless told it gives up
                   what serving does not take (see docs/SECURITY.md)
  on_damage=zero   the same as --on-damage zero
  nonempty         mount over a directory that is not empty";

/// Show every backup of a store as a read-only disk image
///
/// Returns when the mount answers and goes on in the background. Backups that appear or vanish in the store do so in
/// the mount.
#[derive(clap::Args, Debug)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct MountArgs {
    #[command(flatten)]
    store: StoreWord,

    /// Empty directory to show them at
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,

    /// Mount options: allow_other, allow_root, uid=N, gid=N, cache_size=SIZE, disk_cache=SIZE, seek_index=off,
    /// passthrough=off, on_damage=zero, threads=N, store_timeout=N, log=FILE, no_sandbox, nonempty
    #[arg(short = 'o', value_name = "OPTION,...")]
    options: Vec<String>,

    /// What a reader gets in place of a block that is damaged and cannot be healed
    #[arg(long, value_enum, value_name = "ACTION")]
    on_damage: Option<OnDamage>,

    /// Stay in the foreground; Ctrl-C unmounts
    #[arg(short = 'f', long)]
    foreground: bool,

    /// The same as -o no_sandbox
    #[arg(long)]
    no_sandbox: bool,

    /// Serve as the background process of another `cinderfs mount`, which waits at the other end of stdin
    #[arg(long, hide = true)]
    daemon: bool,
}

/// What to do about a lost block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum OnDamage {
    /// The read fails; what is not told otherwise.
    Eio,
    /// It reads as zeros, and is logged and counted in metadata.json. What the store fails to deliver is an error all the same.
    Zero,
}

impl From<OnDamage> for image::OnDamage {
    fn from(word: OnDamage) -> Self {
        match word {
            OnDamage::Eio => Self::Error,
            OnDamage::Zero => Self::Zeros,
        }
    }
}

/// Mounts; returns when the mount answers, or in the foreground when it has ended.
pub(crate) fn run(args: &MountArgs, verbosity: i16) -> Result<Outcome, Failure> {
    let mut options = MountOptions::parse(&args.options)?;
    options.sandbox &= !args.no_sandbox;
    if let Some(on_damage) = args.on_damage {
        options.on_damage = on_damage.into();
    }
    if args.daemon {
        let child = Child::begin(options.log.as_deref())?;
        serve(args, &options, Some(child))?;
    } else if args.foreground {
        serve(args, &options, None)?;
    } else {
        // Also this process must not wait for ever.
        let store = args.store.for_child(options.store_timeout)?;
        return Ok(Outcome::Child(daemon::start(child_arguments(args, store, verbosity))?));
    }
    Ok(Outcome::Done)
}

fn serve(args: &MountArgs, options: &MountOptions, child: Option<Child>) -> Result<(), Failure> {
    let store = StoreArg::at(args.store.location.clone());
    let place = store.place_in(options.store_timeout)?;
    // A daemon that gave up its rights could not take the mount of a share away.
    let _keeper = place.hand_over(Keeper::start)?;
    let opened = place.open(&args.store.location, options.store_timeout)?;
    let store = opened.store();
    let location = store.location().to_owned();
    let path = place.directory().map(Path::to_owned);
    let cache_dir = CacheDir::location();
    if options.disk_cache_bytes_max > 0 && cache_dir.is_none() {
        return Err(no_cache_dir().into());
    }
    let mut keep_away = Vec::new();
    if let Some(path) = &path {
        if let Some(cache_dir) = &cache_dir {
            cache::refuse_inside_store(cache_dir, path)?;
        }
        keep_away.extend([("store", Path::new(&location)), ("store", path)]);
    }
    keep_away.extend(cache_dir.as_deref().map(|dir| ("cache", dir)));
    // Before the store is scanned, which may take a while.
    let mountpoint = mountpoint::check(&args.mountpoint, &keep_away, options.nonempty)?;

    let disk_cache = match (&cache_dir, options.disk_cache_bytes_max) {
        (Some(dir), bytes_max @ 1..) => cache::blocks_if_any(dir, bytes_max)?,
        _ => None,
    };
    let seek_indexes = if options.seek_index { cache::seek_indexes_if_any() } else { None };
    let images = cache::images_if_any(options.seek_index && seek_indexes.is_none());
    let timed = options.store_timeout.map(|timeout| Arc::new(DeadlineStore::new(store.clone(), timeout)));
    if let Some(timed) = &timed {
        timed.arm();
    }
    let catalog = Catalog::open(
        match &timed {
            Some(timed) => timed.clone(),
            None => store.clone(),
        },
        CatalogOptions {
            cache_bytes_max: options.cache_bytes_max,
            restart_points: options.seek_index,
            seek_indexes,
            disk_cache,
            ..CatalogOptions::default()
        },
    )
    .map_err(|error| place.advise(error.into()))?;
    // The process has to have one thread until it is restricted, and nothing below asks the store before that.
    match &timed {
        Some(timed) => timed.disarm()?,
        None => store.rest()?,
    }
    note(&store_note(&catalog.snapshot())?);
    let owner = OwnerOverride { uid: options.uid, gid: options.gid };
    let mut tree = Tree::new(Arc::new(catalog.clone()), owner);
    tree = tree.on_damage(options.on_damage);
    let mut stack_depth = 0;
    if let Some(images) = images {
        // Handing files to the kernel takes a right that is worth nearly all others, so it is kept only where there is a use.
        let is_used = images.keys().is_ok_and(|keys| !keys.is_empty());
        let passthrough = options.passthrough && (is_used || !options.sandbox);
        if passthrough {
            stack_depth = hydrated::stack_depth(images.folder());
        }
        tree = tree.hydrated(Hydrated::new(images, passthrough));
    }
    let of_store = || of_store(place, &opened);
    let needs = options.sandbox.then(of_store).transpose()?;
    let needs = needs.map(|needs| with_cache(needs, cache_dir.as_deref(), stack_depth > 0)).transpose()?;
    if let Some(timed) = &timed {
        timed.arm();
    }
    let fs = CinderFs::new(tree, options.threads()).passthrough(stack_depth);
    let mounted = mount(fs, &location, &mountpoint, options, needs, timed)?;
    let is_background = child.is_some();
    if let Some(child) = child
        && let Err(error) = child.ready()
    {
        mounted.end()?;
        return Err(error.into());
    }
    // An object store frees the space of what is deleted at once, and listing it while nobody looks has its price.
    if matches!(opened, Opened::Directory(_))
        && let Err(error) = catalog.close_deleted_regularly()
    {
        tracing::warn!("deleted backups that were read will keep their space until the unmount: {error}");
    }
    let ended = mounted.serve();
    catalog.keep_indexes();
    match ended? {
        Ended::Unmounted => {}
        // Nobody but the log listens to a background process.
        Ended::Detached(why) if is_background => {
            tracing::warn!("{why}; it is detached, and what is open fails");
        }
        Ended::Detached(why) => note(&format!("cinderfs: {why}; it is detached, and what is open fails\n")),
    }
    Ok(())
}

/// What reading a store takes: its files, and to read what belongs to others; or a network, and the files that renew credentials.
fn of_store(place: &Place, opened: &Opened) -> Result<Needs, Error> {
    let mut needs = Needs::default();
    match opened {
        Opened::Directory(store) => {
            needs.read(store.root()).map_err(unprepared)?;
            needs.capability(CapabilitySet::DAC_READ_SEARCH);
        }
        #[cfg(feature = "remote")]
        Opened::Remote(_) => {
            needs.network();
            let files = place.remote_settings().map(|settings| settings.read_again(&environment));
            for file in files.unwrap_or_default() {
                // Of the places where credentials may be, most are not there.
                if needs.read_at(&file).is_ok() {
                    needs.capability(CapabilitySet::DAC_READ_SEARCH);
                }
            }
        }
    }
    #[cfg(not(feature = "remote"))]
    let _ = place;
    Ok(needs)
}

fn unprepared(error: io::Error) -> Error {
    Error::caused_by(ErrorKind::Target, "cannot prepare to give up what the daemon does not need", error)
}

/// The same with what is kept of the store.
fn with_cache(mut needs: Needs, cache_dir: Option<&Path>, passthrough: bool) -> Result<Needs, Error> {
    let failed = unprepared;
    if passthrough {
        needs.capability(CapabilitySet::SYS_ADMIN);
    }
    let cache_dir = cache_dir.filter(|path| path.is_dir()).and_then(|path| CacheDir::open(path).ok());
    let mut scratch = None;
    if let Some(dir) = &cache_dir {
        // Hydrated images are only read: the kernel hands their bytes out unchecked.
        needs.read_at(dir.path()).map_err(failed)?;
        scratch = dir.scratch().ok();
        for folder in dir.written() {
            needs.write_at(&folder).map_err(failed)?;
        }
    }
    let is_elsewhere = scratch.is_some_and(|scratch| tempfile::env::override_temp_dir(&scratch).is_ok());
    if !is_elsewhere {
        needs.write_at(&tempfile::env::temp_dir()).map_err(failed)?;
    }
    Ok(needs)
}

fn no_cache_dir() -> Error {
    let message = format!("disk_cache needs a cache directory: set {} or HOME", cache_dir::VARIABLE);
    Error::new(ErrorKind::Usage, message)
}

/// The arguments that make the background process do what these ask for.
fn child_arguments(args: &MountArgs, store: OsString, verbosity: i16) -> Vec<OsString> {
    let word = if verbosity < 0 { "-q" } else { "-v" };
    let mut arguments: Vec<OsString> = vec![word.into(); usize::from(verbosity.unsigned_abs())];
    arguments.extend(["mount".into(), "--daemon".into()]);
    for options in &args.options {
        arguments.extend(["-o".into(), options.into()]);
    }
    if args.no_sandbox {
        arguments.push("--no-sandbox".into());
    }
    if let Some(on_damage) = args.on_damage {
        arguments
            .extend(["-o".into(), format!("on_damage={}", image::OnDamage::from(on_damage).name()).into()]);
    }
    // Both may begin with a dash. They are made absolute because the child leaves this working directory.
    arguments.extend(["--".into(), store, absolute(&args.mountpoint)]);
    arguments
}

/// A path from the root, or as it is where that cannot be told.
fn absolute(path: &Path) -> OsString {
    std::path::absolute(path).unwrap_or_else(|_| path.into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        mount: MountArgs,
    }

    fn parse(words: &[&str]) -> MountArgs {
        Cli::try_parse_from(words).unwrap().mount
    }

    #[test]
    fn the_child_gets_the_same_call_with_absolute_paths() {
        let args =
            parse(&["mount", "-o", "ro,uid=1", "src", "-o", "log=l", "--on-damage", "zero", "--", "-mnt"]);
        let cwd = std::env::current_dir().unwrap();
        let expected: Vec<OsString> =
            ["-v", "-v", "mount", "--daemon", "-o", "ro,uid=1", "-o", "log=l", "-o", "on_damage=zero", "--"]
                .into_iter()
                .map(OsString::from)
                .chain([cwd.join("src").into(), cwd.join("-mnt").into()])
                .collect();
        assert_eq!(child_arguments(&args, args.store.for_child(None).unwrap(), 2), expected);
        let again = parse(&expected[2..].iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>());
        assert!(again.daemon && !again.foreground);
        assert_eq!(again.options, [&args.options[..], &["on_damage=zero".to_owned()]].concat());
        assert_eq!(child_arguments(&args, "src".into(), -1)[0], "-q");
    }

    #[test]
    fn wrong_options_are_refused_before_anything_is_started() {
        let failure =
            run(&parse(&["mount", "-o", "cache_sise=1", "/nonexistent", "/nonexistent"]), 0).unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::Usage, "{failure:?}");
    }
}
