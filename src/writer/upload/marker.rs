//! The sign of a run that writes, repairs or deletes a backup, by which what it leaves is known when it is killed.
//!
//! ```text
//! .cinderfs-<backup id>      in the bucket or container
//! {"cinderfs": 1, "prefix": "volume_…/20240101000000/az_nova_backup_<backup id>", "run": "…", "names": ["-00001", …]}
//! ```
//!
//! Problem: objects without metadata may be a backup that Cinder, or another run of ours, is just writing. Idea: only those whose marker says
//! that they are ours, and that its run is dead, are removed. A run is dead when its process on this machine is gone; or when its marker is older
//! by [`DEAD_AFTER`] than one that was put in just now, both by the store's own clock, since a living run puts its own in again every five
//! minutes. [`RESTARTED_AFTER`] is enough where this machine was started since; but cloned machines have one name. Cinder neither lists nor deletes a name that begins with a dot: it looks for prefixes only.
//!
//! What is done for a dead run is the same whether it wrote, repaired or deleted: with its metadata a backup is whole, and only the marker goes;
//! without, there is no backup, and its objects go; the marker of a repair tells of none. Who does it first puts a claim of his own in the marker's place, so that a run which lives
//! after all sees it before it publishes, or behind that.
//!
//! Invariants: what a marker says is a claim; names are removed only that begin with a prefix which nobody but the backup of the marker's own
//! name can have, and that are an object's or the digests'.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::crew::BEAT_EVERY;
use super::removal;
use crate::error::{Error, ErrorKind, Result};
use crate::format::metadata::OBJECTS_MAX;
use crate::format::names::{METADATA_SUFFIX, SHA256FILE_SUFFIX};
use crate::store::objects::{Content, ObjectStore, Stop};
use crate::store::posix::HIDDEN_FOLDER_PREFIX;
use crate::store::{ListedObject, ObjectSource, SourceReader};
use crate::types::{BackupId, ObjectName};
use crate::writer::delete::files::{is_numbered, names_id};
use crate::writer::snapshot::Maker;
use crate::writer::source::host::Host;

/// From which age on a marker's run is dead, wherever it ran: several times the five minutes after which a living one is seen again.
const DEAD_AFTER: Duration = Duration::from_secs(3600);

/// The same for one of this machine before it was started again: several times what a living run takes to be seen again.
const RESTARTED_AFTER: Duration = Duration::from_secs(4 * BEAT_EVERY.as_secs());

/// How far this machine's clock may be ahead of the store's where nothing was put in just now.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(1800);

/// Longest marker that is read, in bytes: with names for as many objects as there may be.
const MARKER_BYTES_MAX: u64 = 64 << 20;

/// A run's marker.
#[derive(Clone, Debug)]
pub(super) struct Marker {
    name: ObjectName,
    content: Content,
}

/// What a marker says.
struct Claim {
    prefix: String,
    run: String,
    /// What follows the prefix; empty where it is whatever a backup has.
    names: HashSet<String>,
}

impl Marker {
    /// The marker of this run, which writes the backup `id`.
    pub(super) fn new(folder: &str, prefix: &str, id: &BackupId) -> Result<Self> {
        let claim = json!({"cinderfs": 1, "prefix": prefix, "run": run()});
        let name = ObjectName::parse(&format!("{folder}{HIDDEN_FOLDER_PREFIX}{id}"))?;
        Ok(Self { name, content: Content::of(claim.to_string()) })
    }

    /// The marker of this run, which deletes the backup `id`, whose names are these behind the prefix.
    pub(super) fn of_deletion(folder: &str, prefix: &str, id: &BackupId, names: &[&str]) -> Result<Self> {
        let Self { name, .. } = Self::new(folder, prefix, id)?;
        let claim = json!({"cinderfs": 1, "prefix": prefix, "run": run(), "names": names});
        Ok(Self { name, content: Content::of(claim.to_string()) })
    }

    /// The marker of this run, which repairs the backup `id`. What it names no run ever removes. The prefix is one that Cinder would give:
    /// the backup's own need not hold the id, and such a claim nobody believes.
    pub(super) fn of_repair(folder: &str, id: &BackupId) -> Result<Self> {
        Self::of_deletion(folder, &format!("cinderfs_backup_{id}"), id, &[METADATA_SUFFIX])
    }

