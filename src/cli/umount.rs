//! `cinderfs umount`.
//! (placeholder)

use super::exit::Outcome;
use crate::error::{Error, ErrorKind, Result};

/// The words of `umount`.
#[derive(clap::Args, Debug)]
pub struct UmountArgs {}

/// Runs `umount`.
pub fn run(_args: UmountArgs) -> Result<Outcome> {
    Err(Error::new(ErrorKind::Unsupported, "umount is a placeholder"))
}
