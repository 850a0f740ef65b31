//! Which backup, which volume: from the words of a command line to one of the store's.
//!
//! Problem: ids are long, names are not unique, and a wrong choice restores the wrong disk.
//! Idea: exact words win over abbreviations, and whenever two things fit equally well nothing is chosen; the error
//! names the candidates.
//!
//! Pure: entries in, an entry out. Whether a backup is usable is the caller's question to the catalog.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::exit::Failure;
use crate::catalog::{Entry, Snapshot};
use crate::error::ErrorKind;
use crate::types::VolumeId;

/// The word for the newest usable backup.
const LATEST: &str = "latest";

/// How many candidates an error names; more would push the message off the screen.
const CANDIDATES_SHOWN_MAX: usize = 8;

/// The backups of a store, newest first; those without a date last, ties by id.
pub(crate) fn newest_first(snapshot: &Snapshot) -> Vec<Arc<Entry>> {
    let mut entries: Vec<Arc<Entry>> = snapshot.entries().cloned().collect();
    entries.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| b.id.cmp(&a.id)));
    entries
}

/// Whether a backup may be the `latest`, by what came of opening its image. Where the store fails nobody knows, and an older backup in its place would
/// be old data that nobody notices: then it may, and who uses it is told.
pub(crate) fn is_usable<T>(opened: &crate::error::Result<T>) -> bool {
    opened.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::StoreIo)
}

/// The backup that `words` name: an id, a unique name, a unique id prefix, `latest` or `VOLUME@latest`.
///
/// `entries` are in the order of [`newest_first`]. With `volume` only backups of that volume count. `usable` is asked
/// for `latest` only, newest first, until it says yes.
pub(crate) fn backup(
    entries: &[Arc<Entry>],
    words: &str,
    volume: Option<&str>,
    usable: &dyn Fn(&Arc<Entry>) -> bool,
) -> Result<Arc<Entry>, Failure> {
    let volume = volume.map(|words| self::volume(entries, words)).transpose()?;
    let ours = |entry: &&Arc<Entry>| volume.is_none() || entry.volume_id == volume;

    if let Some(entry) = entries.iter().filter(ours).find(|entry| entry.id.as_str() == words) {
        return Ok(entry.clone());
    }
    // These words mean what they say even if somebody names a backup so; its id still reaches that one.
    if words == LATEST {
        let volume = match volume {
            Some(volume) => volume,
            None => only_volume(entries)?,
        };
        return latest(entries, &volume, usable);
    }
    if let Some(named) = words.strip_suffix(LATEST).and_then(|rest| rest.strip_suffix('@')) {
        let named = self::volume(entries, named)?;
        if volume.is_some_and(|volume| volume != named) {
            return Err(Failure::new(
                ErrorKind::Usage,
                format!("{words:?} and --volume name different volumes"),
            ));
        }
        return latest(entries, &named, usable);
    }
    if words.is_empty() {
        return Err(Failure::new(ErrorKind::Usage, "BACKUP is empty").hint(LIST_HINT));
    }
    // A name before a prefix: a script that asks for the backup "db" must not fail on the night when an id happens to
    // begin with these letters.
    let named: Vec<&Arc<Entry>> =
        entries.iter().filter(ours).filter(|entry| entry.name.as_deref() == Some(words)).collect();
    let fitting = if named.is_empty() {
        entries.iter().filter(ours).filter(|entry| entry.id.as_str().starts_with(words)).collect()
    } else {
        named
    };
    match fitting.as_slice() {
        [entry] => Ok(Arc::clone(entry)),
        [] => {
            let place = match &volume {
                Some(volume) => format!("of volume {volume}"),
                None => "in the store".to_owned(),
            };
            Err(Failure::new(
                ErrorKind::BackupNotFound,
                format!("no backup {place} has the id or name {words:?}"),
            )
            .hint(LIST_HINT))
        }
        several => Err(Failure::new(
            ErrorKind::Ambiguous,
            format!(
                "{words:?} fits {} backups: {}",
                several.len(),
                candidates(several.iter().map(|entry| describe(entry)))
            ),
        )
        .hint("give more of the id, or --volume")),
    }
}

