//! A genuine store, known without the library.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::plain;
use crate::genuine::{self, Genuine};

/// What a file is to a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Metadata,
    Digests,
    Object,
}

/// One file of a backup.
pub(crate) struct File {
    /// Relative to the store.
    pub(crate) name: String,
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) kind: Kind,
    /// Which backup it belongs to.
    pub(crate) backup: usize,
}

/// One data object.
pub(crate) struct Object {
    /// Index in [`Store::files`].
    pub(crate) file: usize,
    pub(crate) compression: String,
    pub(crate) offset: u64,
    /// Its plain bytes.
    pub(crate) plain: Vec<u8>,
}

pub(crate) struct Backup {
    pub(crate) id: String,
    /// Its indices in [`Store::backups`]: the full backup first, this one last.
    pub(crate) chain: Vec<usize>,
    pub(crate) objects: Vec<Object>,
    pub(crate) block_bytes: u64,
    /// As the document has them.
    pub(crate) digests: Vec<String>,
    /// The true image.
    pub(crate) image: Vec<u8>,
    /// Which bytes of the image come from which object (backup, object, offset in it); sorted, disjoint.
    pub(crate) pieces: Vec<(Range<u64>, usize, usize, u64)>,
}

pub(crate) struct Store {
    pub(crate) name: String,
    pub(crate) files: Vec<File>,
    pub(crate) backups: Vec<Backup>,
}

impl Store {
    /// Reads it, and composes every image; each is compared with what Cinder had backed up.
    pub(crate) fn read(name: &str) -> Self {
        let genuine = genuine::backups_of(name);
        let mut store = Self { name: name.to_owned(), files: Vec::new(), backups: Vec::new() };
        for (index, backup) in genuine.iter().enumerate() {
            store.add(backup, index, &genuine);
        }
        store
    }

    fn add(&mut self, backup: &Genuine, index: usize, all: &[Genuine]) {
        let by_name = files_of(backup);
        let first = self.files.len();
        let mut document = Value::Null;
        let mut digests = Value::Null;
        for (name, bytes) in &by_name {
            let kind = match name {
                name if name.ends_with("_metadata") => {
                    document = serde_json::from_slice(bytes).unwrap();
                    Kind::Metadata
                }
                name if name.ends_with("_sha256file") => {
                    digests = serde_json::from_slice(bytes).unwrap();
                    Kind::Digests
                }
                _ => Kind::Object,
            };
            self.files.push(File { name: name.clone(), bytes: bytes[..].into(), kind, backup: index });
        }
        let objects = document["objects"].as_array().unwrap().iter().map(|entry| {
            let (name, entry) = entry.as_object().unwrap().iter().next().unwrap();
            let path = join(&backup.container, name);
            let file = first + self.files[first..].iter().position(|file| file.name == path).unwrap();
            let compression = entry["compression"].as_str().unwrap().to_owned();
            let length = entry["length"].as_u64().unwrap() as usize;
            let plain = plain::decode(&compression, &self.files[file].bytes, length);
            assert_eq!(plain.len(), length, "{path} of {backup}");
            Object { file, compression, offset: entry["offset"].as_u64().unwrap(), plain }
        });
        let objects: Vec<_> = objects.collect();
        let mut chain = match &backup.parent_id {
            Some(id) => self.backups[all.iter().position(|other| other.id == *id).unwrap()].chain.clone(),
            None => Vec::new(),
        };
        chain.push(index);
        let block_bytes = digests["chunk_size"].as_u64().unwrap();
        let id = backup.id.clone();
        let image = vec![0; backup.bytes as usize];
        let digests =
            digests["sha256s"].as_array().unwrap().iter().map(|digest| digest.as_str().unwrap().into());
        let digests = digests.collect();
        self.backups.push(Backup { id, chain, objects, block_bytes, digests, image, pieces: Vec::new() });
        self.compose(index);
        backup.check("composed by the model", &self.backups[index].image);
    }

    /// Paints the chain's objects over each other.
    fn compose(&mut self, index: usize) {
        let mut image = std::mem::take(&mut self.backups[index].image);
        let mut pieces: Vec<(Range<u64>, usize, usize, u64)> = Vec::new();
        for &layer in &self.backups[index].chain {
            for (number, object) in self.backups[layer].objects.iter().enumerate() {
                let end = (object.offset + object.plain.len() as u64).min(image.len() as u64);
                let new = object.offset..end.max(object.offset);
                pieces = pieces.into_iter().flat_map(|piece| cut(piece, &new)).collect();
                if !new.is_empty() {
                    let plain = &object.plain[..(new.end - new.start) as usize];
                    image[new.start as usize..new.end as usize].copy_from_slice(plain);
                    pieces.push((new, layer, number, 0));
                }
            }
        }
        pieces.sort_by_key(|piece| piece.0.start);
        self.backups[index].image = image;
        self.backups[index].pieces = pieces;
    }
}

/// What is left of a piece when `new` is painted over it.
fn cut(piece: (Range<u64>, usize, usize, u64), new: &Range<u64>) -> Vec<(Range<u64>, usize, usize, u64)> {
    let (range, layer, number, from) = piece;
    let before = range.start..range.end.min(new.start);
    let after = range.start.max(new.end)..range.end;
    let parts = if new.is_empty() { vec![range.clone()] } else { vec![before, after] };
    let kept = parts.into_iter().filter(|part| part.start < part.end);
    kept.map(|part| (part.clone(), layer, number, from + part.start - range.start)).collect()
}

impl Backup {
    /// The blocks that a range of the image lies in, in bytes.
    pub(crate) fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        let size = self.block_bytes;
        range.start / size * size..(range.end.div_ceil(size) * size).min(self.image.len() as u64)
    }

    /// Where the block stands elsewhere in the image as well.
    pub(crate) fn has_equal_block(&self, block: &Range<u64>) -> bool {
        let bytes = &self.image[block.start as usize..block.end as usize];
        let starts = (0..self.image.len()).step_by(self.block_bytes as usize);
        starts
            .filter(|&start| start as u64 != block.start)
            .any(|start| self.image[start..].starts_with(bytes))
    }

    pub(crate) fn is_zeros(&self, range: &Range<u64>) -> bool {
        self.image[range.start as usize..range.end as usize].iter().all(|&byte| byte == 0)
    }
}

fn join(container: &str, name: &str) -> String {
    if container.is_empty() { name.to_owned() } else { format!("{container}/{name}") }
}

/// The files of one backup, by their names in the store.
fn files_of(backup: &Genuine) -> BTreeMap<String, Vec<u8>> {
    let folder = backup.store_path().join(&backup.container);
    let mine = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.strip_prefix(&backup.prefix).is_some_and(|rest| rest.starts_with(['-', '_']))
    };
    let paths = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| mine(path));
    paths
        .map(|path| {
            let name = join(&backup.container, path.file_name().unwrap().to_str().unwrap());
            (name, fs::read(&path).unwrap())
        })
        .collect()
}
