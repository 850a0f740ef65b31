//! Follows `parent_id` from a backup to its full one.
//!
//! Problem: the ids come from documents that anybody may have written, so a chain may have gaps, run in circles, or be
//! endless; and a catalog asks this of every backup at every scan. Idea: resolve all backups at once, each parent before
//! its children, without recursion; a backup is as good as its parent.
//!
//! Invariant: [`resolve_all`] takes time linear in the number of backups, whatever the ids say.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind};
use crate::types::{BackupId, VolumeId};

/// Longest chain accepted, in backups. Cinder's own restore keeps one object list per link in memory; chains of daily
/// incrementals over ten years stay below this.
pub const CHAIN_MAX: u32 = 4096;

/// Begins what is said of a longer one, and of all that build on it.
const TOO_LONG: &str = "the chain is longer than";

/// What resolving needs to know of a backup.
#[derive(Clone, Debug)]
pub struct Link {
    /// The volume that was backed up.
    pub volume_id: VolumeId,
    /// `None` for a full backup.
    pub parent_id: Option<BackupId>,
    /// Why the backup is unusable by itself.
    pub problem: Option<Error>,
}

/// How long each backup's chain is (1 for a full backup), or why it has none. `unreadable` are backups of which no more
/// is known than why.
pub fn resolve_all(
    links: &HashMap<BackupId, Link>,
    unreadable: &HashMap<BackupId, Option<Error>>,
) -> HashMap<BackupId, Result<u32, Error>> {
    let mut resolved: HashMap<BackupId, Result<u32, Error>> = HashMap::with_capacity(links.len());
    for start in links.keys() {
        // Walk up to something known, then come back down.
        let mut path: Vec<&BackupId> = Vec::new();
        let mut on_path: HashMap<&BackupId, usize> = HashMap::new();
        let mut at = start;
        let mut above = loop {
            if let Some(known) = resolved.get(at) {
                break known.clone().map_err(|error| unusable_parent(at, &error));
            }
            if let Some(&first) = on_path.get(at) {
                let circle: Vec<_> = path[first..].iter().take(8).map(|id| id.as_str()).collect();
                let error = broken(format!("the chain runs in a circle: {} -> {at}", circle.join(" -> ")));
                for id in path.drain(first..) {
                    resolved.insert(id.clone(), Err(error.clone()));
                }
                break Err(unusable_parent(at, &error));
            }
            let Some(link) = links.get(at) else {
                break Err(match unreadable.get(at) {
                    Some(Some(error)) => unusable_parent(at, error),
                    _ => broken(format!("the parent backup {at} is not in the store")),
                });
            };
            on_path.insert(at, path.len());
            path.push(at);
            match &link.parent_id {
                None => break Ok(0),
                Some(parent) => at = parent,
            }
        };
        while let Some(id) = path.pop() {
            let result = links.get(id).map_or(Ok(0), |link| own_result(link, links, above));
            resolved.insert(id.clone(), result.clone());
            above = result.map_err(|error| unusable_parent(id, &error));
        }
    }
    resolved
}

/// The result of one backup, given that of its parent (`Ok(0)` where it has none).
fn own_result(link: &Link, links: &HashMap<BackupId, Link>, above: Result<u32, Error>) -> Result<u32, Error> {
    if let Some(problem) = &link.problem {
        return Err(problem.clone());
    }
    let above = above?;
    let parent = link.parent_id.as_ref().and_then(|id| links.get(id).map(|parent| (id, parent)));
    if let Some((id, parent)) = parent
        && parent.volume_id != link.volume_id
    {
        return Err(broken(format!(
            "the parent backup {id} is of volume {}, expected volume {}",
            parent.volume_id, link.volume_id
        )));
    }
    if above >= CHAIN_MAX {
        return Err(Error::new(ErrorKind::LimitExceeded, format!("{TOO_LONG} {CHAIN_MAX} backups")));
    }
    Ok(above + 1)
}