/// The volume that `words` name: an id, a unique display name, or a unique prefix of an id.
pub(crate) fn volume(entries: &[Arc<Entry>], words: &str) -> Result<VolumeId, Failure> {
    if words.is_empty() {
        return Err(Failure::new(ErrorKind::Usage, "the name of the volume is empty"));
    }
    let volumes = volumes(entries);
    if let Some(volume) = volumes.keys().find(|volume| volume.as_str() == words) {
        return Ok((*volume).clone());
    }
    // A renamed volume is found by each of its names.
    let mut fitting: Vec<&VolumeId> = entries
        .iter()
        .filter(|entry| entry.volume_name.as_deref() == Some(words))
        .filter_map(|entry| entry.volume_id.as_ref())
        .collect();
    fitting.sort();
    fitting.dedup();
    if fitting.is_empty() {
        fitting = volumes.keys().copied().filter(|volume| volume.as_str().starts_with(words)).collect();
    }
    match fitting.as_slice() {
        [volume] => Ok((*volume).clone()),
        [] => Err(Failure::new(
            ErrorKind::BackupNotFound,
            format!("no backup in the store is of a volume with the id or name {words:?}"),
        )
        .hint("`cinderfs list --long STORE` shows the volume of each backup")),
        several => Err(Failure::new(
            ErrorKind::Ambiguous,
            format!("{words:?} fits {} volumes: {}", several.len(), candidates(several.iter())),
        )
        .hint("give the volume's id")),
    }
}

const LIST_HINT: &str = "`cinderfs list STORE` shows what is there";

/// All volumes with the display name of their newest backup that has one.
fn volumes(entries: &[Arc<Entry>]) -> BTreeMap<&VolumeId, Option<&str>> {
    let mut volumes = BTreeMap::new();
    for entry in entries {
        if let Some(id) = &entry.volume_id {
            let name: &mut Option<&str> = volumes.entry(id).or_default();
            *name = name.or(entry.volume_name.as_deref());
        }
    }
    volumes
}

/// The volume, where the store has backups of one only.
fn only_volume(entries: &[Arc<Entry>]) -> Result<VolumeId, Failure> {
    let volumes = volumes(entries);
    let mut ids = volumes.keys();
    match (ids.next(), ids.next()) {
        (Some(only), None) => Ok((*only).clone()),
        (None, _) => Err(Failure::new(ErrorKind::BackupNotFound, "the store holds no readable backup")
            .hint("`cinderfs list STORE` shows what is there, readable or not")),
        (Some(_), Some(_)) => {
            let named = volumes.iter().map(|(id, name)| match name {
                Some(name) => format!("{id} ({name:?})"),
                None => id.to_string(),
            });
            Err(Failure::new(
                ErrorKind::Ambiguous,
                format!("the store holds backups of {} volumes: {}", volumes.len(), candidates(named)),
            )
            .hint("say which with --volume VOLUME or VOLUME@latest"))
        }
    }
}

fn latest(
    entries: &[Arc<Entry>],
    volume: &VolumeId,
    usable: &dyn Fn(&Arc<Entry>) -> bool,
) -> Result<Arc<Entry>, Failure> {
    let ours = || entries.iter().filter(|entry| entry.volume_id.as_ref() == Some(volume));
    if let Some(entry) = ours().find(|entry| entry.problem.is_none() && usable(entry)) {
        return Ok(entry.clone());
    }
    Err(Failure::new(
        ErrorKind::BackupNotFound,
        format!("none of the {} backups of volume {volume} is usable", ours().count()),
    )
    .hint("`cinderfs show STORE BACKUP` tells the reason for each"))
}

fn describe(entry: &Entry) -> String {
    let mut text = entry.id.to_string();
    if let Some(created_at) = entry.created_at {
        text.push_str(&format!(" of {created_at}"));
    }
    if let Some(name) = &entry.name {
        text.push_str(&format!(" named {name:?}"));
    }
    text
}

