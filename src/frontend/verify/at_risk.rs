//! Chains that Cinder 22 to 28 restore wrongly to a new volume, as a finding; [`risk`] tells which.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::findings::{Cinder, Finding, Kind, Ranges};
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::audit::{Older, risk};
use crate::image::Image;

/// What an image has to fear, if anything. Nothing is said where digests are missing.
pub(super) fn find(image: &Arc<Image>, older: &Older<'_>, cancel: &AtomicBool) -> Result<Option<Finding>> {
    let mut found = Vec::new();
    risk::at_risk(image, older, &mut |range| {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        found.push(range);
        Ok(())
    })?;
    if found.is_empty() {
        return Ok(None);
    }
    let ranges: Ranges = found.into_iter().collect();
    let message = format!(
        "Cinder 22 to 28 restores {} bytes of zeros wrongly to a new volume: the parent's data shows there",
        ranges.bytes()
    );
    let reason = "29.0.0 is right, and so are all onto an existing volume";
    Ok(Some(Finding { ranges, ..Finding::new(Kind::ZeroDefect, message, Cinder::Yes, reason) }))
}
