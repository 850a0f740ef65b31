//! `cinderfs umount MOUNTPOINT`.

use std::path::PathBuf;

use crate::error::Result;
use crate::frontend::fuse::unmount::unmount;

/// Arguments of `cinderfs umount`.
#[derive(clap::Args, Clone, Debug)]
pub struct UmountArgs {
    /// Where the backups are shown
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,

    /// Take it away now, even while it is in use; what is open goes on until it is closed
    #[arg(short = 'l', long)]
    pub lazy: bool,
}

/// Takes a mount away, also one whose daemon died.
pub fn run(args: &UmountArgs) -> Result<()> {
    unmount(&args.mountpoint, args.lazy)
}
