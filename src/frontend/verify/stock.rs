//! What lies in the store beside what backups list.
//!
//! Problem: Cinder takes every file that begins with a backup's prefix for one of its objects, and refuses to restore the backup
//! when these are not exactly the objects of its metadata. And objects without metadata take room that nobody sees. Idea: one
//! listing of all names, sorted, against the prefixes of all documents: what begins with a prefix stands behind it.
//!
//! Pure: names and times come from the caller.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use super::findings::{Cinder, Finding, Kind};
use crate::format::names::{METADATA_SUFFIX, Place, SHA256FILE_SUFFIX};
use crate::store::ListedObject;
use crate::store::posix::HIDDEN_FOLDER_PREFIX;
use crate::types::{BackupId, ObjectName};

/// Objects without metadata of which one was written within this time may be of a backup in progress: Cinder writes an object
/// of 2 GB within minutes, a slow store within hours.
const YOUNG: Duration = Duration::from_secs(24 * 3600);

/// Most names in one message.
const SHOWN_MAX: usize = 3;

/// What a backup has in the store.
pub(super) struct Owned {
    pub(super) id: BackupId,
    /// What all its names begin with.
    pub(super) stem: String,
    /// What its objects add to it; `None` where the metadata cannot be read.
    pub(super) suffixes: Option<HashSet<Box<str>>>,
}

/// Names that begin with a backup's stem and are not its own. `names` are sorted, and so are `folders`.
pub(super) fn strays(names: &[ListedObject], folders: &[String], owned: &Owned) -> Option<Finding> {
    let suffixes = owned.suffixes.as_ref()?;
    let own =
        |suffix: &str| [METADATA_SUFFIX, SHA256FILE_SUFFIX].contains(&suffix) || suffixes.contains(suffix);
    let first = folders.partition_point(|name| *name < owned.stem);
    let folders =
        folders[first..].iter().map(String::as_str).take_while(|name| name.starts_with(&owned.stem));
    let folders: Vec<&str> = folders.collect();
    let is_in_a_folder = |name: &&str| {
        folders.iter().any(|folder| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    };
    let mut strays: Vec<&str> = behind(names, &owned.stem)
        .map(|listed| listed.name.as_str())
        .filter(|name| !is_in_a_folder(name))
        .chain(folders.iter().copied())
        .filter(|name| !own(&name[owned.stem.len()..]))
        .collect();
    strays.sort_unstable();
    let first = strays.first()?;
    let message = format!(
        "{}: the backup's prefix, but none of its objects; move away what is not Cinder's",
        some_of(&strays)
    );
    let reason = "it refuses a backup whose files are not its objects";
    Some(Finding::new(Kind::Stray, message, Cinder::No, reason).object(*first).of(&owned.id))
}

fn some_of(names: &[&str]) -> String {
    let mut text: Vec<String> = names.iter().take(SHOWN_MAX).map(|name| format!("{name:?}")).collect();
    if names.len() > SHOWN_MAX {
        text.push(format!("{} more", names.len() - SHOWN_MAX));
    }
    text.join(", ")
}

/// The names that begin with `stem`.
fn behind<'a>(names: &'a [ListedObject], stem: &'a str) -> impl Iterator<Item = &'a ListedObject> {
    let first = names.partition_point(|listed| listed.name.as_str() < stem);
    names[first..].iter().take_while(move |listed| listed.name.as_str().starts_with(stem))
}

/// What the store says of an object.
pub(super) fn find<'a>(names: &'a [ListedObject], name: &ObjectName) -> Option<&'a ListedObject> {
    names.binary_search_by(|listed| listed.name.cmp(name)).ok().map(|index| &names[index])
}

/// Objects and digests whose backup has no metadata: one finding for each.
pub(super) fn orphans(names: &[ListedObject], now: SystemTime) -> Vec<Finding> {
    let stems: HashSet<&str> =
        names.iter().filter_map(|listed| listed.name.as_str().strip_suffix(METADATA_SUFFIX)).collect();
    let mut orphans: BTreeMap<&str, (u64, u64, Option<SystemTime>)> = BTreeMap::new();
    for listed in names {
        let Some(stem) = stem_of(listed.name.as_str()).filter(|stem| !stems.contains(stem)) else { continue };
        let (count, bytes, written) = orphans.entry(stem).or_default();
        *count += 1;
        *bytes += listed.stat.len_bytes;
        *written = (*written).max(listed.stat.modified);
    }
    orphans
        .into_iter()
        .filter(|(stem, _)| looks_like_a_backup(stem))
        .map(|(stem, (count, bytes, written))| {
            let is_young =
                written.is_some_and(|at| now.duration_since(at).is_ok_and(|age| age < YOUNG) || at > now);
            let what =
                format!("{}, {bytes} bytes, that no metadata speaks of", crate::types::count(count, "file"));
            let finding = match is_young {
                true => {
                    let message = format!("{what}; written within a day, so a backup may be in progress");
                    Finding::new(Kind::InProgress, message, Cinder::Unknown, "it is not there yet")
                }
                false => {
                    let message = format!("{what}: left by an interrupted or half-deleted backup");
                    Finding::new(Kind::Orphans, message, Cinder::No, "it finds no metadata")
                }
            };
            let id = format!("{stem}{METADATA_SUFFIX}");
            let place = ObjectName::parse(&id).ok().and_then(|name| Place::of(&name, None)?.ok());
            let id = place.and_then(|place| BackupId::parse(&place.id_by_name()).ok());
            let finding = finding.object(stem);
            match id {
                Some(id) => finding.of(&id),
                None => finding,
            }
        })
        .collect()
}