    pub(super) fn name(&self) -> &ObjectName {
        &self.name
    }

    /// What to say where [`is_free`] says that it is not.
    pub(super) fn taken(&self, id: &BackupId) -> String {
        let (name, minutes) = (&self.name, DEAD_AFTER.as_secs() / 60);
        format!(
            "another run writes, repairs or deletes backup {id}, or died elsewhere less than {minutes} minutes ago: its marker is {name:?}"
        )
    }

    /// Takes it out, or leaves that to the next run.
    pub(super) fn remove(&self, store: &dyn ObjectStore) {
        if let Err(error) = store.remove(&self.name, &|| false) {
            tracing::warn!("the marker {:?} stays until the next run: {error}", self.name);
        }
    }

    pub(super) fn put(&self, store: &dyn ObjectStore, stop: Stop<'_>) -> Result<()> {
        store.put(&self.name, &self.content, stop).map(drop)
    }

    /// Puts it in again, unless another run took this one for dead. What else fails is told to the log.
    pub(super) fn put_again(&self, store: &dyn ObjectStore, stop: Stop<'_>) -> Result<()> {
        let again = match self.check(store) {
            Err(error) if error.kind() == ErrorKind::Target => return Err(error),
            checked => checked.and_then(|()| self.put(store, stop)),
        };
        again.unwrap_or_else(|error| tracing::warn!("the marker could not be put in again: {error}"));
        Ok(())
    }

    /// [`ErrorKind::Target`] when the marker is not there, or another run's.
    pub(super) fn check(&self, store: &dyn ObjectStore) -> Result<()> {
        if self.is_there(store)? {
            return Ok(());
        }
        let message = format!("another run took this one for dead, and {:?} with it", self.name);
        Err(Error::new(ErrorKind::Target, message))
    }

    /// Whether the store has it with these bytes: versions of some stores are new each time it is put in.
    pub(super) fn is_there(&self, store: &dyn ObjectStore) -> Result<bool> {
        let source = match store.open(&self.name) {
            Err(error) if error.kind() == ErrorKind::ObjectNotFound => return Ok(false),
            other => other?,
        };
        let len_bytes = self.content.len_bytes();
        if source.stat().len_bytes != len_bytes {
            return Ok(false);
        }
        let mut ours = vec![0; len_bytes as usize];
        self.content.read_exact_at(&mut ours, 0)?;
        Ok(read(&*source, &self.name)? == ours)
    }
}

/// What a marker's object holds, or the beginning of it.
fn read(source: &dyn ObjectSource, name: &ObjectName) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = std::io::Read::take(SourceReader::new(source, 0), MARKER_BYTES_MAX + 1);
    std::io::Read::read_to_end(&mut reader, &mut bytes)
        .map_err(|error| Error::caused_by(ErrorKind::StoreIo, format!("cannot read {name:?}"), error))?;
    Ok(bytes)
}

/// This process; nothing where it cannot be told, and age alone says when it is dead.
fn run() -> String {
    Maker::new(&Host::default()).map(|maker| maker.name()).unwrap_or_default()
}

impl Claim {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let told: Value = serde_json::from_slice(bytes).ok()?;
        if told["cinderfs"] != 1 {
            return None;
        }
        let names = match &told["names"] {
            Value::Null => HashSet::new(),
            names => names
                .as_array()?
                .iter()
                .map(|name| name.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
        };
        let text = |key: &str| told[key].as_str().map(str::to_owned);
        Some(Self { prefix: text("prefix")?, run: text("run").unwrap_or_default(), names })
    }

    /// The marker of this run, which removes what the claim's left.
    fn taken_over(&self, name: &ObjectName) -> Marker {
        let Self { prefix, run: dead, names } = self;
        let mut claim = json!({"cinderfs": 1, "prefix": prefix, "run": run(), "instead_of": dead});
        if !names.is_empty() {
            claim["names"] = json!(names);
        }
        Marker { name: name.clone(), content: Content::of(claim.to_string()) }
    }

