//! `cinderfs umount MOUNTPOINT`.

use std::path::PathBuf;

use super::exit::{Failure, Outcome};
use crate::frontend::fuse::unmount::unmount;
use crate::frontend::fuse::unmounter;

/// Take a mount away, also one whose daemon has died
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct UmountArgs {
    /// Where the backups are shown
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,

    /// Take it away now, even while it is in use; what is open goes on until it is closed
    #[arg(short = 'l', long)]
    lazy: bool,

    /// Serve as the process that unmounts for a daemon, which asks through stdin
    #[arg(long, hide = true)]
    on_request: bool,
}

/// Takes a mount away, also one whose daemon died.
pub(crate) fn run(args: &UmountArgs) -> Result<Outcome, Failure> {
    if args.on_request {
        unmounter::serve(&args.mountpoint)?;
        return Ok(Outcome::Done);
    }
    unmount(&args.mountpoint, args.lazy)?;
    Ok(Outcome::Done)
}