fn candidates<T: ToString>(all: impl ExactSizeIterator<Item = T>) -> String {
    let more = all.len().saturating_sub(CANDIDATES_SHOWN_MAX);
    let shown: Vec<String> = all.take(CANDIDATES_SHOWN_MAX).map(|one| one.to_string()).collect();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::store::{ObjectStat, ObjectVersion, Ownership};
    use crate::types::{BackupId, ObjectName};

    /// A backup of volume `volume` (empty: unreadable), made on a day of March 2024.
    fn entry(id: &str, volume: &str, volume_name: Option<&str>, day: u8, name: Option<&str>) -> Arc<Entry> {
        Arc::new(Entry {
            id: BackupId::parse(id).unwrap(),
            volume_id: (!volume.is_empty()).then(|| VolumeId::parse(volume).unwrap()),
            parent_id: None,
            created_at: Some(format!("2024-03-{day:02}T01:01:07Z").parse().unwrap()),
            name: name.map(str::to_owned),
            description: None,
            volume_name: volume_name.map(str::to_owned),
            volume_size_gib: None,
            container: String::new(),
            prefix: "backup".into(),
            object_count: 1,
            metadata_name: ObjectName::parse("backup_metadata").unwrap(),
            metadata_stat: ObjectStat {
                len_bytes: 1,
                version: ObjectVersion("1".into()),
                modified: None,
                owner: Ownership { mode: 0o600, uid: 0, gid: 0 },
            },
            problem: volume.is_empty().then(|| Error::new(ErrorKind::Malformed, "torn")),
        })
    }

    /// Two volumes, newest first; "twice" is a name that two backups share, "dead" has no readable metadata.
    fn store() -> Vec<Arc<Entry>> {
        vec![
            entry("dead-9", "", None, 9, None),
            entry("a1b2-5", "vol-1", Some("db"), 5, Some("friday")),
            entry("a1c3-4", "vol-2", Some("www"), 4, Some("twice")),
            entry("db00-3", "vol-1", Some("db"), 3, Some("twice")),
            entry("77aa-2", "vol-1", Some("old name"), 2, Some("a1b2-5")),
            entry("77bb-1", "vol-1", Some("db"), 1, Some("latest")),
        ]
    }

    fn chosen(words: &str, volume: Option<&str>) -> Result<String, (ErrorKind, String)> {
        chosen_of(&store(), words, volume, &|_| true)
    }

    fn chosen_of(
        entries: &[Arc<Entry>],
        words: &str,
        volume: Option<&str>,
        usable: &dyn Fn(&Arc<Entry>) -> bool,
    ) -> Result<String, (ErrorKind, String)> {
        backup(entries, words, volume, usable)
            .map(|entry| entry.id.to_string())
            .map_err(|failure| (failure.error().kind(), failure.error().to_string()))
    }

    fn kind(result: Result<String, (ErrorKind, String)>) -> ErrorKind {
        result.unwrap_err().0
    }

    #[test]
    fn ids_names_and_prefixes() {
        // The whole id wins over another backup's name.
        assert_eq!(chosen("a1b2-5", None).unwrap(), "a1b2-5");
        assert_eq!(chosen("friday", None).unwrap(), "a1b2-5");
        assert_eq!(chosen("a1b", None).unwrap(), "a1b2-5");
        assert_eq!(chosen("dead", None).unwrap(), "dead-9");
        let (kind, message) = chosen("a1", None).unwrap_err();
        assert_eq!(kind, ErrorKind::Ambiguous);
        assert_eq!(
            message,
            "\"a1\" fits 2 backups: a1b2-5 of 2024-03-05T01:01:07Z named \"friday\", \
             a1c3-4 of 2024-03-04T01:01:07Z named \"twice\""
        );
        // A name wins over a prefix.
        let mut with_short_name = store();
        with_short_name.push(entry("ffff-1", "vol-1", None, 1, Some("db")));
        assert_eq!(chosen_of(&with_short_name, "db", None, &|_| true).unwrap(), "ffff-1");
        assert_eq!(chosen_of(&with_short_name, "db0", None, &|_| true).unwrap(), "db00-3");
    }

    #[test]
    fn a_volume_narrows_the_choice() {
        assert_eq!(kind(chosen("twice", None)), ErrorKind::Ambiguous);
        assert_eq!(chosen("twice", Some("vol-2")).unwrap(), "a1c3-4");
        assert_eq!(chosen("twice", Some("db")).unwrap(), "db00-3");
        assert_eq!(chosen("a1", Some("www")).unwrap(), "a1c3-4");
        assert_eq!(
            chosen("friday", Some("www")).unwrap_err(),
            (ErrorKind::BackupNotFound, "no backup of volume vol-2 has the id or name \"friday\"".to_owned())
        );
        assert_eq!(kind(chosen("a1b2-5", Some("www"))), ErrorKind::BackupNotFound);
        assert_eq!(kind(chosen("friday", Some("vol-3"))), ErrorKind::BackupNotFound);
    }

    #[test]
    fn nothing_fits() {
        let failure = backup(&store(), "nightly\x1b", None, &|_| true).unwrap_err();
        assert_eq!(failure.error().kind(), ErrorKind::BackupNotFound);
        assert_eq!(
            failure.error().to_string(),
            "no backup in the store has the id or name \"nightly\\u{1b}\""
        );
        assert_eq!(kind(chosen("", None)), ErrorKind::Usage);
        assert_eq!(kind(chosen("@latest", None)), ErrorKind::Usage);
        assert_eq!(kind(chosen_of(&[], "latest", None, &|_| true)), ErrorKind::BackupNotFound);
        assert_eq!(kind(chosen_of(&store()[..1], "latest", None, &|_| true)), ErrorKind::BackupNotFound);
    }

    #[test]
    fn latest_needs_one_volume() {
        let (kind_found, message) = chosen("latest", None).unwrap_err();
        assert_eq!(kind_found, ErrorKind::Ambiguous);
        assert_eq!(message, "the store holds backups of 2 volumes: vol-1 (\"db\"), vol-2 (\"www\")");
        for (words, volume) in [
            ("latest", Some("vol-1")),
            ("latest", Some("db")),
            ("latest", Some("old name")),
            ("vol-1@latest", None),
            ("db@latest", None),
            ("db@latest", Some("vol-1")),
        ] {
            assert_eq!(chosen(words, volume).unwrap(), "a1b2-5", "{words} {volume:?}");
        }
        assert_eq!(chosen("www@latest", None).unwrap(), "a1c3-4");
        assert_eq!(kind(chosen("www@latest", Some("db"))), ErrorKind::Usage);
        assert_eq!(kind(chosen("vol-@latest", None)), ErrorKind::Ambiguous);
        assert_eq!(kind(chosen("nobody@latest", None)), ErrorKind::BackupNotFound);
        let one_volume: Vec<_> =
            store().into_iter().filter(|entry| entry.volume_name.as_deref() != Some("www")).collect();
        assert_eq!(chosen_of(&one_volume, "latest", None, &|_| true).unwrap(), "a1b2-5");
    }

    #[test]
    fn latest_is_the_newest_usable() {
        let not_friday = |entry: &Arc<Entry>| entry.name.as_deref() != Some("friday");
        assert_eq!(chosen_of(&store(), "db@latest", None, &not_friday).unwrap(), "db00-3");
        assert_eq!(
            chosen_of(&store(), "db@latest", None, &|_| false).unwrap_err(),
            (ErrorKind::BackupNotFound, "none of the 4 backups of volume vol-1 is usable".to_owned())
        );
        let mut broken = Entry::clone(&store()[1]);
        broken.problem = Some(Error::new(ErrorKind::ChainBroken, "no parent"));
        let mut entries = store();
        entries[1] = Arc::new(broken);
        assert_eq!(chosen_of(&entries, "db@latest", None, &|_| true).unwrap(), "db00-3");
    }

    #[test]
    fn volumes_by_id_name_and_prefix() {
        let mut entries = store();
        entries.push(entry("0001", "vol-33", Some("db"), 1, None));
        let found = |words: &str| {
            volume(&entries, words).map(|id| id.to_string()).map_err(|failure| failure.error().kind())
        };
        assert_eq!(found("vol-1"), Ok("vol-1".into()));
        assert_eq!(found("vol-3"), Ok("vol-33".into()));
        assert_eq!(found("www"), Ok("vol-2".into()));
        assert_eq!(found("db"), Err(ErrorKind::Ambiguous));
        assert_eq!(found("vol"), Err(ErrorKind::Ambiguous));
        assert_eq!(found("x"), Err(ErrorKind::BackupNotFound));
    }

    #[test]
    fn an_error_names_a_bounded_number_of_candidates() {
        assert_eq!(
            candidates((0..9).map(|n| n.to_string()).collect::<Vec<_>>().iter()),
            "0, 1, 2, 3, 4, 5, 6, 7 and 1 more"
        );
        assert_eq!(candidates(["a", "b"].iter()), "a, b");
    }
}
