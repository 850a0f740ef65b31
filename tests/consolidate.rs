//! Is a consolidated backup the image of its chain, whatever that is made of, and does it take its place?

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; a panic is the report")]

#[path = "common/cases.rs"]
mod cases;
#[path = "common/history.rs"]
mod history;
#[path = "common/painted.rs"]
mod painted;
#[path = "common/store_kit.rs"]
mod store_kit;
#[path = "common/volume.rs"]
mod volume;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use cinderfs::backup::{Backup, DigestFile};
use cinderfs::catalog::{Catalog, CatalogOptions, Entry};
use cinderfs::codec::Codec;
use cinderfs::image::Verification;
use cinderfs::store::Store;
use cinderfs::store::fault::{Fault, FaultStore, Operation, Rule};
use cinderfs::store::posix::PosixStore;
use cinderfs::types::BlockHash;
use cinderfs::writer::consolidate::{Consolidated, Consolidation, consolidate};
use cinderfs::writer::create::{Base, Created, NewBackup, create};
use cinderfs::writer::source::FileSource;
use cinderfs::{Error, ErrorKind, Result};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use cases::{Watchdog, runner};
use history::{Built, histories};
use painted::Painted;
use store_kit::{BackupSpec, Naming, ObjectSpec, Packing, digests_of};
use volume::{BLOCK, MIB, Random, id, mixed};

const CODECS: [Codec; 4] = [Codec::None, Codec::Zlib, Codec::Bz2, Codec::Zstd];

/// That nothing was added, removed or changed.
#[track_caller]
fn check_same(now: &Tree, before: &Tree) {
    let names = |tree: &Tree, other: &Tree| -> Vec<PathBuf> {
        tree.iter()
            .filter(|(path, bytes)| other.get(*path) != Some(bytes))
            .map(|(path, _)| path.clone())
            .collect()
    };
    let (new, old) = (names(now, before), names(before, now));
    assert!(new.is_empty() && old.is_empty(), "new or changed: {new:?}, gone or changed: {old:?}");
}

/// Every file beneath a folder, hidden ones included.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                tree.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    tree
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("cinderfs-test-").tempdir().unwrap()
}

fn open(store: &Path) -> Catalog {
    Catalog::open(Arc::new(PosixStore::open(store).unwrap()), CatalogOptions::default()).unwrap()
}

fn entry(catalog: &Catalog, id: &str) -> Arc<Entry> {
    catalog.snapshot().get(id).unwrap_or_else(|| panic!("no backup {id}")).clone()
}

fn make(store: &Path, id: &str, wanted: &Consolidation) -> Result<Consolidated> {
    let catalog = open(store);
    consolidate(store, &catalog, &entry(&catalog, id), wanted, &AtomicBool::new(false), &|_| {})
}

/// An incremental of `bytes` on the newest backup of the volume.
fn incremental(store: &Path, volume: &str, bytes: &[u8], now: &str) -> Created {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let new = NewBackup { base: Base::Newest, ..NewBackup::full(volume.parse_id()) };
    let source = FileSource::open(file.path()).unwrap();
    let now = now.parse().unwrap();
    create(store, &open(store), &source, &new, now, &AtomicBool::new(false), &|_| {}).unwrap()
}

trait ParseId {
    fn parse_id(&self) -> cinderfs::types::VolumeId;
}

impl ParseId for str {
    fn parse_id(&self) -> cinderfs::types::VolumeId {
        cinderfs::types::VolumeId::parse(self).unwrap()
    }
}

