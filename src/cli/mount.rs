//! `cinderfs mount STORE MOUNTPOINT`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::catalog::{Catalog, CatalogOptions, open_store};
use crate::error::Result;
use crate::frontend::fuse::attr::OwnerOverride;
use crate::frontend::fuse::daemon::{self, Child};
use crate::frontend::fuse::fs::CinderFs;
use crate::frontend::fuse::mount::mount;
use crate::frontend::fuse::mountpoint;
use crate::frontend::fuse::options::MountOptions;
use crate::frontend::fuse::tree::Tree;

/// Where the index cache lies, if the user says so; a mountpoint must keep away from it.
const CACHE_DIR_VARIABLE: &str = "CINDERFS_CACHE_DIR";

/// Arguments of `cinderfs mount`.
#[derive(clap::Args, Clone, Debug)]
pub struct MountArgs {
    /// Directory (or other place) that holds the backups
    #[arg(value_name = "STORE")]
    pub store: PathBuf,

    /// Empty directory to show them at
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,

    /// Mount options: allow_other, allow_root, uid=N, gid=N, cache_size=SIZE, threads=N, log=FILE, nonempty
    #[arg(short = 'o', value_name = "OPTION,...")]
    pub options: Vec<String>,

    /// Stay in the foreground; Ctrl-C unmounts
    #[arg(short = 'f', long)]
    pub foreground: bool,

    /// Serve as the background process of another `cinderfs mount`, which waits at the other end of stdin
    #[arg(long, hide = true)]
    pub daemon: bool,
}

/// Mounts; returns when the mount answers, or in the foreground when it has ended.
///
/// `global_words` are words of the command line that the background process should see too, such as `-v`. Returns the exit
/// code: 0, or that of the background process, which has told its error itself.
pub fn run(args: &MountArgs, global_words: &[OsString]) -> Result<u8> {
    let options = MountOptions::parse(&args.options)?;
    if args.daemon {
        let child = Child::begin(options.log.as_deref())?;
        serve(args, &options, Some(child))?;
    } else if args.foreground {
        serve(args, &options, None)?;
    } else {
        return daemon::start(global_words.iter().cloned().chain(child_arguments(args)));
    }
    Ok(0)
}

fn serve(args: &MountArgs, options: &MountOptions, child: Option<Child>) -> Result<()> {
    let store = open_store(&args.store)?;
    let location = store.location().to_owned();
    let cache_dir = std::env::var_os(CACHE_DIR_VARIABLE).map(PathBuf::from);
    let mut keep_away = vec![("store", Path::new(&location)), ("store", &args.store)];
    keep_away.extend(cache_dir.as_deref().map(|dir| ("cache", dir)));
    // Before the store is scanned, which may take a while.
    let mountpoint = mountpoint::check(&args.mountpoint, &keep_away, options.nonempty)?;

    let catalog = Catalog::open(store, CatalogOptions { cache_bytes_max: options.cache_bytes_max })?;
    let owner = OwnerOverride { uid: options.uid, gid: options.gid };
    let tree = Tree::new(Arc::new(catalog), owner);
    let mounted = mount(CinderFs::new(tree), &location, &mountpoint, options)?;
    if let Some(child) = child
        && let Err(error) = child.ready()
    {
        mounted.end()?;
        return Err(error);
    }
    mounted.serve()
}

/// The arguments that make the background process do what these ask for.
fn child_arguments(args: &MountArgs) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["mount".into(), "--daemon".into()];
    for options in &args.options {
        arguments.extend(["-o".into(), options.into()]);
    }
    // Both may begin with a dash. They are made absolute because the child leaves this working directory.
    arguments.extend(["--".into(), absolute(&args.store), absolute(&args.mountpoint)]);
    arguments
}

/// A path from the root; what is a URL, or cannot be resolved, stays as it is.
fn absolute(path: &Path) -> OsString {
    let is_url = path.to_str().is_some_and(|text| text.contains("://"));
    match std::path::absolute(path) {
        Ok(absolute) if !is_url => absolute.into(),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
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
        let args = parse(&["mount", "-o", "ro,uid=1", "store", "-o", "log=l", "--", "-mnt"]);
        let cwd = std::env::current_dir().unwrap();
        let expected: Vec<OsString> = ["mount", "--daemon", "-o", "ro,uid=1", "-o", "log=l", "--"]
            .into_iter()
            .map(OsString::from)
            .chain([cwd.join("store").into(), cwd.join("-mnt").into()])
            .collect();
        assert_eq!(child_arguments(&args), expected);
        let again = parse(&expected.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>());
        assert!(again.daemon && !again.foreground);
        assert_eq!(again.options, args.options);
        assert_eq!(absolute(Path::new("s3://bucket/x")), "s3://bucket/x");
    }

    #[test]
    fn wrong_options_are_refused_before_anything_is_started() {
        let error =
            run(&parse(&["mount", "-o", "cache_sise=1", "/nonexistent", "/nonexistent"]), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    }
}
