//! Inputs to begin from, made from the stores in `tests/fixtures`, which are few and small enough for each test run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cinderfs::codec::{Codec, ObjectStream, Recording};
use cinderfs::store::Store;
use cinderfs::store::memory::MemoryStore;
use cinderfs::types::ObjectName;
use cinderfs::workers::Workers;

use super::catalog::BETWEEN;
use super::codecs::pack;

/// Largest file that becomes a seed, in bytes: libFuzzer is quick with small ones.
const FILE_BYTES_MAX: u64 = 24 << 10;

/// Most seeds of one kind.
const SEEDS_MAX: usize = 24;

/// All small files of the fixtures, sorted.
fn fixtures() -> &'static [PathBuf] {
    static FILES: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FILES.get_or_init(|| {
        let root = ["tests/fixtures/stores", "../tests/fixtures/stores"].into_iter().map(Path::new);
        let mut folders = vec![root.into_iter().find(|root| root.is_dir()).unwrap().to_owned()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let stat = entry.metadata().unwrap();
                match stat.is_dir() {
                    true => folders.push(entry.path()),
                    false if stat.len() <= FILE_BYTES_MAX => files.push(entry.path()),
                    false => {}
                }
            }
        }
        files.sort();
        files
    })
}

/// Files whose path `is_wanted`, spread over all stores.
fn chosen(is_wanted: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    let wanted: Vec<_> = fixtures().iter().filter(|path| is_wanted(path.to_str().unwrap())).collect();
    let apart = wanted.len().div_ceil(SEEDS_MAX).max(1);
    wanted.into_iter().step_by(apart).map(|path| fs::read(path).unwrap()).collect()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Bytes that go through a generator of numbers, for targets that read operations.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

pub(super) fn operations() -> Vec<Vec<u8>> {
    (1..9).map(|n| noise(n, 60 * n as usize)).collect()
}

pub(super) fn metadata() -> Vec<Vec<u8>> {
    let mut seeds = chosen(|path| path.ends_with("_metadata"));
    seeds.extend(texts(&[
        r#"{"version":"1.0.0","backup_id":"a","volume_id":"v","parent_id":null,"created_at":"None","objects":[
            {"c-00001":{"compression":"zlib","length":262144,"offset":0,"md5":"e033a5a1e033a5a1e033a5a1e033a5a1",
            "cinderfs_restart_points":"131072:900x1"}}],"volume_meta":"{\"volume-base-metadata\":{\"size\":1}}"}"#,
    ]));
    seeds
}

pub(super) fn digests() -> Vec<Vec<u8>> {
    let mut seeds = chosen(|path| path.ends_with("_sha256file"));
    let line = "\"c35020473aed1b4642cd726cad727b63fff2824ad68cedd7ffb73c7cbd890479\"";
    seeds.push(
        format!("{{\"chunk_size\":1,\"version\":\"1.0.0\",\"x\":{{\"sha256s\": [\n    {line}\n  ]}}}}")
            .into(),
    );
    seeds.push(
        format!("{{\"sha256s\": [\n    {line}\n  ], \"chunk_size\":1,\"version\":\"1.0.0\",\"sha256s\":[]}}")
            .into(),
    );
    seeds
}

pub(super) fn points() -> Vec<Vec<u8>> {
    let mut seeds = operations();
    seeds.extend(texts(&[
        "262144:1832x3,1790,524288:2210",
        "1:1x4096",
        "131072:18446744073709551615x2",
        "1:1,2:2",
    ]));
    seeds
}

/// Genuine objects of a codec, and plain bytes for an encoder; each behind the numbers that the target takes first.
pub(super) fn streams(codec: &str) -> Vec<Vec<u8>> {
    let with = |numbers: &[u8], bytes: &[u8]| {
        let seeks = [0, 9, 128, 3, 10, 255, 255, 1, 64, 100, 63, 100, 200, 20, 199, 0];
        [&[0x00, 0x10][..], &[0x00, 0x40, 0x00], &seeks, numbers, bytes].concat()
    };
    let is_of = |path: &str| {
        let word = format!("-{codec}/");
        (path.contains(&word) || path.contains(&format!("{codec}-chain"))) && path.contains("-0000")
    };
    let mut seeds: Vec<_> = chosen(is_of).iter().map(|object| with(&[0, 0, 0], object)).collect();
    for (n, kind) in [1, 5, 3, 7].into_iter().enumerate() {
        let text = b"Cinder writes a volume backup as a container of compressed objects. ";
        let plain = [&noise(n as u64, 300), &text[..], &[0; 100]].concat();
        let edits: &[u8] = if kind & 2 == 0 { &[] } else { &[9, 1, 0, 1, 200, 0, 0, 255, 30, 2, 0, 4] };
        seeds.push(with(&[kind, 6 + n as u8, 200], &[edits, &plain].concat()));
    }
    seeds
}

