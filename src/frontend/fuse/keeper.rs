//! Who keeps the mount of a share for a daemon, and takes it away behind it.
//!
//! Problem: a daemon that gave up its rights may not unmount the share that it was mounted for, and one that is killed cannot.
//! Idea: a [companion], started before, uses the mount as well until the daemon is gone, however it went, and then
//! takes the mount away if nobody else uses it.

use std::io;
use std::path::Path;

use super::companion::{self, Companion};
use crate::error::{Error, ErrorKind, Result};
use crate::store::share;

/// The process, for as long as this lives.
#[derive(Debug)]
pub struct Keeper(#[expect(dead_code, reason = "ends when this is dropped")] Companion);

impl Keeper {
    /// Starts it for the share that is mounted at `mountpoint`; it uses the mount when this returns.
    pub fn start(mountpoint: &Path) -> Result<Self> {
        let message = "cannot start the process that keeps the share mounted";
        let started = Companion::start("--keep-share", mountpoint);
        started.map(Self).map_err(|error| Error::caused_by(ErrorKind::Target, message, error))
    }
}

/// Is the keeper of the share that is mounted at `mountpoint`, until stdin ends.
pub fn serve(mountpoint: &Path) -> Result<()> {
    let failed =
        |error: io::Error| Error::caused_by(ErrorKind::Target, "the keeper of a share failed", error);
    companion::begin().map_err(failed)?;
    let _share = share::join(mountpoint)?;
    companion::say_ready(&mut io::stdout().lock()).map_err(failed)?;
    io::copy(&mut io::stdin().lock(), &mut io::sink()).map_err(failed)?;
    Ok(())
}
