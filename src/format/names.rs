//! Names of objects, and where a backup's container begins.
//!
//! Problem: the path of a `_metadata` document mixes container and prefix, both may hold slashes, and two namings are in
//! the wild. A pattern that recognises "the usual" names fails on the others. Idea: never guess from a pattern. The
//! prefix is what precedes `_metadata`; how much of that path is container follows from the names in `objects`, which
//! are relative to the container.
//!
//! Invariant: whatever the metadata says, an object's name in the store begins with the path of its own `_metadata`
//! document less the suffix. So a document can neither name other backups' objects nor anything outside its container.

use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// Ends the name of the document that makes a backup.
pub const METADATA_SUFFIX: &str = "_metadata";

/// Ends the name of the document with the digests.
pub const SHA256FILE_SUFFIX: &str = "_sha256file";

/// Where a backup lies in its store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// `<container>/<prefix>`: begins the name of everything that belongs to the backup, relative to the store's root.
    stem: String,
    /// How many bytes of the stem are the container and its slash.
    prefix_at: usize,
    /// What object names have before the stem, when the store's root lies inside the container.
    above: String,
}

impl Place {
    /// The place of the backup that `metadata_name` describes; `first_object` is the first name in its `objects`.
    ///
    /// `None` when the name is not `<something>_metadata`. An object that does not begin with the backup's prefix is
    /// [`ErrorKind::UnsafeName`]: genuine Cinder refuses such a backup too.
    pub fn of(metadata_name: &ObjectName, first_object: Option<&str>) -> Option<Result<Self>> {
        let stem = metadata_name.as_str().strip_suffix(METADATA_SUFFIX)?;
        if stem.is_empty() || stem.ends_with('/') {
            return None;
        }
        let place = |prefix_at, above: &str| Self { stem: stem.into(), prefix_at, above: above.into() };
        let Some(object) = first_object else {
            return Some(Ok(place(prefix_start_by_shape(stem), "")));
        };
        // The longest tail of the stem that the object's name begins with is the prefix; what precedes it, the container.
        let starts = std::iter::once(0).chain(stem.match_indices('/').map(|(slash, _)| slash + 1));
        for start in starts {
            if object.len() > stem.len() - start && object.starts_with(&stem[start..]) {
                return Some(Ok(place(start, "")));
            }
        }
        // Or the store's root is a folder inside the container, and the names say more than we see.
        if let Some(at) = object.find(&format!("/{stem}")) {
            return Some(Ok(place(0, &object[..=at])));
        }
        let shown: String = object.chars().take(128).collect();
        Some(Err(Error::new(
            ErrorKind::UnsafeName,
            format!("object name {shown:?} does not begin with the backup's prefix {:?}", file_name(stem)),
        )))
    }

    /// The container, relative to the store's root; empty when the root is the container.
    pub fn container(&self) -> &str {
        self.stem[..self.prefix_at].trim_end_matches('/')
    }

    /// What every object's name begins with, relative to the container.
    pub fn prefix(&self) -> &str {
        &self.stem[self.prefix_at..]
    }

