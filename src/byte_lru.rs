//! Least recently used first, bounded in bytes.
//!
//! The `lru` crate counts entries; what we keep (blocks, opened backups, images, computed digests) differs in size by a
//! factor of millions, so the bound that matters is one of memory.

use std::hash::Hash;

use lru::LruCache;

/// A map that drops its least recently used entries when their costs exceed a bound.
pub(crate) struct ByteLru<K: Hash + Eq, V> {
    entries: LruCache<K, (V, u64)>,
    bytes: u64,
    bytes_max: u64,
}

impl<K: Hash + Eq, V> ByteLru<K, V> {
    /// Holds entries of at most `bytes_max` bytes together.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0, bytes_max }
    }

    /// The value under `key`, now the most recently used.
    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Keeps a value that costs `cost` bytes, unless that alone exceeds the bound.
    pub(crate) fn insert(&mut self, key: K, value: V, cost: u64) {
        if cost > self.bytes_max {
            self.remove(&key);
            return;
        }
        if let Some((_, old)) = self.entries.put(key, (value, cost)) {
            self.bytes -= old;
        }
        self.bytes += cost;
        while self.bytes > self.bytes_max {
            let Some((_, (_, old))) = self.entries.pop_lru() else { break };
            self.bytes -= old;
        }
    }

    /// Forgets `key`; what was kept under it, for who drops that elsewhere.
    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (value, cost) = self.entries.pop(key)?;
        self.bytes -= cost;
        Some(value)
    }

    /// What all entries cost, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_make_room() {
        let mut lru = ByteLru::new(10);
        let held = |lru: &mut ByteLru<_, i32>| ["a", "b", "c"].map(|key| lru.get(&key).copied());
        lru.insert("a", 1, 4);
        lru.insert("b", 2, 4);
        assert_eq!(lru.get(&"a"), Some(&1));
        lru.insert("c", 3, 4);
        assert_eq!(held(&mut lru), [Some(1), None, Some(3)]);
        lru.insert("a", 5, 6);
        assert_eq!((held(&mut lru), lru.bytes()), ([Some(5), None, Some(3)], 10));
        lru.insert("a", 6, 11);
        assert_eq!((held(&mut lru), lru.bytes()), ([None, None, Some(3)], 4));
    }
}
