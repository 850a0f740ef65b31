//! Follows `parent_id` from a backup to its full one.
//!
//! Problem: the ids come from documents that anybody may have written, so a chain may have gaps, run in circles, or be
//! endless; and a catalog asks this of every backup at every scan. Idea: resolve all backups at once, each parent before
//! its children, without recursion; a backup is as good as its parent.
//!
//! Invariant: [`resolve_all`] takes time linear in the number of backups, whatever the ids say.

use std::collections::HashMap;

use crate::error::{Error, ErrorKind};
use crate::store::Part;
use crate::types::{BackupId, VolumeId};

/// Longest chain accepted, in backups. Cinder's own restore keeps one object list per link in memory; chains of daily
/// incrementals over ten years stay below this.
pub const CHAIN_MAX: u32 = 4096;

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
/// is known than why; where the backups are those of one container, `part` says of what.
pub fn resolve_all(
    links: &HashMap<BackupId, Link>,
    unreadable: &HashMap<BackupId, Option<Error>>,
    part: Option<Part<'_>>,
) -> HashMap<BackupId, Result<u32, Error>> {
    let mut resolved: HashMap<BackupId, Result<u32, Broken>> = HashMap::with_capacity(links.len());
    for start in links.keys() {
        // Walk up to something known, then come back down.
        let mut path: Vec<&BackupId> = Vec::new();
        let mut on_path: HashMap<&BackupId, usize> = HashMap::new();
        let mut at = start;
        let mut above = loop {
            if let Some(known) = resolved.get(at) {
                break known.clone().map_err(|broken| broken.inherited_from(at));
            }
            if let Some(&first) = on_path.get(at) {
                let circle: Vec<_> = path[first..].iter().take(8).map(|id| id.as_str()).collect();
                let message = format!("the chain runs in a circle: {} -> {at}", circle.join(" -> "));
                let broken = Broken::own(Error::new(ErrorKind::ChainBroken, message));
                for id in path.drain(first..) {
                    resolved.insert(id.clone(), Err(broken.clone()));
                }
                break Err(broken.inherited_from(at));
            }
            let Some(link) = links.get(at) else {
                break Err(match unreadable.get(at) {
                    Some(Some(error)) => Broken::own(error.clone()).inherited_from(at),
                    _ => Broken::own(missing(at, part)),
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
            above = result.map_err(|broken| broken.inherited_from(id));
        }
    }
    resolved.into_iter().map(|(id, result)| (id, result.map_err(|broken| broken.error))).collect()
}

fn missing(id: &BackupId, part: Option<Part<'_>>) -> Error {
    match part {
        None => Error::new(ErrorKind::ChainBroken, format!("the parent backup {id} is not in the store")),
        Some(Part { whole, container }) => {
            let message = format!(
                "the parent backup {id} is not in {container:?}; it may lie in another container, which {whole:?} would show"
            );
            Error::new(ErrorKind::OutOfSight, message)
        }
    }
}

/// Why a backup has no chain.
#[derive(Clone)]
struct Broken {
    error: Error,
    /// The message names a backup further up, or holds for the whole chain: it is passed on as it is, so that it stays one
    /// sentence however long the chain.
    is_said: bool,
}

impl Broken {
    /// By the backup's own fault.
    fn own(error: Error) -> Self {
        Self { error, is_said: false }
    }

    /// The same for a backup that builds on `id`.
    fn inherited_from(self, id: &BackupId) -> Self {
        if self.is_said {
            return self;
        }
        let (kind, what) = match self.error.kind() {
            kind @ ErrorKind::OutOfSight => (kind, "cannot be seen whole"),
            // A parent that the store does not give may be whole, and so may this one.
            kind @ (ErrorKind::StoreIo | ErrorKind::StoreNotFound | ErrorKind::AccessDenied) => {
                (kind, "cannot be read")
            }
            _ => (ErrorKind::ChainBroken, "is unusable"),
        };
        let message = format!("the backup {id}, which this one builds on, {what}: {}", self.error);
        Self { error: Error::new(kind, message), is_said: true }
    }
}

/// The result of one backup, given that of its parent (`Ok(0)` where it has none).
fn own_result(
    link: &Link,
    links: &HashMap<BackupId, Link>,
    above: Result<u32, Broken>,
) -> Result<u32, Broken> {
    if let Some(problem) = &link.problem {
        return Err(Broken::own(problem.clone()));
    }
    let above = above?;
    let parent = link.parent_id.as_ref().and_then(|id| links.get(id).map(|parent| (id, parent)));
    if let Some((id, parent)) = parent
        && parent.volume_id != link.volume_id
    {
        let message = format!(
            "the parent backup {id} is of volume {}, expected volume {}",
            parent.volume_id, link.volume_id
        );
        return Err(Broken::own(Error::new(ErrorKind::ChainBroken, message)));
    }
    if above >= CHAIN_MAX {
        let message = format!("the chain is longer than {CHAIN_MAX} backups");
        return Err(Broken { error: Error::new(ErrorKind::LimitExceeded, message), is_said: true });
    }
    Ok(above + 1)
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
        resolve_all(links, &HashMap::new(), None)[&id(name)].clone().unwrap_err().to_string()
    }

    #[test]
    fn lines_and_trees_resolve() {
        let links = chain(&[("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("a")), ("e", None)]);
        let resolved = resolve_all(&links, &HashMap::new(), None);
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
        assert_eq!(resolve_all(&links, &HashMap::new(), None)[&id("e")].clone().unwrap(), 1);
    }

    #[test]
    fn what_one_container_lacks_may_be_elsewhere() {
        let links = chain(&[("b", Some("a")), ("c", Some("b"))]);
        let part = Some(Part { whole: "swift:", container: "c1" });
        let resolved = resolve_all(&links, &HashMap::new(), part);
        for name in ["b", "c"] {
            let error = resolved[&id(name)].clone().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfSight);
            assert!(error.to_string().contains("a is not in \"c1\"; it may lie"), "{error}");
        }
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
        let resolved = resolve_all(&links, &HashMap::new(), None);
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
