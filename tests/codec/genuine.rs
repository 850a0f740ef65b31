//! Objects that genuine Cinder wrote, by the md5 it wrote beside them.

use std::fs;
use std::path::{Path, PathBuf};

use cinderfs::codec::Codec;
use cinderfs::types::Md5;
use md5::{Digest, Md5 as Md5Hasher};
use serde_json::Value;

use crate::kit::plain;

fn metadata_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            metadata_files(&path, found);
        } else if path.to_str().unwrap().ends_with("_metadata") {
            found.push(path);
        }
    }
}

#[test]
fn every_object_of_every_release_decodes_to_its_md5() {
    let mut documents = Vec::new();
    metadata_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores"), &mut documents);
    let mut seen = [0; 4];
    for document in &documents {
        let metadata: Value = serde_json::from_slice(&fs::read(document).unwrap()).unwrap();
        for entry in metadata["objects"].as_array().unwrap() {
            let (name, object) = entry.as_object().unwrap().iter().next().unwrap();
            let codec = Codec::from_name(object["compression"].as_str().unwrap()).unwrap();
            let bytes = plain(codec, &fs::read(document.parent().unwrap().join(name)).unwrap());
            assert_eq!(bytes.len() as u64, object["length"].as_u64().unwrap(), "{name}");
            let md5 = Md5(Md5Hasher::digest(&bytes).into());
            assert_eq!(md5.to_string(), object["md5"].as_str().unwrap(), "{name}");
            seen[codec as usize] += 1;
        }
    }
    assert!(seen.iter().all(|n| *n >= 10), "objects of each codec: {seen:?}");
}
