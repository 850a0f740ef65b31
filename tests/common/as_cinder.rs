//! Genuine backups in an object store, under the names that Cinder's own drivers for object stores give.
//!
//! The fixtures were written by the POSIX driver. The others write the same bytes, but call their objects
//! `volume_<volume>/<time>/az_<zone>_backup_<backup>-00001` and so on, and the metadata names each of them.

use std::fs;
use std::path::{Path, PathBuf};

use super::genuine::Genuine;
use super::servers::Bucket;

/// The availability zone in the names, with a character that URLs do not have.
pub(crate) const ZONE: &str = "nova 1";

/// An object to be: its name in the bucket and the file with its bytes.
pub(crate) struct Upload {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
}

/// What all names of this backup begin with.
pub(crate) fn prefix(backup: &Genuine) -> String {
    let metadata: serde_json::Value = serde_json::from_str(&text(&file(backup, "_metadata"))).unwrap();
    let digits = metadata["created_at"].as_str().unwrap().bytes().filter(u8::is_ascii_digit).take(14);
    let time = String::from_utf8(digits.collect()).unwrap();
    format!("volume_{}/{time}/az_{ZONE}_backup_{}", backup.volume_id, backup.id)
}

/// The objects of this backup; the metadata, which is another one than the fixture's, is written into `folder`.
pub(crate) fn uploads(backup: &Genuine, folder: &Path) -> Vec<Upload> {
    let new = prefix(backup);
    let mut all = Vec::new();
    for entry in fs::read_dir(backup.store_path().join(&backup.container)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        // A container may hold other backups too.
        let Some(ending) = name.strip_prefix(&backup.prefix) else { continue };
        let mut file = entry.path();
        if ending == "_metadata" {
            let renamed = text(&file).replace(&format!("\"{}-", backup.prefix), &format!("\"{new}-"));
            assert_eq!(renamed.matches(&*new).count() as u64, backup.objects, "{backup}");
            file = folder.join(&backup.id);
            fs::write(&file, renamed).unwrap();
        }
        all.push(Upload { name: format!("{new}{ending}"), file });
    }
    assert_eq!(all.len() as u64, backup.objects + 2, "{backup}");
    all
}

fn file(backup: &Genuine, ending: &str) -> PathBuf {
    backup.store_path().join(&backup.container).join(format!("{}{ending}", backup.prefix))
}

fn text(file: &Path) -> String {
    fs::read_to_string(file).unwrap()
}

/// Puts these backups into a bucket.
pub(crate) fn upload(bucket: &Bucket, backups: &[Genuine]) {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<_> = backups.iter().flat_map(|backup| uploads(backup, folder.path())).collect();
    bucket.upload_all(all.iter().map(|upload| (&*upload.name, &*upload.file)));
}
