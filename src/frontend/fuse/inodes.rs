//! Inode numbers: which number the kernel knows a node by.
//!
//! A number is the hash of its node, so that it is the same on every mount of the store and in every listing; where two
//! nodes meet in one number (chance, or ids made for it), the later one takes the next free number. The kernel counts
//! the references it holds and gives them back with `forget`; a node nobody refers to leaves the table, so the table is
//! bounded by what the kernel itself keeps in memory.
//!
//! Invariants: one number names one node as long as the kernel knows it; the root is 1 and never leaves. No I/O.

use std::collections::HashMap;

use super::namespace::Node;

/// The root's number, set by the FUSE protocol.
pub const ROOT_INO: u64 = 1;

/// Hashes stay above this, clear of the root and of the numbers that some programs take for special.
const INO_MIN: u64 = 1 << 8;

/// The nodes that the kernel knows.
#[derive(Debug)]
pub struct Inodes {
    nodes: HashMap<u64, Slot>,
    numbers: HashMap<Node, u64>,
}

#[derive(Debug)]
struct Slot {
    node: Node,
    lookups: u64,
}

impl Default for Inodes {
    fn default() -> Self {
        let root = Slot { node: Node::Root, lookups: 1 };
        Self { nodes: HashMap::from([(ROOT_INO, root)]), numbers: HashMap::from([(Node::Root, ROOT_INO)]) }
    }
}

impl Inodes {
    /// The node of a number the kernel knows.
    pub fn node(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(&ino).map(|slot| &slot.node)
    }

    /// How many nodes the kernel knows, the root among them.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The number of a node as a listing shows it, without a reference.
    pub fn number(&self, node: &Node) -> u64 {
        self.numbers.get(node).copied().unwrap_or_else(|| hash(node))
    }

    /// The number of a node that is given to the kernel, which holds one reference more from now on.
    pub fn remember(&mut self, node: &Node) -> u64 {
        self.remember_at(node, hash(node))
    }

    fn remember_at(&mut self, node: &Node, hash: u64) -> u64 {
        if let Some(&ino) = self.numbers.get(node) {
            if let Some(slot) = self.nodes.get_mut(&ino) {
                slot.lookups = slot.lookups.saturating_add(1);
            }
            return ino;
        }
        let mut ino = hash;
        while self.nodes.contains_key(&ino) {
            ino = if ino >= i64::MAX as u64 { INO_MIN } else { ino + 1 };
        }
        self.nodes.insert(ino, Slot { node: node.clone(), lookups: 1 });
        self.numbers.insert(node.clone(), ino);
        ino
    }

    /// Takes back `lookups` references.
    pub fn forget(&mut self, ino: u64, lookups: u64) {
        if ino == ROOT_INO {
            return;
        }
        let Some(slot) = self.nodes.get_mut(&ino) else { return };
        slot.lookups = slot.lookups.saturating_sub(lookups);
        if slot.lookups == 0
            && let Some(slot) = self.nodes.remove(&ino)
        {
            self.numbers.remove(&slot.node);
        }
    }
}

/// FNV-1a over the node's parts. Written out because the standard hasher may change from release to release, and a
/// number must not. 63 bits, for programs that keep inode numbers in signed integers.
fn hash(node: &Node) -> u64 {
    let (tag, parts): (u8, [&str; 3]) = match node {
        Node::Root => return ROOT_INO,
        Node::Backups => (1, [""; 3]),
        Node::Volumes => (2, [""; 3]),
        Node::Names => (3, [""; 3]),
        Node::Backup(id) => (4, [id.as_str(), "", ""]),
        Node::Image(id, version) => (5, [id.as_str(), &version.0, ""]),
        Node::Document(id) => (6, [id.as_str(), "", ""]),
        Node::Volume(id) => (7, [id.as_str(), "", ""]),
        Node::BackupLink { volume, name, backup } => (8, [volume.as_str(), name, backup.as_str()]),
        Node::NameLink { name, volume } => (9, [name, volume.as_str(), ""]),
    };
    // 0xff stands in no UTF-8 text, so it parts the parts.
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0xff]));
    let hash = [tag].into_iter().chain(bytes).fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // FNV's low bits are weaker than its high ones; fold them.
    ((hash ^ (hash >> 29)) & i64::MAX as u64).max(INO_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ObjectVersion;
    use crate::types::BackupId;

    fn backup(id: &str) -> Node {
        Node::Backup(BackupId::parse(id).unwrap())
    }

    #[test]
    fn numbers_are_the_same_on_every_mount() {
        let (mut one, mut other) = (Inodes::default(), Inodes::default());
        other.remember(&backup("first"));
        for node in [Node::Backups, Node::Names, backup("b1")] {
            let listed = one.number(&node);
            assert_eq!(one.remember(&node), listed);
            assert_eq!(other.remember(&node), listed);
        }
        // Pinned: a changed hash changes every mount's numbers.
        assert_eq!(
            (hash(&Node::Backups), hash(&backup("b1"))),
            (6_014_962_441_810_810_804, 7_585_655_278_195_539_492)
        );
        assert_eq!(one.number(&Node::Root), ROOT_INO);
    }

    #[test]
    fn versions_of_an_image_have_different_numbers() {
        let id = BackupId::parse("b1").unwrap();
        let image = |version: &str| Node::Image(id.clone(), ObjectVersion(version.into()));
        assert_ne!(hash(&image("1")), hash(&image("2")));
        assert_ne!(hash(&Node::Backup(id.clone())), hash(&Node::Document(id.clone())));
    }

    #[test]
    fn nodes_that_meet_in_one_number_are_kept_apart() {
        let mut inodes = Inodes::default();
        let (a, b) = (backup("a"), backup("b"));
        let at = 1000;
        assert_eq!(inodes.remember_at(&a, at), 1000);
        assert_eq!(inodes.remember_at(&b, at), 1001);
        assert_eq!((inodes.node(1000), inodes.node(1001)), (Some(&a), Some(&b)));
        // The first leaves; the second keeps its number, and the first, coming back, finds its own place again.
        inodes.forget(1000, 1);
        assert_eq!(inodes.remember_at(&b, at), 1001);
        assert_eq!(inodes.remember_at(&a, at), 1000);
        assert_eq!(inodes.number(&b), 1001);
        // The number after the last one is the first again.
        assert_eq!(inodes.remember_at(&backup("c"), i64::MAX as u64), i64::MAX as u64);
        assert_eq!(inodes.remember_at(&backup("d"), i64::MAX as u64), INO_MIN);
    }

    #[test]
    fn a_node_leaves_with_its_last_reference() {
        let mut inodes = Inodes::default();
        let ino = inodes.remember(&Node::Backups);
        assert_eq!(inodes.remember(&Node::Backups), ino);
        inodes.forget(ino, 1);
        assert!(inodes.node(ino).is_some());
        inodes.forget(ino, 7);
        assert!(inodes.node(ino).is_none());
        assert_eq!((inodes.nodes.len(), inodes.numbers.len()), (1, 1));
        inodes.forget(ino, 1);
        inodes.forget(ROOT_INO, u64::MAX);
        assert_eq!(inodes.node(ROOT_INO), Some(&Node::Root));
    }
}