pub(super) fn restart_states() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let name = ObjectName::parse("object").unwrap();
    // Several blocks of each codec, in little room.
    let plain: Vec<u8> = noise(5, 300_000).iter().map(|byte| byte & 1).collect();
    for (n, codec) in [Codec::Zlib, Codec::Bz2, Codec::Zstd].into_iter().enumerate() {
        for in_parts in [false, true] {
            let object = pack(codec, 6, in_parts, &plain);
            let store = MemoryStore::new();
            store.insert(name.clone(), object.clone());
            let source = store.open(&name).unwrap();
            let stream = ObjectStream::new(codec, source, Arc::new(Workers::new(0)));
            let mut decoder = stream.start().unwrap();
            decoder.record(Some(Recording { from: 0, spacing_bytes: 1000 }));
            let _ = decoder.read(&mut vec![0; 1 << 20]);
            let points = decoder.take_points().into_iter().map(|point| stream.pack(point));
            for point in points.filter(|point| point.state.len() < 40_000).take(2) {
                let mut seed = vec![n as u8, 0, 0, 0];
                seed.extend(point.plain_offset.to_le_bytes());
                seed.push(0);
                seed.extend(point.stored_bits.to_le_bytes());
                seed.extend((point.state.len() as u16).to_le_bytes());
                seeds.push([&seed, &*point.state, &object].concat());
            }
        }
    }
    seeds
}

pub(super) fn seek_index() -> Vec<Vec<u8>> {
    let mut seeds = operations();
    for what in 0..4 {
        seeds.push([&[what], &noise(9, 400)[..]].concat());
    }
    // A whole file, as far as the digests that the target sets allow.
    let mut file = vec![0; 96];
    file[12] = 2;
    file.extend([7; 20]);
    for (offset, len) in [(1000u64, 8u32), (5000, 12)] {
        file.extend(offset.to_le_bytes());
        file.extend(77u64.to_le_bytes());
        file.extend(len.to_le_bytes());
        file.extend([3; 16]);
    }
    seeds.push([&[1][..], &file].concat());
    seeds
}

pub(super) fn leftovers() -> Vec<Vec<u8>> {
    let journal = "cinderfs journal 1\ncontainer \"team/one\"\nprefix \"p\"\n@0 -00001\n@1 -00002\n@2 _sha256file\n@5 _metadata\nend\n";
    let deletion =
        "cinderfs deletion 1\nfolder \"team/one\"\n#5 \"p_metadata\"\n#0 \"p-00001\"\n#1 \"p-00002\"\nend\n";
    let outside = journal.replace("team/one", "out/team/one").replace("@0", "@7");
    let mut seeds = Vec::new();
    for (what, text) in [
        (0, journal.to_owned()),
        (0, outside),
        (0, journal.replace("@5", "@3")),
        (2, deletion.to_owned()),
        (2, deletion.replace("team/one", "out")),
        (2, deletion.replace("#5", "#3")),
        (2, deletion.replace("team/one", "b1/b2/id").replace("#5", "1 2 3.4")),
        (4, format!("{journal}\0{deletion}")),
    ] {
        seeds.push([&[what], text.as_bytes()].concat());
    }
    seeds.extend((0..10).map(|n| vec![6 | n << 3 | (n % 2) << 7, b'x']));
    seeds
}

pub(super) fn catalogs() -> Vec<Vec<u8>> {
    let digest_of_zeros = "ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7";
    let metadata = |id: &str, parent: &str, object: &str, len: usize, offset: usize| {
        format!(
            "{{\"version\": \"1.0.0\", \"backup_id\": \"{id}\", \"volume_id\": \"v\", \"parent_id\": {parent}, \
             \"backup_name\": null, \"created_at\": \"2024-03-02 14:01:07+00:00\", \"objects\": [{{\"{object}\": \
             {{\"compression\": \"none\", \"length\": {len}, \"md5\": \"e033a5a1e033a5a1e033a5a1e033a5a1\", \
             \"offset\": {offset}}}}}]}}"
        )
    };
    let digests = |id: &str, count: usize| {
        let lines = vec![format!("    \"{digest_of_zeros}\""); count].join(",\n");
        format!(
            "{{\n  \"backup_id\": \"{id}\",\n  \"chunk_size\": 4096,\n  \"sha256s\": [\n{lines}\n  ],\n  \
             \"version\": \"1.0.0\",\n  \"volume_id\": \"v\"\n}}"
        )
    };
    let zeros = |len: usize| "\0".repeat(len);
    let full = [metadata("a", "null", "a-00001", 8192, 0), digests("a", 2), zeros(8192)];
    let of = |parts: &[String]| parts.iter().map(String::as_bytes).collect::<Vec<_>>().join(BETWEEN);
    let child = [metadata("b", "\"a\"", "b-00001", 4096, 4096), digests("b", 2), zeros(4096), zeros(1)];
    let mut seeds = vec![of(&full), of(&[&full[..], &child].concat())];
    let shrunk = [metadata("b", "\"a\"", "b-00001", 100, 0), digests("b", 1), zeros(100)];
    seeds.push(of(&[&full[..], &shrunk].concat()));
    let huge = [metadata("a", "null", "a-00001", 4096, 1 << 62), String::new(), zeros(4096)];
    seeds.push(of(&huge));
    // Genuine documents, whose objects have other names; and a genuine stream that is none of theirs.
    for (metadata, digests) in metadata_and_digests() {
        seeds.push([metadata, digests].join(BETWEEN));
    }
    seeds
}

