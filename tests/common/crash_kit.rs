//! A store of several backups, a run that adds one to it, and what must hold however that run ended.

#![allow(dead_code, reason = "each test binary uses its part of the kit")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::image::Verification;
use cinderfs::store::posix::PosixStore;

use crate::staging_kit::{Tree, hidden_folders, tree, visible};
use crate::volume::mixed;

const VOLUME: &str = "99999999-2222-4333-8444-555555555555";

/// Of the images, in bytes: some blocks, an odd rest, and some objects of [`OBJECT_SIZE`].
const IMAGE_BYTES: usize = 300_007;

/// Blocks of this size give an incremental several objects.
const SIZES: [&str; 4] = ["--block-size", "4K", "--object-size", "64K"];

/// A run that makes a backup.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    words: &'static [&'static str],
    /// The container exists, so that files get their names one by one.
    is_shared: bool,
}

/// Every codec, full and incremental, in containers that exist and that do not.
pub(crate) const CASES: [Case; 6] = [
    Case { name: "full in its own container", words: &["create", "--compression", "zlib"], is_shared: false },
    Case {
        name: "incremental in a shared container",
        words: &["create", "--incremental", "--compression", "zstd", "--container", "team/one"],
        is_shared: true,
    },
    Case {
        name: "full in a shared container",
        words: &["create", "--compression", "none", "--container", "team/one"],
        is_shared: true,
    },
    Case {
        name: "incremental in its own container",
        words: &["create", "--incremental", "--compression", "bz2"],
        is_shared: false,
    },
    Case {
        name: "full in a container that is new",
        words: &["create", "--compression", "zstd", "--container", "new/one/two"],
        is_shared: false,
    },
    Case {
        name: "consolidated in a shared container",
        words: &["consolidate", "--container", "team/one"],
        is_shared: true,
    },
];

/// The store, the source, and the image of each backup that is there.
pub(crate) struct World {
    folder: tempfile::TempDir,
    pub(crate) images: BTreeMap<String, Vec<u8>>,
    pub(crate) before: Tree,
    /// What the next backup must show.
    pub(crate) source: Vec<u8>,
    tip: String,
}