    /// Whether the prefix is one that nobody but this backup has.
    fn is_of(&self, id: &BackupId) -> bool {
        let (folder, prefix) = self.prefix.rsplit_once('/').unwrap_or(("", &self.prefix));
        !prefix.is_empty() && names_id(folder, prefix, id)
    }

    /// Whether a name's rest is one that this run may have left.
    fn has(&self, suffix: &str) -> bool {
        let is_told = self.names.is_empty() || self.names.contains(suffix);
        is_told && (is_numbered(suffix) || suffix == SHA256FILE_SUFFIX)
    }
}

/// Removes what dead runs left in `folder`, and their markers; how many they were. `ours` was put in just now. What cannot be removed is told
/// to the log.
pub(super) fn remove_dead(
    store: &Arc<dyn ObjectStore>,
    folder: &str,
    ours: Option<&Marker>,
    stop: Stop<'_>,
) -> Result<u64> {
    let begin = format!("{folder}{HIDDEN_FOLDER_PREFIX}");
    let markers = match store.list_below(&begin, stop) {
        // Anybody may put in such a name, and nobody's backup is to fail for it.
        Err(error) if error.kind() == ErrorKind::UnsafeName => {
            tracing::warn!("what dead runs left stays: {error}");
            return Ok(0);
        }
        markers => markers?,
    };
    let is_ours = |listed: &ListedObject| ours.is_some_and(|ours| listed.name == ours.name);
    let now = markers.iter().find(|listed| is_ours(listed)).and_then(|listed| listed.stat.modified);
    let mut removed = 0;
    for listed in markers.iter().filter(|listed| !is_ours(listed)) {
        let Some(Ok(id)) = listed.name.as_str().strip_prefix(&begin).map(BackupId::parse) else { continue };
        match remove_one(store, folder, &id, listed, now, stop) {
            Ok(is_removed) => removed += u64::from(is_removed),
            Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
            Err(error) => tracing::warn!("what a dead run left of backup {id} stays: {error}"),
        }
    }
    Ok(removed)
}

/// The container, with a slash, and the rest of a name; the container is empty where the store is one.
pub(super) fn parted<'n>(store: &dyn ObjectStore, name: &'n str) -> (&'n str, &'n str) {
    let container = name.find('/').filter(|_| store.has_containers());
    name.split_at(container.map_or(0, |slash| slash + 1))
}

