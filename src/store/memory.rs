//! A store in memory, for tests and for stores that a program makes up.
//!
//! Idea: a map from names to shared byte strings. Replacing an object puts another byte string under its name, so that
//! whoever has the old one open goes on reading the old one, as with a file that was renamed over.
//!
//! Invariant: no two contents ever inserted share a version.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::{ListedObject, Listing, ObjectSource, ObjectStat, ObjectVersion, Ownership, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// What an object belongs to until [`MemoryStore::set_owner`] says otherwise: root, readable by all.
const OWNER: Ownership = Ownership { mode: 0o644, uid: 0, gid: 0 };

/// A store in memory. It can be changed while it is shared and read.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: RwLock<BTreeMap<ObjectName, Object>>,
    versions: AtomicU64,
}

/// One object; what [`Store::open`] hands out is a clone, which shares the bytes.
#[derive(Clone, Debug)]
struct Object {
    bytes: Arc<[u8]>,
    stat: ObjectStat,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts an object in, in place of any other of that name (whose owner it keeps).
    pub fn insert(&self, name: ObjectName, bytes: impl Into<Arc<[u8]>>) {
        let bytes = bytes.into();
        let version = self.next_version();
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let owner = objects.get(&name).map_or(OWNER, |old| old.stat.owner);
        let stat = ObjectStat { len_bytes: bytes.len() as u64, version, modified: None, owner };
        objects.insert(name, Object { bytes, stat });
    }

    /// Takes an object out; false if there was none.
    pub fn remove(&self, name: &ObjectName) -> bool {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).remove(name).is_some()
    }

    /// Says who may read an object, and gives it a new version as a change of mode does to a file; false if there is
    /// no such object.
    pub fn set_owner(&self, name: &ObjectName, owner: Ownership) -> bool {
        let version = self.next_version();
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = objects.get_mut(name) else { return false };
        object.stat.owner = owner;
        object.stat.version = version;
        true
    }

    fn next_version(&self) -> ObjectVersion {
        ObjectVersion(self.versions.fetch_add(1, Ordering::Relaxed).to_string().into())
    }
}

impl Store for MemoryStore {
    fn location(&self) -> &str {
        "memory"
    }

    fn list(&self, suffix: &str) -> Result<Listing> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let matching = objects.iter().filter(|(name, _)| name.as_str().ends_with(suffix));
        let objects = matching
            .map(|(name, object)| ListedObject { name: name.clone(), stat: object.stat.clone() })
            .collect();
        Ok(Listing { objects, unreadable: Vec::new() })
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        match objects.get(name) {
            Some(object) => Ok(Arc::new(object.clone())),
            None => Err(Error::new(ErrorKind::ObjectNotFound, format!("there is no object {name:?}"))),
        }
    }
}

impl ObjectSource for Object {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let start = usize::try_from(offset).map_or(self.bytes.len(), |at| at.min(self.bytes.len()));
        let rest = &self.bytes[start..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}
