//! A copy of a genuine store, and the true bytes of its backups.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use cinderfs::catalog::{Catalog, CatalogOptions};
use cinderfs::store::posix::PosixStore;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::case::{Case, Verdict};

/// What `expected.json` says of a backup.
#[derive(Clone, Debug)]
pub(crate) struct Fixture {
    pub(crate) order: u64,
    pub(crate) id: String,
    pub(crate) volume_id: String,
    pub(crate) container: String,
    pub(crate) prefix: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// What an image holds.
#[derive(Clone)]
pub(crate) enum Truth {
    Bytes(Arc<Vec<u8>>),
    /// So many zeros.
    Zeros(u64),
}

/// A store that may be damaged.
pub(crate) struct World {
    /// Holds the store, and what lies beside it.
    folder: TempDir,
    pub(crate) fixtures: Vec<Fixture>,
    /// By backup id.
    pub(crate) truth: BTreeMap<String, Truth>,
}

fn stores() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores")
}

impl Fixture {
    /// The backups of a genuine store, in the order they were made.
    pub(crate) fn all_of(store: &str) -> Vec<Self> {
        static EXPECTED: OnceLock<Value> = OnceLock::new();
        let expected = EXPECTED.get_or_init(|| {
            serde_json::from_slice(&fs::read(stores().join("expected.json")).unwrap()).unwrap()
        });
        let backups = expected[store]["backups"].as_object().unwrap_or_else(|| panic!("no store {store:?}"));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut all: Vec<_> = backups
            .iter()
            .map(|(id, backup)| Self {
                order: backup["order"].as_u64().unwrap(),
                id: id.clone(),
                volume_id: text(&backup["volume_id"]),
                container: text(&backup["container"]),
                prefix: text(&backup["prefix"]),
                bytes: backup["bytes"].as_u64().unwrap(),
                sha256: text(&backup["sha256"]),
            })
            .collect();
        all.sort_by_key(|fixture| fixture.order);
        all
    }
}

impl Truth {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zeros(len) => *len,
        }
    }

    /// Whether `bytes` are what must be at `offset`.
    pub(crate) fn has(&self, offset: u64, bytes: &[u8]) -> bool {
        match self {
            Self::Bytes(all) => all.get(offset as usize..offset as usize + bytes.len()) == Some(bytes),
            Self::Zeros(len) => offset + bytes.len() as u64 <= *len && bytes.iter().all(|&byte| byte == 0),
        }
    }

    /// Whether `len` zeros are what must be at `offset`.
    pub(crate) fn has_zeros(&self, offset: u64, len: u64) -> bool {
        match self {
            Self::Bytes(all) => all
                .get(offset as usize..(offset + len) as usize)
                .is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0)),
            Self::Zeros(all) => offset + len <= *all,
        }
    }
}

/// The true images of a genuine store, each checked against `expected.json`; read once for all cases.
fn truth_of(store: &str) -> BTreeMap<String, Truth> {
    static KNOWN: OnceLock<Mutex<HashMap<String, BTreeMap<String, Truth>>>> = OnceLock::new();
    let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap();
    if let Some(known) = known.get(store) {
        return known.clone();
    }
    let opened = Arc::new(PosixStore::open(&stores().join(store)).unwrap());
    let catalog = Catalog::open(opened, CatalogOptions::default()).unwrap();
    let mut truth = BTreeMap::new();
    for fixture in Fixture::all_of(store) {
        let image = catalog.image(catalog.snapshot().get(&fixture.id).unwrap()).unwrap();
        let mut bytes = vec![0; image.len_bytes() as usize];
        assert_eq!(image.read_at(&mut bytes, 0).unwrap() as u64, fixture.bytes, "{store} {}", fixture.id);
        assert_eq!(hex(&Sha256::digest(&bytes)), fixture.sha256, "{store} {}", fixture.id);
        truth.insert(fixture.id, Truth::Bytes(Arc::new(bytes)));
    }
    known.insert(store.into(), truth.clone());
    truth
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}

impl World {
    pub(crate) fn of(case: &Case) -> Self {
        let folder = tempfile::Builder::new().prefix(&format!("damage-{}-", case.name)).tempdir().unwrap();
        let world = Self { folder, fixtures: Fixture::all_of(&case.store), truth: truth_of(&case.store) };
        copy(&stores().join(&case.store), &world.root());
        fs::create_dir(world.outside()).unwrap();
        world
    }

    /// The store.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// A folder beside the store.
    pub(crate) fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    /// A path beside the store, for results.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn fixture(&self, order: u64) -> &Fixture {
        self.fixtures
            .iter()
            .find(|fixture| fixture.order == order)
            .unwrap_or_else(|| panic!("no backup {order}"))
    }

    /// The backup and the suffix in `@1-00001`; `None` for a path.
    pub(crate) fn owner<'a>(&self, file: &'a str) -> Option<(&Fixture, &'a str)> {
        let rest = file.strip_prefix('@')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some((self.fixture(rest[..digits].parse().unwrap()), &rest[digits..]))
    }

    /// Where a file of a case is.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        match self.owner(file) {
            Some((fixture, "/")) => self.root().join(&fixture.container),
            Some((fixture, suffix)) => {
                self.root().join(&fixture.container).join(format!("{}{suffix}", fixture.prefix))
            }
            None => self.root().join(file),
        }
    }

    /// Each backup's id and what must become of it.
    pub(crate) fn verdicts(&self, case: &Case) -> Vec<(String, Verdict)> {
        let mut all: Vec<_> =
            self.fixtures.iter().map(|fixture| (fixture.id.clone(), case.of(fixture.order))).collect();
        for (key, verdict) in &case.verdict {
            if key.parse().is_ok_and(|order: u64| self.fixtures.iter().any(|f| f.order == order)) {
                continue;
            }
            all.push((key.clone(), verdict.clone()));
        }
        all
    }
}