impl World {
    /// A chain of two in two containers, and a backup of another volume beside its second.
    pub(crate) fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    /// As [`new`](Self::new), in a folder of which `store` may be there.
    pub(crate) fn at(folder: tempfile::TempDir) -> Self {
        fs::create_dir_all(folder.path().join("store")).unwrap();
        let none = Tree::new();
        let mut world =
            Self { folder, images: BTreeMap::new(), before: none, source: Vec::new(), tip: String::new() };
        let mut bytes = mixed(1, IMAGE_BYTES);
        world.set_source(&bytes);
        world.add(&["create", "--volume-id", "other", "--container", "team/one"]);
        world.add(&["create"]);
        bytes[40_000..90_000].copy_from_slice(&mixed(2, 50_000));
        world.set_source(&bytes);
        world.tip = world.add(&["create", "--incremental", "--container", "team/one"]);
        for at in [10_000, 130_000, 250_000] {
            bytes[at..at + 9000].copy_from_slice(&mixed(at as u64, 9000));
        }
        world.set_source(&bytes);
        fs::write(world.store().join("team/one/notes.txt"), "mine").unwrap();
        world.before = tree(&world.store());
        world
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    fn set_source(&mut self, bytes: &[u8]) {
        fs::write(self.image(), bytes).unwrap();
        self.source = bytes.to_vec();
    }

    /// The program with the words of a case.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        command.arg(words[0]).arg(self.store());
        match words[0] {
            "create" => {
                command.arg(self.image()).args(SIZES);
                if !words.contains(&"--volume-id") {
                    command.args(["--volume-id", VOLUME]);
                }
            }
            _ => _ = command.arg(&self.tip).args(&SIZES[2..]),
        }
        command.args(&words[1..]).args(["--threads", "2"]);
        command.env("CINDERFS_CACHE_DIR", self.folder.path().join("cache")).env_remove("CINDERFS_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The newest backup of the chain.
    pub(crate) fn tip(&self) -> String {
        self.tip.clone()
    }

    /// What the program says of a backup.
    pub(crate) fn show(&self, id: &str) -> serde_json::Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cinderfs"));
        let output = command.arg("show").arg(self.store()).args([id, "-f", "json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn run_of(&self, case: &Case) -> Command {
        self.command(case.words)
    }

    /// Makes a backup that stays.
    fn add(&mut self, words: &[&str]) -> String {
        let id = printed_id(&self.command(words).output().unwrap());
        self.images.insert(id.clone(), self.source.clone());
        id
    }

    /// What the case's backup must show.
    fn expected(&self, case: &Case) -> &[u8] {
        if case.words[0] == "create" { &self.source } else { &self.images[&self.tip] }
    }

    /// Fails unless the store lists what it did, and perhaps one backup more, each with its right bytes; what others wrote is as it was,
    /// and no file is in sight that is not of a listed backup. `may_be_half_named`: but for those that a run was giving their names when
    /// it was killed. The id of the new one.
    #[track_caller]
    pub(crate) fn check(&self, case: &Case, may_be_half_named: bool, when: &str) -> Option<String> {
        let new = self.check_listed(&[self.expected(case)], when);
        assert!(new.len() <= 1, "{when}: {new:?}");
        let hidden = hidden_folders(&self.store());
        let dying: Vec<_> = hidden.iter().filter(|name| !name.contains('/')).collect();
        assert!(dying.len() <= 1, "{when}: {dying:?}");
        let mut in_sight: BTreeSet<_> = new.iter().map(String::as_str).collect();
        if may_be_half_named && case.is_shared {
            in_sight.extend(dying.iter().filter_map(|name| name.strip_prefix(".cinderfs-")));
        }
        self.check_files(&in_sight, when);
        new.into_iter().next()
    }

    /// The new backups, each of which must show one of these.
    #[track_caller]
    pub(crate) fn check_listed(&self, expected: &[&[u8]], when: &str) -> Vec<String> {
        let listed = images(&self.store(), when);
        for (id, bytes) in &self.images {
            assert!(listed.get(id) == Some(bytes), "{when}: {id} is not as it was");
        }
        let new = listed.iter().filter(|(id, _)| !self.images.contains_key(*id));
        new.map(|(id, bytes)| {
            assert!(expected.contains(&&**bytes), "{when}: {id} shows another image");
            id.clone()
        })
        .collect()
    }

    /// Fails unless all files were there, but for those of these backups.
    #[track_caller]
    pub(crate) fn check_files(&self, new: &BTreeSet<&str>, when: &str) {
        let now = visible(&self.store());
        for (path, what) in &self.before {
            assert_eq!(now.get(path), Some(what), "{when}: {path}");
        }
        let is_of_new = |path: &str| new.iter().any(|id| path.contains(id));
        let folder_of_new = |path: &String| {
            let below = format!("{path}/");
            now.keys().any(|other| other.starts_with(&below) && is_of_new(other))
        };
        let added = now.iter().filter(|(path, _)| !self.before.contains_key(*path));
        let foreign: Vec<_> = added
            .filter(|(path, (_, content))| !is_of_new(path) && (content.is_some() || !folder_of_new(path)))
            .map(|(path, _)| path)
            .collect();
        assert!(foreign.is_empty(), "{when}: {foreign:?}");
    }

    /// The next run succeeds, and nothing is left of the one before but its backup, if it made one.
    #[track_caller]
    pub(crate) fn check_next_run(&self, made: &[String], when: &str) {
        let output = self.command(&["create", "--container", "team/one"]).output().unwrap();
        let next = printed_id(&output);
        let mut new = self.check_listed(&[&self.source, &self.images[&self.tip]], when);
        new.sort();
        let mut wanted: Vec<_> = made.iter().cloned().chain([next]).collect();
        wanted.sort();
        assert_eq!(new, wanted, "{when}");
        assert_eq!(hidden_folders(&self.store()), BTreeSet::new(), "{when}");
        self.check_files(&new.iter().map(String::as_str).collect(), when);
    }

    /// Takes away what was added.
    pub(crate) fn reset(&self) {
        let now = tree(&self.store());
        for (path, (_, content)) in now.iter().rev().filter(|(path, _)| !self.before.contains_key(*path)) {
            let path = self.store().join(path);
            if content.is_some() { fs::remove_file(path).unwrap() } else { fs::remove_dir(path).unwrap() }
        }
        assert!(tree(&self.store()) == self.before);
    }
}

/// The image of every backup that a store lists, all of its bytes read and verified.
#[track_caller]
fn images(store: &Path, when: &str) -> BTreeMap<String, Vec<u8>> {
    let store = Arc::new(PosixStore::open(store).unwrap());
    let catalog = Catalog::open(store, CatalogOptions { workers: 0, ..CatalogOptions::default() }).unwrap();
    let snapshot = catalog.snapshot();
    let read = snapshot.entries().map(|entry| {
        let image = catalog.image(entry).unwrap_or_else(|error| panic!("{when}: {}: {error}", entry.id));
        assert_eq!(image.verification(), Verification::Sha256, "{when}");
        let mut bytes = vec![0xEE; image.len_bytes() as usize];
        let mut at = 0;
        while at < bytes.len() {
            at += image.read_at(&mut bytes[at..], at as u64).unwrap();
        }
        (entry.id.to_string(), bytes)
    });
    read.collect()
}

/// Of a run that must succeed.
#[track_caller]
pub(crate) fn printed_id(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap().trim_end().to_owned()
}
