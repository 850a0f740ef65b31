//! `cinderfs umount MOUNTPOINT`.

use std::path::PathBuf;

use super::exit::{Failure, Outcome};
use crate::frontend::fuse::unmount::unmount;

/// Take a mount away, also one whose daemon has died
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct UmountArgs {
    /// Where the backups are shown
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,

    /// Take it away now, even while it is in use; what is open goes on until it is closed
    #[arg(short = 'l', long)]
    lazy: bool,
}

/// Takes a mount away, also one whose daemon died.
pub(crate) fn run(args: &UmountArgs) -> Result<Outcome, Failure> {
    unmount(&args.mountpoint, args.lazy)?;
    Ok(Outcome::Done)
}