/// Markers of this program's runs in an object store: one finding for each.
pub(super) fn markers(names: &[ListedObject]) -> Vec<Finding> {
    let finding = |name: &str| {
        let message = "a run of cinderfs writes, repairs or deletes this backup, or was killed: then `delete --leftovers` removes what it left";
        Finding::new(Kind::Leftovers, message, Cinder::Yes, "it does not look for such names").object(name)
    };
    let is_marker =
        |name: &&str| name.rsplit('/').next().is_some_and(|last| last.starts_with(HIDDEN_FOLDER_PREFIX));
    names.iter().map(|listed| listed.name.as_str()).filter(is_marker).map(finding).collect()
}

/// What stands before `-00001` or `_sha256file`.
fn stem_of(name: &str) -> Option<&str> {
    if let Some(stem) = name.strip_suffix(SHA256FILE_SUFFIX) {
        return Some(stem);
    }
    let (stem, digits) = name.rsplit_once('-')?;
    (digits.len() >= 5 && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(stem)
}

/// Other people's files may end in digits; a backup's prefix is one of two.
fn looks_like_a_backup(stem: &str) -> bool {
    let file = stem.rsplit_once('/').map_or(stem, |(_, file)| file);
    file == "backup" || file.contains("_backup_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ObjectStat, ObjectVersion, Ownership};

    fn names(names: &[(&str, u64)]) -> Vec<ListedObject> {
        let mut listed: Vec<_> = names
            .iter()
            .map(|(name, hours)| ListedObject {
                name: ObjectName::parse(name).unwrap(),
                stat: ObjectStat {
                    len_bytes: 7,
                    version: ObjectVersion("1".into()),
                    modified: Some(now() - Duration::from_secs(hours * 3600)),
                    owner: Ownership { mode: 0o600, uid: 0, gid: 0 },
                },
            })
            .collect();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        listed
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn stray(all: &[&str], stem: &str, objects: &[&str]) -> Option<String> {
        let all: Vec<_> = all.iter().map(|name| (*name, 1)).collect();
        let suffixes = Some(objects.iter().map(|suffix| (*suffix).into()).collect());
        let owned = Owned { id: BackupId::parse("b").unwrap(), stem: stem.into(), suffixes };
        strays(&names(&all), &[], &owned).map(|finding| finding.message)
    }

    #[test]
    fn what_begins_with_the_prefix_and_is_no_object_is_a_stray() {
        let own = ["c/p-00001", "c/p_metadata", "c/p_sha256file", "c/notes", "d/p-00009", "c/.p-00001.idx"];
        assert_eq!(stray(&own, "c/p", &["-00001"]), None);
        for name in ["c/p-00001.idx", "c/p-00002", "c/p_metadata2", "c/px/deep", "c/p"] {
            let mut all = own.to_vec();
            all.push(name);
            let message = stray(&all, "c/p", &["-00001"]).unwrap_or_else(|| panic!("{name}"));
            assert!(message.contains(&format!("{name:?}")), "{message}");
        }
        let many = ["p1", "p2", "p3", "p4", "p5"];
        assert!(stray(&many, "p", &[]).unwrap().starts_with("\"p1\", \"p2\", \"p3\", 2 more: "));
    }

    #[test]
    fn markers_of_runs_are_left_over() {
        let listed = names(&[
            (".cinderfs-a", 1),
            ("c/.cinderfs-b", 1),
            ("c/volume_v_1_backup_b-00001", 1),
            ("c/.x", 1),
        ]);
        let found: Vec<_> =
            markers(&listed).into_iter().map(|finding| (finding.kind, finding.object.unwrap())).collect();
        let expected = [".cinderfs-a", "c/.cinderfs-b"];
        assert_eq!(found, expected.map(|name| (Kind::Leftovers, name.to_owned())));
    }

    #[test]
    fn objects_without_metadata_are_young_or_left_over() {
        let listed = names(&[
            ("a/volume_v_1_backup_old-00001", 30),
            ("a/volume_v_1_backup_old-00002", 25),
            ("b/volume_v_1_backup_new-00001", 25),
            ("b/volume_v_1_backup_new_sha256file", 1),
            ("c/volume_v_1_backup_whole-00001", 30),
            ("c/volume_v_1_backup_whole_metadata", 30),
            ("d/photo-20240101", 30),
            ("8d/x/backup-00001", 30),
        ]);
        let found: Vec<_> = orphans(&listed, now())
            .into_iter()
            .map(|finding| (finding.kind, finding.backups[0].to_string(), finding.object.unwrap()))
            .collect();
        assert_eq!(
            found,
            [
                (Kind::Orphans, "x".into(), "8d/x/backup".to_owned()),
                (Kind::Orphans, "old".into(), "a/volume_v_1_backup_old".to_owned()),
                (Kind::InProgress, "new".into(), "b/volume_v_1_backup_new".to_owned()),
            ]
        );
    }
}
