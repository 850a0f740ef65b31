//! Folders of a store that is a directory, which no listing of objects shows.

use std::collections::BTreeSet;
use std::path::Path;

use super::findings::{Cinder, Finding, Kind};
use crate::store::posix::HIDDEN_FOLDER_PREFIX;

/// Hidden folders of this program in a store's root, which no listing shows.
pub(super) fn leftovers(root: &Path) -> Vec<Finding> {
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| name.starts_with(HIDDEN_FOLDER_PREFIX));
    names.sort();
    let finding = |name: String| {
        let message =
            "a run of cinderfs is writing there, or was killed: then `delete --leftovers` removes it";
        Finding::new(Kind::Leftovers, message, Cinder::Yes, "it does not see hidden folders").object(name)
    };
    names.into_iter().map(finding).collect()
}

/// The folders in these containers, relative to the root and sorted. Cinder takes one whose name begins with a backup's prefix for
/// an object.
pub(super) fn within<'a>(root: &Path, containers: impl Iterator<Item = &'a str>) -> Vec<String> {
    let containers: BTreeSet<&str> = containers.collect();
    let mut found = Vec::new();
    for container in containers {
        let Ok(entries) = std::fs::read_dir(root.join(container)) else { continue };
        let folders = entries.filter_map(|entry| {
            let entry = entry.ok().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))?;
            entry.file_name().into_string().ok()
        });
        let slash = if container.is_empty() { "" } else { "/" };
        found.extend(folders.map(|folder| format!("{container}{slash}{folder}")));
    }
    found.sort();
    found
}