    /// What an object's name adds to the backup's prefix (`-00001`); [`ErrorKind::UnsafeName`] when it does not begin
    /// with the prefix, or could not be joined to it.
    pub fn object_suffix<'a>(&self, object: &'a str) -> Result<&'a str> {
        let suffix = object
            .strip_prefix(self.above.as_str())
            .and_then(|name| name.strip_prefix(self.prefix()))
            .filter(|suffix| !suffix.is_empty());
        let Some(suffix) = suffix else {
            let shown: String = object.chars().take(128).collect();
            return Err(Error::new(
                ErrorKind::UnsafeName,
                format!("object name {shown:?} does not begin with the backup's prefix {:?}", self.prefix()),
            ));
        };
        self.name(suffix)?;
        Ok(suffix)
    }

    /// The store's name of something that belongs to the backup: `-00001`, [`SHA256FILE_SUFFIX`], ….
    pub fn name(&self, suffix: &str) -> Result<ObjectName> {
        ObjectName::parse(&format!("{}{suffix}", self.stem))
    }

    /// The best guess of the backup's id from the path alone, for a backup whose metadata cannot be read: what follows
    /// `_backup_`, else the container's last folder (where old Cinder put the id), else the path itself.
    pub fn id_by_name(&self) -> String {
        let file = file_name(&self.stem);
        let named = file.rsplit_once("_backup_").map(|(_, id)| id).filter(|id| !id.is_empty());
        let folder = || self.stem.rsplit_once('/').map(|(folder, _)| file_name(folder));
        let guess = named.or_else(folder).unwrap_or(file);
        let safe: String = guess
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' })
            .take(128)
            .collect();
        match safe.strip_prefix('.') {
            Some(rest) => format!("_{rest}"),
            None => safe,
        }
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Without an object to go by (an incremental without change), the shape of the object stores' names decides:
/// `volume_<volume>/<time>/az_<az>_backup_<id>`; otherwise the file's name is the prefix.
fn prefix_start_by_shape(stem: &str) -> usize {
    let mut starts = stem.rmatch_indices('/').map(|(slash, _)| slash + 1).chain([0]);
    let file = starts.next().unwrap_or(0);
    let (Some(time), Some(volume)) = (starts.next(), starts.next()) else { return file };
    let is_time = |s: &str| s.len() == 14 && s.bytes().all(|b| b.is_ascii_digit());
    let pseudo_path = stem[file..].starts_with("az_")
        && stem[file..].contains("_backup_")
        && is_time(&stem[time..file - 1])
        && stem[volume..].starts_with("volume_");
    if pseudo_path { volume } else { file }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(metadata: &str, object: Option<&str>) -> Result<Place> {
        Place::of(&ObjectName::parse(metadata).unwrap(), object).unwrap()
    }

    #[test]
    fn both_namings_and_copied_buckets() {
        let cases = [
            ("8d/87/8d87/backup_metadata", Some("backup-00001"), "8d/87/8d87", "backup"),
            (
                "team/one/volume_v_2024_backup_b_metadata",
                Some("volume_v_2024_backup_b-00001"),
                "team/one",
                "volume_v_2024_backup_b",
            ),
            (
                "volume_v_2024_backup_b_metadata",
                Some("volume_v_2024_backup_b-100000"),
                "",
                "volume_v_2024_backup_b",
            ),
            (
                "bucket/volume_v/20240101000000/az_nova_backup_b_metadata",
                Some("volume_v/20240101000000/az_nova_backup_b-00001"),
                "bucket",
                "volume_v/20240101000000/az_nova_backup_b",
            ),
            (
                "bucket/volume_v/20240101000000/az_nova_backup_b_metadata",
                None,
                "bucket",
                "volume_v/20240101000000/az_nova_backup_b",
            ),
            ("team/one/volume_v_2024_backup_b_metadata", None, "team/one", "volume_v_2024_backup_b"),
            ("backup/backup_metadata", Some("backup-00001"), "backup", "backup"),
        ];
        for (metadata, object, container, prefix) in cases {
            let place = place(metadata, object).unwrap();
            assert_eq!((place.container(), place.prefix()), (container, prefix), "{metadata}");
            if let Some(object) = object {
                let suffix = place.object_suffix(object).unwrap();
                let stem = metadata.strip_suffix("_metadata").unwrap();
                assert_eq!(place.name(suffix).unwrap().as_str(), format!("{stem}{suffix}"));
            }
        }
    }

    #[test]
    fn a_store_inside_its_container() {
        let place = place(
            "20240101000000/az_nova_backup_b_metadata",
            Some("volume_v/20240101000000/az_nova_backup_b-00001"),
        )
        .unwrap();
        let suffix = place.object_suffix("volume_v/20240101000000/az_nova_backup_b-00002").unwrap();
        assert_eq!(place.name(suffix).unwrap().as_str(), "20240101000000/az_nova_backup_b-00002");
        assert!(place.object_suffix("20240101000000/az_nova_backup_b-00002").is_err());
    }

    #[test]
    fn objects_of_others_cannot_be_named() {
        for hostile in ["../../etc/passwd", "/etc/passwd", "other-00001", "backup", ""] {
            let error = place("c/backup_metadata", Some(hostile)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsafeName, "{hostile}");
        }
        let place = place("c/backup_metadata", Some("backup-00001")).unwrap();
        for hostile in
            ["../../etc/passwd", "/etc/passwd", "other-00001", "backup", "", "backup/../../x", "backup-\0"]
        {
            assert_eq!(place.object_suffix(hostile).unwrap_err().kind(), ErrorKind::UnsafeName, "{hostile}");
        }
    }

    #[test]
    fn ids_of_torn_backups_come_from_the_path() {
        let id = |metadata| place(metadata, None).unwrap().id_by_name();
        assert_eq!(id("8d/87/8d87-11/backup_metadata"), "8d87-11");
        assert_eq!(id("team/one/volume_v_2024_backup_b-17_metadata"), "b-17");
        assert_eq!(id("some thing_metadata"), "some_thing");
        assert!(Place::of(&ObjectName::parse("a/_metadata").unwrap(), None).is_none());
        assert!(Place::of(&ObjectName::parse("_metadata").unwrap(), None).is_none());
    }
}