fn image_bytes(store: &Path, id: &str) -> Vec<u8> {
    let catalog = open(store);
    let image = catalog.image(&entry(&catalog, id)).unwrap();
    let mut bytes = vec![0xEE; image.len_bytes() as usize];
    assert_eq!(image.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn digests(store: &Path, id: &str) -> (u64, Vec<BlockHash>) {
    let catalog = open(store);
    let store = &**catalog.store();
    let backup = Backup::open(store, &entry(&catalog, id).metadata_name).unwrap();
    let DigestFile::Usable(table) = backup.digests(store).unwrap() else { panic!("{id} has no digests") };
    (table.block_bytes(), table.get(0..table.count()).into_iter().collect::<Result<_>>().unwrap())
}

/// Removes all files of all backups but those of `kept`.
fn remove_others(store: &Path, kept: &[&str]) {
    for path in tree(store).into_keys() {
        let text = path.to_str().unwrap();
        if !kept.iter().any(|id| text.contains(&format!("_backup_{id}"))) {
            fs::remove_file(path).unwrap();
        }
    }
}

/// It is a full backup of that image, with its digests, and stands alone.
fn check(store: &Path, made: &Consolidated, expected: &Painted, spec: &BackupSpec, wanted: &Consolidation) {
    let id = made.created.id.as_str();
    let catalog = open(store);
    let entry = entry(&catalog, id);
    assert_eq!(entry.parent_id, None);
    assert_eq!(entry.volume_id.as_ref().unwrap().as_str(), spec.volume_id);
    let image = catalog.image(&entry).unwrap();
    assert_eq!(image.verification(), Verification::Sha256);
    assert_eq!(image.chain().len(), 1);
    assert!(made.chain.iter().map(|id| id.as_str()).eq(expected.chain.iter().map(String::as_str)));
    assert!(image_bytes(store, id) == expected.bytes, "the image is another one");
    let block_bytes = expected.block_bytes.unwrap_or(BLOCK);
    let hashes: Vec<_> = digests_of(&expected.bytes, block_bytes).into_iter().map(BlockHash).collect();
    assert_eq!(digests(store, id), (block_bytes as u64, hashes));
    if let Some((_, theirs)) = &spec.digests {
        assert!(digests(store, id).1.iter().map(|hash| hash.0).eq(theirs.iter().copied()));
    }
    // Cinder wants all bytes of a full backup in objects, each within its window.
    let backup = Backup::open(&**catalog.store(), &entry.metadata_name).unwrap();
    let mut at = 0;
    for object in &backup.objects {
        assert_eq!(object.offset, at);
        assert!(object.len_bytes <= wanted.object_bytes.unwrap_or(128 << 20));
        assert!(object.codec == wanted.codec || object.codec == Codec::None);
        at += object.len_bytes;
    }
    assert_eq!(at, expected.bytes.len() as u64);
    assert_eq!(backup.objects.len() as u64, made.created.objects);
}

#[derive(Clone, Debug)]
struct Choice {
    which: Index,
    codec: Codec,
    object_blocks: u64,
    threads: usize,
    is_named: bool,
}

fn choice() -> impl Strategy<Value = Choice> {
    let object_blocks = prop_oneof![1u64..4, 1u64..64];
    (any::<Index>(), select(&CODECS[..]), object_blocks, 1usize..6, any::<bool>()).prop_map(
        |(which, codec, object_blocks, threads, is_named)| Choice {
            which,
            codec,
            object_blocks,
            threads,
            is_named,
        },
    )
}

/// Trees of backups by genuine and foreign writers, with shrinks, odd lengths, and links without digests; two of each are
/// consolidated, then all others go.
#[test]
fn a_consolidated_backup_is_the_image_of_its_chain_and_needs_none_of_it() {
    let strategy = (histories(&[512, 1000, 4096, 32768], 1..=200_000, 6), [choice(), choice()]);
    let counts = std::cell::RefCell::new((0, 0));
    runner(80, 0xc0_5011)
        .run(&strategy, |(history, choices)| {
            let _watchdog = Watchdog::new();
            let Built { specs, images } = history.build(1);
            let folder = folder();
            let store = folder.path();
            specs.iter().for_each(|spec| spec.write_to_folder(store));
            let mut made = Vec::new();
            for choice in &choices {
                let at = choice.which.index(specs.len());
                let (spec, expected) = (&specs[at], &images[at]);
                let block_bytes = expected.block_bytes.unwrap_or(BLOCK) as u64;
                let wanted = Consolidation {
                    codec: choice.codec,
                    object_bytes: Some(choice.object_blocks * block_bytes),
                    container: choice.is_named.then(|| "team/one".try_into_name()),
                    threads: choice.threads,
                    ..Consolidation::default()
                };
                let before = tree(store);
                let result = make(store, &spec.id, &wanted);
                if expected.bytes.is_empty() {
                    assert_eq!(result.unwrap_err().kind(), ErrorKind::Usage);
                    check_same(&tree(store), &before);
                } else if !expected.is_whole() {
                    let error = result.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::NoData, "{error}");
                    check_same(&tree(store), &before);
                    counts.borrow_mut().1 += 1;
                } else {
                    let result = result.unwrap();
                    let now = tree(store);
                    assert!(
                        before.iter().all(|(path, bytes)| now.get(path) == Some(bytes)),
                        "others were touched"
                    );
                    check(store, &result, expected, spec, &wanted);
                    made.push((result, expected, spec, wanted));
                    counts.borrow_mut().0 += 1;
                }
            }
            let kept: Vec<_> = made.iter().map(|(made, ..)| made.created.id.as_str()).collect();
            remove_others(store, &kept);
            made.iter().for_each(|(made, expected, spec, wanted)| check(store, made, expected, spec, wanted));
            Ok(())
        })
        .unwrap();
    let (whole, refused) = counts.into_inner();
    assert!(
        std::env::var_os("PROPTEST_CASES").is_some() || (whole > 100 && refused > 0),
        "{whole} {refused}"
    );
}

trait TryIntoName {
    fn try_into_name(&self) -> cinderfs::types::ObjectName;
}

impl TryIntoName for str {
    fn try_into_name(&self) -> cinderfs::types::ObjectName {
        cinderfs::types::ObjectName::parse(self).unwrap()
    }
}

/// A chain of some MiB: a full backup and incrementals, each of which changed a run of blocks, a day apart.
struct Chain {
    folder: TempDir,
    specs: Vec<BackupSpec>,
    images: Vec<Vec<u8>>,
}

impl Chain {
    fn new(len: usize, links: usize, packing: Packing) -> Self {
        let mut bytes = mixed(3, len);
        let mut random = Random::new(9);
        let (mut specs, mut images): (Vec<BackupSpec>, Vec<Vec<u8>>) = Default::default();
        for link in 0..links {
            let mut spec = BackupSpec::new(&id(&format!("c{link}")), &id("vc"));
            let mut extent = 0..len;
            if link > 0 {
                spec.parent_id = Some(specs[link - 1].id.clone());
                let start = random.below(len / BLOCK / 2) * BLOCK;
                extent = start..(start + 10 * BLOCK).min(len);
                bytes[extent.clone()].copy_from_slice(&mixed(50 + link as u64, extent.len()));
            }
            spec.created_at = format!("2024-03-{:02} 01:01:07+00:00", link + 1);
            spec.digests = Some((BLOCK, digests_of(&bytes, BLOCK)));
            spec.objects.push(ObjectSpec { offset: extent.start, plain: bytes[extent].to_vec(), packing });
            specs.push(spec);
            images.push(bytes.clone());
        }
        let folder = folder();
        specs.iter().for_each(|spec| spec.write_to_folder(&folder.path().join("store")));
        Self { folder, specs, images }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn tip(&self) -> &str {
        &self.specs.last().unwrap().id
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        command.arg(words[0]).arg(self.store()).args(&words[1..]);
        command.env("CINDERFS_CACHE_DIR", self.folder.path().join("cache")).env_remove("CINDERFS_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Flips a bit of the stored object of a link, in byte `at`; returns the object as it was.
    fn damage(&self, link: usize, at: usize) -> Vec<u8> {
        let path = self.store().join(self.specs[link].object_path(0));
        let sound = fs::read(&path).unwrap();
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
        sound
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const PLAIN: Packing = Packing::Plain("none");
const ZLIB: Packing = Packing::Zlib { level: 6, junk: 0 };

#[test]
fn the_chain_goes_on_from_the_new_backup_where_it_is_the_newest() {
    let chain = Chain::new(2 * MIB + 77, 3, ZLIB);
    let (store, volume) = (chain.store(), chain.specs[0].volume_id.clone());
    let made = make(&store, chain.tip(), &Consolidation::default()).unwrap();
    assert_eq!(made.created.created_at.to_string(), "2024-03-03T01:01:08Z");
    let mut bytes = chain.images[2].clone();
    bytes[5 * BLOCK] ^= 1;
    let next = incremental(&store, &volume, &bytes, "2024-03-04T00:00:00Z");
    assert_eq!(next.parent_id.as_ref(), Some(&made.created.id));
    assert_eq!(next.progress.changed_bytes, BLOCK as u64);
    remove_others(&store, &[made.created.id.as_str(), next.id.as_str()]);
    assert!(image_bytes(&store, next.id.as_str()) == bytes);
    // And so on: a chain that was consolidated is consolidated again.
    let again = make(&store, next.id.as_str(), &Consolidation::default()).unwrap();
    remove_others(&store, &[again.created.id.as_str()]);
    assert!(image_bytes(&store, again.created.id.as_str()) == bytes);
}

#[test]
fn the_ancestors_can_be_deleted() {
    let chain = Chain::new(MIB + 7, 3, ZLIB);
    let output = chain.run(&["consolidate", chain.tip()]);
    let id = text(&output.stdout).trim_end();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = chain.run(&["delete", &chain.specs[0].id, "--cascade"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let catalog = open(&chain.store());
    let left: Vec<_> = catalog.snapshot().entries().map(|entry| entry.id.to_string()).collect();
    assert_eq!(left, [id]);
    assert!(image_bytes(&chain.store(), id) == chain.images[2]);
}

#[test]
fn old_data_does_not_become_the_latest() {
    let chain = Chain::new(MIB, 3, ZLIB);
    let (store, volume) = (chain.store(), chain.specs[0].volume_id.clone());
    let made = make(&store, &chain.specs[1].id, &Consolidation::default()).unwrap();
    assert_eq!(made.created.created_at.to_string(), "2024-03-02T01:01:08Z");
    let target = chain.folder.path().join("latest");
    let output = chain.run(&["restore", &format!("{volume}@latest"), target.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(fs::read(target).unwrap() == chain.images[2], "latest is an older one");
    let next = incremental(&store, &volume, &chain.images[2], "2024-03-04T00:00:00Z");
    assert_eq!((next.parent_id.unwrap().as_str(), next.progress.changed_bytes), (chain.tip(), 0));
    assert!(image_bytes(&store, made.created.id.as_str()) == chain.images[1]);
}

#[test]
fn what_the_volume_was_stays_and_who_the_backup_is_changes() {
    let chain = Chain::new(MIB, 2, ZLIB);
    let document = |id: &str| -> Value {
        let catalog = open(&chain.store());
        let entry = entry(&catalog, id);
        serde_json::from_slice(&fs::read(chain.store().join(entry.metadata_name.as_str())).unwrap()).unwrap()
    };
    let metas = [
        "{\"version\": 2, \"volume-base-metadata\": {\"size\": 7, \"display_name\": \"\u{fc} \u{1f4be}\", \"host\": null}, \"volume-metadata\": {\"k\": \"v\"}}",
        "{\"version\": 1}",
        "no JSON",
    ];
    let path = chain.store().join(chain.specs[1].files().last().unwrap().0.clone());
    let sound: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let lists = [
        (Some(metas[0]), Some(metas[0])),
        (Some(metas[1]), Some(metas[1])),
        (Some(metas[2]), None),
        (None, None),
    ];
    for (given, kept) in lists {
        let mut changed = sound.clone();
        changed["volume_meta"] = given.map_or(Value::Null, Value::from);
        fs::write(&path, serde_json::to_vec_pretty(&changed).unwrap()).unwrap();
        let wanted = Consolidation { name: Some("n\u{e4}me".into()), ..Consolidation::default() };
        let made = make(&chain.store(), chain.tip(), &wanted).unwrap();
        let new = document(made.created.id.as_str());
        assert_eq!(new["volume_meta"], kept.map_or(Value::Null, Value::from));
        assert_eq!(new["volume_id"], sound["volume_id"]);
        assert_eq!(new["backup_name"], "n\u{e4}me");
        assert_eq!(new["backup_description"], format!("consolidated from {}", chain.tip()));
        assert_eq!((&new["parent_id"], &new["version"]), (&Value::Null, &Value::from("1.0.0")));
        assert_ne!(new["backup_id"], sound["backup_id"]);
    }
}

#[test]
fn zeros_that_the_digests_tell_are_not_read() {
    let folder = folder();
    let mut bytes = vec![0; 24 * MIB + 100];
    bytes[..2 * MIB].copy_from_slice(&mixed(1, 2 * MIB));
    bytes[20 * MIB..21 * MIB].copy_from_slice(&mixed(2, MIB));
    let mut spec = BackupSpec::new(&id("z"), &id("vz"));
    spec.digests = Some((BLOCK, digests_of(&bytes, BLOCK)));
    spec.naming = Naming::New;
    for start in (0..bytes.len()).step_by(MIB) {
        let plain = bytes[start..bytes.len().min(start + MIB)].to_vec();
        spec.objects.push(ObjectSpec { offset: start, plain, packing: ZLIB });
    }
    spec.write_to_folder(folder.path());
    let is_zeros = |object: &ObjectSpec| object.plain.iter().all(|&byte| byte == 0);
    let zeros = spec.objects.iter().enumerate().filter(|(_, object)| is_zeros(object));
    let rules = zeros.map(|(i, _)| {
        Rule::new(Operation::Open, Fault::Error(ErrorKind::StoreIo)).names(spec.object_path(i))
    });
    let store = FaultStore::new(PosixStore::open(folder.path()).unwrap(), rules);
    let catalog = Catalog::open(Arc::new(store), CatalogOptions::default()).unwrap();
    for codec in CODECS {
        let wanted = Consolidation { codec, object_bytes: Some(4 << 20), ..Consolidation::default() };
        let entry = entry(&catalog, &spec.id);
        let cancel = AtomicBool::new(false);
        let made = consolidate(folder.path(), &catalog, &entry, &wanted, &cancel, &|_| {}).unwrap();
        assert!(image_bytes(folder.path(), made.created.id.as_str()) == bytes, "{codec:?}");
        // An existing volume that Cinder restores to must get its zeros written.
        assert_eq!(made.created.progress.changed_bytes, bytes.len() as u64);
        assert_eq!(made.created.objects, 7);
    }
}

#[test]
fn damage_ends_it_with_the_place_and_nothing_left() {
    for packing in [PLAIN, ZLIB, Packing::Zstd { level: 3, frames: 1 }] {
        let chain = Chain::new(4 * MIB + 5, 3, packing);
        // Behind what later backups hide.
        assert!(chain.specs[1..].iter().all(|spec| spec.objects[0].offset < 2 * MIB));
        let at = match packing {
            PLAIN => 3 * MIB + 17,
            _ => {
                fs::metadata(chain.store().join(chain.specs[0].object_path(0))).unwrap().len() as usize * 7
                    / 8
            }
        };
        let sound = chain.damage(0, at);
        let before = tree(&chain.store());
        let output = chain.run(&["consolidate", chain.tip(), "--object-size", "1M"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(output.stdout.is_empty());
        let stderr = text(&output.stderr);
        assert!(stderr.contains(chain.tip()) && stderr.contains("image bytes"), "{stderr}");
        if packing == PLAIN {
            let place = format!("image bytes {} to {}", 3 * MIB, 3 * MIB + BLOCK);
            assert!(stderr.contains(&place), "{stderr}");
        }
        check_same(&tree(&chain.store()), &before);
        // What is whole again is consolidated.
        fs::write(chain.store().join(chain.specs[0].object_path(0)), sound).unwrap();
        make(&chain.store(), chain.tip(), &Consolidation::default()).unwrap();
    }
    // A file that is missing is no other case.
    let chain = Chain::new(MIB, 2, ZLIB);
    fs::remove_file(chain.store().join(chain.specs[0].object_path(0))).unwrap();
    let before = tree(&chain.store());
    let output = chain.run(&["consolidate", chain.tip()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    check_same(&tree(&chain.store()), &before);
}

#[test]
fn damage_that_the_image_does_not_show_does_no_harm() {
    let chain = Chain::new(4 * MIB, 2, PLAIN);
    chain.damage(0, chain.specs[1].objects[0].offset + 5);
    let made = make(&chain.store(), chain.tip(), &Consolidation::default()).unwrap();
    assert!(image_bytes(&chain.store(), made.created.id.as_str()) == chain.images[1]);
    assert_eq!(made.healed_blocks, 0);
}

#[test]
fn a_lost_block_is_taken_from_another_backup_that_has_it() {
    let chain = Chain::new(4 * MIB, 2, PLAIN);
    let copy = make(&chain.store(), &chain.specs[0].id, &Consolidation::default()).unwrap();
    chain.damage(0, 4 * MIB - 1);
    let made = make(&chain.store(), chain.tip(), &Consolidation::default()).unwrap();
    assert_eq!(made.healed_blocks, 1);
    remove_others(&chain.store(), &[made.created.id.as_str()]);
    assert!(image_bytes(&chain.store(), made.created.id.as_str()) == chain.images[1]);
    assert_ne!(copy.created.id, made.created.id);
}

/// Without digests every object is proven by its md5 first; the new backup has digests.
#[test]
fn a_chain_without_digests_gets_them() {
    let mut chain = Chain::new(2 * MIB + 1, 3, Packing::Bz2 { level: 1, streams: 1 });
    for spec in &mut chain.specs {
        let names = spec.files();
        let name = names.iter().find(|(name, _)| name.ends_with("_sha256file")).unwrap();
        fs::remove_file(chain.folder.path().join("store").join(&name.0)).unwrap();
    }
    let before = tree(&chain.store());
    for (block_bytes, expected) in [(None, BLOCK), (Some(4096), 4096)] {
        let wanted = Consolidation { block_bytes, ..Consolidation::default() };
        let made = make(&chain.store(), chain.tip(), &wanted).unwrap();
        let id = made.created.id.as_str();
        assert!(image_bytes(&chain.store(), id) == chain.images[2]);
        let hashes: Vec<_> = digests_of(&chain.images[2], expected).into_iter().map(BlockHash).collect();
        assert_eq!(digests(&chain.store(), id), (expected as u64, hashes));
    }
    // Bytes that nothing but the md5 proves are not taken when it does not.
    let made = tree(&chain.store());
    made.keys().filter(|path| !before.contains_key(*path)).for_each(|path| fs::remove_file(path).unwrap());
    let path = chain.store().join(chain.specs[0].object_path(0));
    let other = Packing::Bz2 { level: 1, streams: 1 }.pack(&mixed(77, 2 * MIB + 1));
    fs::write(path, other).unwrap();
    let before = tree(&chain.store());
    let error = make(&chain.store(), chain.tip(), &Consolidation::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HashMismatch, "{error}");
    assert!(error.to_string().contains("image bytes"), "{error}");
    check_same(&tree(&chain.store()), &before);
}

#[test]
fn the_program_says_what_it_did() {
    let chain = Chain::new(3 * MIB, 3, ZLIB);
    let words =
        ["consolidate", chain.tip(), "--compression", "zstd", "--name", "monthly", "--progress", "json"];
    let output = chain.run(&words);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let id = text(&output.stdout).trim_end();
    let lines = text(&output.stderr).lines();
    let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    let summary = &last["summary"];
    assert_eq!(summary["backup_id"], id);
    assert_eq!(summary["parent_id"], Value::Null);
    assert_eq!(summary["volume_bytes"], 3 * MIB);
    assert_eq!(summary["consolidated_from"].as_array().unwrap().len(), 3);
    assert_eq!(summary["healed_blocks"], 0);
    assert!(image_bytes(&chain.store(), id) == chain.images[2]);

    let output = chain.run(&["consolidate", "monthly", "--container", "team/two", "--threads", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("full backup of 1 backup(s)"), "{}", text(&output.stderr));
    let id = text(&output.stdout).trim_end();
    assert!(image_bytes(&chain.store(), id) == chain.images[2]);
    assert_eq!(entry(&open(&chain.store()), id).container, "team/two");

    for (words, code) in [
        (&["consolidate", "nobody"][..], 1),
        (&["consolidate", "monthly", "--object-size", "1000"], 2),
        (&["consolidate", "monthly", "--block-size", "100"], 2),
        (&["consolidate", "monthly", "--container", "../up"], 2),
        (&["consolidate"], 2),
    ] {
        let before = tree(&chain.store());
        let output = chain.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{words:?}");
        check_same(&tree(&chain.store()), &before);
    }
}

/// Waits until the run has begun to write.
fn wait_for_staging(store: &Path, child: &mut Child) {
    let started = Instant::now();
    let is_hidden = |name: &str| name.starts_with(".cinderfs-");
    let has_begun =
        || fs::read_dir(store).unwrap().any(|e| is_hidden(e.unwrap().file_name().to_str().unwrap()));
    while !has_begun() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        assert!(started.elapsed() < Duration::from_secs(60), "it does not begin");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_run_that_is_ended_leaves_nothing() {
    let chain = Chain::new(24 * MIB, 3, ZLIB);
    let before = tree(&chain.store());
    let words = ["consolidate", chain.tip(), "--compression", "bz2", "--object-size", "1M", "--threads", "2"];
    let mut random = Random::new(5);
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::TERM, Some(143)), (Signal::KILL, None)] {
        for _ in 0..if code.is_none() { 8 } else { 2 } {
            let mut child = chain.command(&words).spawn().unwrap();
            wait_for_staging(&chain.store(), &mut child);
            thread::sleep(Duration::from_millis(random.below(150) as u64));
            rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), code, "{}", text(&output.stderr));
            assert!(output.stdout.is_empty());
            let listed = PosixStore::open(&chain.store()).unwrap().list("_metadata").unwrap();
            assert_eq!(listed.objects.len(), 3, "a backup is there that is not whole");
            let mut now = tree(&chain.store());
            if code.is_none() {
                // The next run takes it away; until then it is where nobody looks.
                let hidden = chain.store().join(".cinderfs-").to_str().unwrap().to_owned();
                now.retain(|path, _| !path.to_str().unwrap().starts_with(&hidden));
            }
            check_same(&now, &before);
        }
    }
    let output = chain.run(&["consolidate", chain.tip()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let id = text(&output.stdout).trim_end();
    assert!(image_bytes(&chain.store(), id) == chain.images[2]);
    let names = fs::read_dir(chain.store()).unwrap().map(|entry| entry.unwrap().file_name());
    let hidden: Vec<_> = names.filter(|name| name.to_str().unwrap().starts_with(".cinderfs-")).collect();
    assert!(hidden.is_empty(), "the next run left {hidden:?}");
}

/// Ends by itself where a thread would wait for ever.
#[test]
fn cancelled_before_it_begins_it_leaves_nothing() {
    let chain = Chain::new(MIB, 2, ZLIB);
    let before = tree(&chain.store());
    let catalog = open(&chain.store());
    let entry = entry(&catalog, chain.tip());
    let cancel = AtomicBool::new(true);
    let wanted = Consolidation::default();
    let result = consolidate(&chain.store(), &catalog, &entry, &wanted, &cancel, &|_| {});
    assert_eq!(result.map_err(|error: Error| error.kind()), Err(ErrorKind::Interrupted));
    check_same(&tree(&chain.store()), &before);
}