/// Whether no living run has put in a marker of this name; what a dead one left is removed.
pub(super) fn is_free(store: &Arc<dyn ObjectStore>, folder: &str, name: &ObjectName) -> Result<bool> {
    match store.version_of(name) {
        Ok(_) => remove_if_dead(store, folder, name),
        Err(error) if error.kind() == ErrorKind::ObjectNotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Removes what a run left whose marker this is, if it is dead for sure; whether it was.
fn remove_if_dead(store: &Arc<dyn ObjectStore>, folder: &str, name: &ObjectName) -> Result<bool> {
    let begin = format!("{folder}{HIDDEN_FOLDER_PREFIX}");
    let Some(Ok(id)) = name.as_str().strip_prefix(&begin).map(BackupId::parse) else { return Ok(false) };
    let listed = store.list_below(name.as_str(), &|| false)?;
    match listed.iter().find(|listed| listed.name == *name) {
        Some(listed) => {
            let now = SystemTime::now().checked_sub(CLOCKS_APART_MAX);
            remove_one(store, folder, &id, listed, now, &|| false)
        }
        None => Ok(true),
    }
}

fn remove_one(
    store: &Arc<dyn ObjectStore>,
    folder: &str,
    id: &BackupId,
    listed: &ListedObject,
    now: Option<SystemTime>,
    stop: Stop<'_>,
) -> Result<bool> {
    let source = match store.open(&listed.name) {
        Err(error) if error.kind() == ErrorKind::ObjectNotFound => return Ok(false),
        other => other?,
    };
    let bytes = read(&*source, &listed.name)?;
    let is_readable = bytes.len() as u64 <= MARKER_BYTES_MAX;
    let Some(claim) = Claim::parse(&bytes)
        .filter(|claim| is_readable && claim.names.len() as u64 <= OBJECTS_MAX + 1 && claim.is_of(id))
    else {
        tracing::warn!("{:?} is no marker of this program's, and stays", listed.name);
        return Ok(false);
    };
    let age = now.zip(listed.stat.modified).and_then(|(now, then)| now.duration_since(then).ok());
    let (maker, host) = (Maker::parse(&claim.run), Host::default());
    let dead_after = match maker {
        Some(maker) if maker.is_gone(&host) => Duration::ZERO,
        Some(maker) if maker.is_of_other_start(&host) => RESTARTED_AFTER,
        _ => DEAD_AFTER,
    };
    if !dead_after.is_zero() && age.is_none_or(|age| age < dead_after) {
        return Ok(false);
    }
    let ours = claim.taken_over(&listed.name);
    ours.put(&**store, stop)?;
    let whole_prefix = format!("{folder}{}", claim.prefix);
    let found = store.list_below(&whole_prefix, stop)?;
    let suffix = |listed: &ListedObject| listed.name.as_str().strip_prefix(&whole_prefix).map(str::to_owned);
    // Listings of Swift may be behind.
    let metadata = ObjectName::parse(&format!("{whole_prefix}{METADATA_SUFFIX}"))?;
    let has_metadata = match store.version_of(&metadata) {
        Err(error) if error.kind() == ErrorKind::ObjectNotFound => {
            found.iter().any(|listed| listed.name == metadata)
        }
        other => other.map(|_| true)?,
    };
    // It lives after all, or a third run was faster.
    if !ours.is_there(&**store)? {
        return Ok(false);
    }
    if !has_metadata {
        let of_run = |listed: &&ListedObject| suffix(listed).is_some_and(|suffix| claim.has(&suffix));
        let names: Vec<_> = found.iter().filter(of_run).map(|listed| listed.name.clone()).collect();
        tracing::info!("a run that is dead left {} objects of backup {id}; they are removed", names.len());
        removal::remove_all(&**store, &names, stop)?;
    }
    store.remove(&listed.name, stop)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_holds_for_names_of_its_own_id_or_that_it_lists() {
        let id = BackupId::parse("b-1").unwrap();
        let claim = |text: &str| Claim::parse(text.as_bytes()).unwrap();
        let named = claim(r#"{"cinderfs": 1, "prefix": "volume_v/2024/az_n_backup_b-1"}"#);
        assert!(named.is_of(&id) && claim(r#"{"cinderfs": 1, "prefix": "b-/1/b-1/backup"}"#).is_of(&id));
        assert!(named.has("-00001") && named.has("_sha256file") && named.has("-100000"));
        for other in ["_metadata", "", "-0001", "-00001x", "0-00001", "/x"] {
            assert!(!named.has(other), "{other}");
            let telling = json!({"cinderfs": 1, "prefix": "x_backup_b-1", "names": [other]});
            assert!(!claim(&telling.to_string()).has(other), "{other}");
        }
        for prefix in ["backup", "", "volume_v/2024/az_n_backup_b-2", "b-1", "x_backup_xb-1", "b-1/"] {
            let telling = json!({"cinderfs": 1, "prefix": prefix, "names": ["-00001"]});
            assert!(!claim(&telling.to_string()).is_of(&id), "{prefix}");
        }
        let telling = claim(r#"{"cinderfs": 1, "prefix": "x_backup_b-1", "names": ["-00001"]}"#);
        assert!(telling.has("-00001") && !telling.has("-00002"));
        let repair = Marker::of_repair("", &id).unwrap();
        let mut bytes = vec![0; repair.content.len_bytes() as usize];
        repair.content.read_exact_at(&mut bytes, 0).unwrap();
        let repair = Claim::parse(&bytes).unwrap();
        assert!(
            repair.is_of(&id) && !["-00001", "_sha256file", "_metadata"].iter().any(|name| repair.has(name))
        );
        for wrong in ["", "[]", "{}", r#"{"cinderfs": 2, "prefix": "x"}"#, r#"{"cinderfs": 1, "prefix": 1}"#]
        {
            assert!(Claim::parse(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }
}