fn metadata_and_digests() -> Vec<(Vec<u8>, Vec<u8>)> {
    let documents = fixtures().iter().filter(|path| path.to_str().unwrap().ends_with("_metadata"));
    let both = documents.filter_map(|path| {
        let digests =
            path.to_str().unwrap().strip_suffix("_metadata").map(|stem| format!("{stem}_sha256file"));
        let prefix = path.file_name()?.to_str()?.strip_suffix("_metadata")?.to_owned();
        let metadata = fs::read_to_string(path).ok()?.replace(&prefix, "a");
        Some((metadata.into_bytes(), fs::read(digests?).ok()?))
    });
    both.filter(|(_, digests)| digests.len() < 6000).step_by(20).take(SEEDS_MAX).collect()
}

pub(super) fn names() -> Vec<Vec<u8>> {
    let mut seeds = operations();
    for (name, object) in [
        ("volume_v/2024/az_nova_backup_b_metadata", "volume_v/2024/az_nova_backup_b-00001"),
        ("12/34/1234/backup_metadata", "backup-00001"),
        ("a_metadata", "bucket/a-00001"),
        ("../a_metadata", "a-1"),
    ] {
        let mut seed = vec![name.len() as u8];
        seed.extend(name.bytes());
        seed.push(object.len() as u8);
        seed.extend(object.bytes());
        seeds.push([&seed, &noise(3, 200)[..]].concat());
    }
    seeds
}

pub(super) fn changed() -> Vec<Vec<u8>> {
    let thin = "<superblock uuid=\"\" time=\"1\" transaction=\"2\" data_block_size=\"128\" nr_data_blocks=\"64\">\n\
        <diff left=\"1\" right=\"2\">\n<same begin=\"0\" length=\"2\"/>\n<different begin=\"2\" length=\"2\"/>\n\
        <left_only begin=\"6\" length=\"1\"/></diff>\n</superblock>\n";
    let lists = [
        r#"[{"offset": 0, "length": 65536, "type": 1, "description": "dirty"},
            {"offset": 65536, "length": 983040, "type": 0, "description": "clean"}]"#,
        r#"[{"start": 0, "length": 65536, "depth": 0, "present": true, "zero": false, "data": false},
            {"start": 65536, "length": 983040, "depth": 0, "present": true, "zero": false, "data": true}]"#,
        r#"[{"start": 0, "length": 65536, "dirty": true}, {"start": 65536, "length": 983040, "dirty": false}]"#,
        r#"[{"offset": 0, "length": 4096, "exists": "true"}, {"offset": 8192, "length": 4096, "exists": "false"}]"#,
        "[]",
        thin,
    ];
    // The volume has a megabyte.
    lists
        .iter()
        .map(|list| [&[20, 4, 0, 0][..], list.as_bytes()].concat())
        .chain(lists.iter().map(|list| [&[20, 9, 9, 9], list.as_bytes()].concat()))
        .collect()
}

pub(super) fn records() -> Vec<Vec<u8>> {
    texts(&[
        "e30=",
        "eyJpZCI6ICJhIiwgInNpemUiOiAxLCAiZGVsZXRlZCI6IGZhbHNlLCAicGFyZW50IjogbnVsbH0=",
        "eyJ2b2x1bWVfaWQiOiAidiIsICJ0ZW1wIjogMWUzMDAsICJhIjogWzEsIHsiYiI6IC0wLjB9XX0=",
        "W10=",
        "e30",
    ])
}

pub(super) fn cinder_confs() -> Vec<Vec<u8>> {
    texts(&[
        "[DEFAULT]\nbackup_driver = cinder.backup.drivers.posix.PosixBackupDriver\nbackup_posix_path = /var/backup\n",
        "[DEFAULT]\nstate_path = /x\nbackup_posix_path = $state_path/b\nbackup_compression_algorithm = zstd\n",
        "[DEFAULT]\nbackup_driver = cinder.backup.drivers.nfs.NFSBackupDriver\nbackup_share = host:/x\n\
         backup_mount_options = vers=4\nbackup_file_size = 1999994880\nbackup_sha_block_size_bytes = 32768\n",
        "[DEFAULT]\na = $b\nb = $a\nbackup_posix_path = ${a}\n# c\n [x]\nk: v\n  w\n",
        "[DEFAULT]\nbackup_driver = cinder.backup.drivers.swift.SwiftBackupDriver\nbackup_swift_key = secret\n",
    ])
}
