//! When each object of a store was verified last.
//!
//! ```text
//!   verify/<store>.stamps    "cinderfs verified 1\n", then a record for each object, sorted, then the sha256 of all before
//!   record, 24 bytes         16 of a digest of name, length and time of modification; 8: seconds since 1970 * 2 + is it good
//! ```
//!
//! Problem: a run each night verifies a part of the store, and must know what the others did; the store itself is only ever read.
//! Idea: a stamp for each object, filed under what it is, so that an object that was changed since has none. A stamp is advice: it
//! decides what is verified first, and who loses it loses time.
//!
//! Invariants: a file that is torn, damaged or foreign is as good as none; memory and file have a bound ([`STAMPS_MAX`]); the file
//! is replaced as a whole.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use super::CacheDir;
use super::part::Part;
use crate::error::{Error, ErrorKind, Result};
use crate::store::ObjectStat;
use crate::types::ObjectName;

/// The folder in the cache directory.
pub(super) const PART: &str = "verify";

/// Most objects that have stamps: as many names as a store is listed with. 48 MB on disk, about 80 in memory.
const STAMPS_MAX: usize = 2_000_000;

const MAGIC: &[u8] = b"cinderfs verified 1\n";
const KEY_BYTES: usize = 16;
const RECORD_BYTES: usize = KEY_BYTES + 8;
const CHECK_BYTES: usize = 32;

type Key = [u8; KEY_BYTES];

/// When an object was checked, and how that ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// In seconds since 1970.
    pub at: u64,
    /// Whether nothing was wrong with it.
    pub is_good: bool,
}

/// The stamps of one store.
#[derive(Debug)]
pub struct Verified {
    part: Part,
    name: String,
    stamps: Mutex<HashMap<Key, u64>>,
}

impl Verified {
    /// Those of the store in the directory `store`. The errors are those of [`CacheDir::open`].
    pub fn open(dir: &CacheDir, store: &Path) -> Result<Self> {
        let part = dir.part(PART)?;
        let store = fs::canonicalize(store).unwrap_or_else(|_| store.to_owned());
        let digest = Sha256::digest(store.as_os_str().as_encoded_bytes());
        let name: String = digest.iter().take(KEY_BYTES).map(|byte| format!("{byte:02x}")).collect();
        let verified = Self { part, name: format!("{name}.stamps"), stamps: Mutex::default() };
        let known = verified.read().unwrap_or_default();
        *verified.lock() = known;
        Ok(verified)
    }

    /// An object's stamp, unless it has changed since.
    pub fn get(&self, name: &ObjectName, stat: &ObjectStat) -> Option<Stamp> {
        let word = *self.lock().get(&key(name, stat))?;
        Some(Stamp { at: word >> 1, is_good: word & 1 == 1 })
    }

    /// Gives an object a stamp. Beyond the bound it goes without.
    pub fn set(&self, name: &ObjectName, stat: &ObjectStat, stamp: Stamp) {
        let mut stamps = self.lock();
        let key = key(name, stat);
        if stamps.len() < STAMPS_MAX || stamps.contains_key(&key) {
            stamps.insert(key, stamp.at << 1 | u64::from(stamp.is_good));
        }
    }