fn broken(message: String) -> Error {
    Error::new(ErrorKind::ChainBroken, message)
}

fn unusable_parent(id: &BackupId, error: &Error) -> Error {
    // One sentence for the whole chain, not one for each link of it.
    let story = error.to_string();
    if story.starts_with("the backup ") || story.starts_with(TOO_LONG) {
        return error.clone();
    }
    broken(format!("the backup {id}, which this one builds on, is unusable: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> BackupId {
        BackupId::parse(id).unwrap()
    }

    fn chain(spec: &[(&str, Option<&str>)]) -> HashMap<BackupId, Link> {
        let link = |parent: Option<&str>| Link {
            volume_id: VolumeId::parse("v").unwrap(),
            parent_id: parent.map(id),
            problem: None,
        };
        spec.iter().map(|(name, parent)| (id(name), link(*parent))).collect()
    }

    fn message(links: &HashMap<BackupId, Link>, name: &str) -> String {
        resolve_all(links, &HashMap::new())[&id(name)].clone().unwrap_err().to_string()
    }

    #[test]
    fn lines_and_trees_resolve() {
        let links = chain(&[("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("a")), ("e", None)]);
        let resolved = resolve_all(&links, &HashMap::new());
        let depth = |name| resolved[&id(name)].clone().unwrap();
        assert_eq!(["a", "b", "c", "d", "e"].map(depth), [1, 2, 3, 2, 1]);
    }

    #[test]
    fn gaps_are_named() {
        let links = chain(&[("b", Some("a")), ("c", Some("b")), ("d", Some("c")), ("e", None)]);
        assert_eq!(message(&links, "b"), "the parent backup a is not in the store");
        for child in ["c", "d"] {
            let expected = "the backup b, which this one builds on, is unusable: the parent backup a is not in the store";
            assert_eq!(message(&links, child), expected);
        }
        assert_eq!(resolve_all(&links, &HashMap::new())[&id("e")].clone().unwrap(), 1);
    }

    #[test]
    fn circles_are_named() {
        let links = chain(&[
            ("a", Some("c")),
            ("b", Some("a")),
            ("c", Some("b")),
            ("d", Some("a")),
            ("s", Some("s")),
        ]);
        for name in ["a", "b", "c", "d", "s"] {
            assert!(message(&links, name).contains("circle"), "{}", message(&links, name));
        }
        assert_eq!(message(&links, "s"), "the chain runs in a circle: s -> s");
    }

    #[test]
    fn foreign_and_endless_chains_are_refused() {
        let mut links = chain(&[("a", None), ("b", Some("a"))]);
        links.get_mut("b").unwrap().volume_id = VolumeId::parse("w").unwrap();
        assert_eq!(message(&links, "b"), "the parent backup a is of volume v, expected volume w");

        let names: Vec<_> = (0..=CHAIN_MAX).map(|i| format!("n{i}")).collect();
        let parent = |i: usize| i.checked_sub(1).map(|i| names[i].as_str());
        let spec: Vec<_> = names.iter().enumerate().map(|(i, name)| (name.as_str(), parent(i))).collect();
        let links = chain(&spec);
        let resolved = resolve_all(&links, &HashMap::new());
        assert_eq!(resolved[&id("n4095")].clone().unwrap(), CHAIN_MAX);
        assert_eq!(resolved[&id("n4096")].clone().unwrap_err().kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn a_backups_own_problem_comes_first() {
        let mut links = chain(&[("a", None), ("b", Some("a"))]);
        links.get_mut("a").unwrap().problem = Some(Error::new(ErrorKind::Malformed, "torn"));
        assert_eq!(message(&links, "a"), "torn");
        assert_eq!(message(&links, "b"), "the backup a, which this one builds on, is unusable: torn");
        links.get_mut("a").unwrap().problem = Some(Error::new(ErrorKind::LimitExceeded, "deep"));
        assert_eq!(message(&links, "b"), "the backup a, which this one builds on, is unusable: deep");
    }
}
