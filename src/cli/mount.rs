//! `cinderfs mount`.
//! (placeholder)

use super::exit::Outcome;
use crate::error::{Error, ErrorKind, Result};

/// The words of `mount`.
#[derive(clap::Args, Debug)]
pub struct MountArgs {}

/// Runs `mount`.
pub fn run(_args: MountArgs) -> Result<Outcome> {
    Err(Error::new(ErrorKind::Unsupported, "mount is a placeholder"))
}
