//! What becomes of long zeros in a new backup?

#![allow(clippy::unwrap_used, reason = "helpers of tests; a panic is the report")]

#[path = "common/new_backup.rs"]
mod new_backup;

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use cinderfs::codec::Codec;
use cinderfs::writer::create::NewBackup;
use md5::{Digest, Md5};
use serde_json::Value;

use new_backup::{MemorySource, make, open, volume};

const MIB: usize = 1 << 20;

/// Windows of 40 MiB: data with zeros between, two of zeros, and a short one of zeros.
fn scattered() -> Vec<u8> {
    let mut bytes = vec![0; 125 * MIB];
    for start in [0, 17, 33] {
        let data = &mut bytes[start * MIB..(start + 1) * MIB];
        data.iter_mut().enumerate().for_each(|(n, byte)| *byte = ((n * n) >> 9) as u8 | 1);
    }
    bytes
}

#[test]
fn long_zeros_end_an_object_and_windows_of_zeros_are_one_file() {
    let bytes = scattered();
    // Told as holes; and read as zeros.
    for (hole_bytes, threads) in [(MIB, 4), (MIB, 1), (1 << 40, 4)] {
        for codec in [Codec::Zlib, Codec::None] {
            let store = tempfile::tempdir().unwrap();
            let mut source = MemorySource::new(bytes.clone());
            source.hole_bytes = hole_bytes;
            let object_bytes = Some(40 << 20);
            let new = NewBackup { object_bytes, codec, threads, ..NewBackup::full(volume()) };
            let created = make(store.path(), &source, &new).unwrap();

            let path = store.path().join(created.metadata_name.as_path());
            let document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let mut found = Vec::new();
            let mut files = Vec::new();
            for object in document["objects"].as_array().unwrap() {
                let (name, entry) = object.as_object().unwrap().iter().next().unwrap();
                let number = |key: &str| entry[key].as_u64().unwrap() as usize;
                let (offset, len) = (number("offset"), number("length"));
                let md5: String = Md5::digest(&bytes[offset..offset + len])
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                assert_eq!(entry["md5"], md5, "{name}");
                found.push((offset / MIB, len / MIB));
                files.push(fs::metadata(path.with_file_name(name)).unwrap());
            }
            assert_eq!(found, [(0, 1), (1, 39), (40, 40), (80, 40), (120, 5)]);
            let inodes: Vec<_> = files.iter().map(|file| file.ino()).collect();
            assert_eq!(inodes[2], inodes[3], "one file");
            assert_eq!(files.iter().filter(|file| file.nlink() > 1).count(), 2, "{inodes:?}");

            let catalog = open(store.path());
            let entry = catalog.snapshot().get(created.id.as_str()).unwrap().clone();
            let image = catalog.image(&entry).unwrap();
            let mut read = vec![1; bytes.len()];
            let mut at = 0;
            while at < read.len() {
                at += image.read_at(&mut read[at..], at as u64).unwrap();
            }
            assert!(read == bytes, "{codec} {hole_bytes} {threads}");
        }
    }
}
