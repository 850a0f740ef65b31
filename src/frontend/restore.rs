//! An image to a file, a block device or stdout.
//! (interface draft)

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;

/// Where the bytes go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Standard output: no seeking, so holes are written as zeros.
    Stdout,
    /// A file or a block device.
    Path(PathBuf),
}

/// What to do about a block that cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDamage {
    /// Stop with the error.
    Stop,
    /// Write zeros in its place and go on.
    Zero,
}

/// Settings of [`restore`].
#[derive(Clone, Debug)]
pub struct RestoreOptions<'a> {
    /// Overwrite a target that exists.
    pub force: bool,
    /// What to do about damage.
    pub on_damage: OnDamage,
    /// How many threads decode, at least 1.
    pub threads: usize,
    /// Once this is true the restore ends with [`ErrorKind::Interrupted`].
    pub cancel: &'a AtomicBool,
}

/// How far a restore has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Bytes of the image that are done, holes included.
    pub done_bytes: u64,
    /// The image's length.
    pub total_bytes: u64,
    /// How many of `done_bytes` were holes.
    pub hole_bytes: u64,
}

/// What a finished restore did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The image's length.
    pub image_bytes: u64,
    /// Bytes that are not holes.
    pub data_bytes: u64,
    /// Bytes that are holes.
    pub hole_bytes: u64,
    /// Ranges of the image that were replaced by zeros.
    pub damaged: Vec<Range<u64>>,
    /// How many bytes those are.
    pub damaged_bytes: u64,
}

/// Writes `image` to `target`, and tells `observer` how far it is.
pub fn restore(
    _image: &Arc<Image>,
    _target: Target,
    _options: &RestoreOptions<'_>,
    _observer: &dyn Fn(Progress),
) -> Result<Report> {
    Err(Error::new(ErrorKind::Unsupported, "draft"))
}