    /// Forgets all objects but these.
    pub fn keep_only<'a>(&self, objects: impl Iterator<Item = (&'a ObjectName, &'a ObjectStat)>) {
        let mut stamps = self.lock();
        let mut kept = HashMap::with_capacity(stamps.len());
        for (name, stat) in objects {
            let key = key(name, stat);
            if let Some(word) = stamps.get(&key) {
                kept.insert(key, *word);
            }
        }
        *stamps = kept;
    }

    /// Writes them down. [`ErrorKind::Target`] when the disk does not take them.
    pub fn save(&self) -> Result<()> {
        let mut records: Vec<(Key, u64)> = self.lock().iter().map(|(key, word)| (*key, *word)).collect();
        records.sort_unstable();
        let mut bytes = Vec::with_capacity(MAGIC.len() + records.len() * RECORD_BYTES + CHECK_BYTES);
        bytes.extend_from_slice(MAGIC);
        for (key, word) in records {
            bytes.extend_from_slice(&key);
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let check = Sha256::digest(&bytes);
        bytes.extend_from_slice(&check);
        let temporary = self.part.create(&self.name)?;
        temporary.file().write_all(&bytes).map_err(|error| {
            let message = format!("cannot write down in {:?} what was verified", self.part.path());
            Error::caused_by(ErrorKind::Target, message, error)
        })?;
        temporary.publish(&self.name)
    }

    /// `None` where there is no file, or none of use.
    fn read(&self) -> Option<HashMap<Key, u64>> {
        let (file, metadata) = self.part.open_file(&self.name).ok()?;
        let bytes_max = MAGIC.len() + STAMPS_MAX * RECORD_BYTES + CHECK_BYTES;
        if metadata.len() > bytes_max as u64 {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(bytes_max as u64).read_to_end(&mut bytes).ok()?;
        let (body, check) = bytes.split_at(bytes.len().checked_sub(CHECK_BYTES)?);
        if Sha256::digest(body).as_slice() != check {
            return None;
        }
        let records = body.strip_prefix(MAGIC)?.chunks_exact(RECORD_BYTES);
        let record = |record: &[u8]| {
            let (key, word) = record.split_at(KEY_BYTES);
            Some((Key::try_from(key).ok()?, u64::from_le_bytes(word.try_into().ok()?)))
        };
        records.map(record).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, u64>> {
        self.stamps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an object is. Not the device and inode: the first changes with each mount of a share, the second with each copy.
fn key(name: &ObjectName, stat: &ObjectStat) -> Key {
    let mut hasher = Sha256::new();
    hasher.update((name.as_str().len() as u64).to_le_bytes());
    hasher.update(name.as_str());
    hasher.update(stat.len_bytes.to_le_bytes());
    match stat.modified.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
        Some(at) => hasher.update(at.as_nanos().to_le_bytes()),
        None => hasher.update(stat.version.0.as_bytes()),
    }
    let digest: [u8; 32] = hasher.finalize().into();
    std::array::from_fn(|index| digest[index])
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::store::{ObjectVersion, Ownership};

    fn stat(len_bytes: u64, seconds: u64) -> ObjectStat {
        ObjectStat {
            len_bytes,
            version: ObjectVersion("v".into()),
            modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
            owner: Ownership { mode: 0o600, uid: 0, gid: 0 },
        }
    }

    // > Stamps are advice: losing them, or finding them damaged, costs time and nothing else.
    #[test]
    fn stamps_outlive_the_process_and_not_a_change() {
        let root = tempfile::tempdir().unwrap();
        let dir = CacheDir::open(&root.path().join("cache")).unwrap();
        let name = |name: &str| ObjectName::parse(name).unwrap();
        let stamp = Stamp { at: 1_700_000_000, is_good: false };
        let open = || Verified::open(&dir, root.path()).unwrap();
        let verified = open();
        assert_eq!(verified.get(&name("a"), &stat(1, 1)), None);
        verified.set(&name("a"), &stat(1, 1), stamp);
        verified.set(&name("b"), &stat(1, 1), Stamp { is_good: true, ..stamp });
        verified.save().unwrap();
        let again = open();
        assert_eq!(again.get(&name("a"), &stat(1, 1)), Some(stamp));
        assert_eq!(again.get(&name("b"), &stat(1, 1)), Some(Stamp { is_good: true, ..stamp }));
        for changed in [stat(2, 1), stat(1, 2)] {
            assert_eq!(again.get(&name("a"), &changed), None);
        }
        assert_eq!(
            Verified::open(&dir, &root.path().join("other")).unwrap().get(&name("a"), &stat(1, 1)),
            None
        );
        again.keep_only([(&name("b"), &stat(1, 1))].into_iter());
        again.save().unwrap();
        assert_eq!(open().get(&name("a"), &stat(1, 1)), None);
        assert!(open().get(&name("b"), &stat(1, 1)).is_some());
        let file = fs::read_dir(dir.path().join(PART)).unwrap().next().unwrap().unwrap().path();
        let good = fs::read(&file).unwrap();
        for damage in 0..good.len() {
            let mut bytes = good.clone();
            bytes[damage] ^= 1;
            fs::write(&file, &bytes).unwrap();
            assert_eq!(open().get(&name("b"), &stat(1, 1)), None, "byte {damage}");
            fs::write(&file, &good[..damage]).unwrap();
            assert_eq!(open().get(&name("b"), &stat(1, 1)), None, "cut at {damage}");
        }
    }
}
