//! What `stat` shows of the things in the tree.
//!
//! Rules: nothing has a write bit; a file has the read bits, owner and group of its backup's own metadata file; a folder has
//! an execute bit beside each read bit, and shows nobody what he could not read in the store; all times of a
//! thing are one time.

use std::sync::Arc;
use std::time::SystemTime;

use super::namespace::{Kind, Node};
use crate::catalog::Entry;
use crate::image::Image;
use crate::store::Ownership;

/// Owner and group that `-o uid=,gid=` put on everything.
#[derive(Clone, Copy, Default, Debug)]
pub struct OwnerOverride {
    /// Owner of everything.
    pub uid: Option<u32>,
    /// Group of everything.
    pub gid: Option<u32>,
}

/// What `stat` shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attr {
    /// The kernel's number of it; 0 where the caller sets it.
    pub ino: u64,
    /// Kind of file.
    pub kind: Kind,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Allocated units of 512 bytes.
    pub blocks_512: u64,
    /// Every one of its times.
    pub time: SystemTime,
    /// Permission bits, no write bit among them.
    pub mode: u16,
    /// Links: 1 for files, 2 and one per folder in it for folders.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Attr {
    /// A stand-in for attributes that cannot be had just now.
    pub fn unknown(ino: u64, kind: Kind) -> Self {
        let time = SystemTime::UNIX_EPOCH;
        Self { ino, kind, size_bytes: 0, blocks_512: 0, time, mode: 0, nlink: 1, uid: 0, gid: 0 }
    }
}

impl OwnerOverride {
    pub(super) fn image(&self, entry: &Entry, image: &Arc<Image>) -> Attr {
        let attr = self.file(entry, image.len_bytes());
        Attr { blocks_512: image.allocated_bytes().div_ceil(512), ..attr }
    }

    pub(super) fn file(&self, entry: &Entry, size_bytes: u64) -> Attr {
        let owner = entry.metadata_stat.owner;
        let mode = (owner.mode & 0o444) as u16;
        let blocks_512 = size_bytes.div_ceil(512);
        Attr { kind: Kind::File, size_bytes, blocks_512, mode, nlink: 1, ..self.blank(time_of(entry), owner) }
    }

    pub(super) fn folder(&self, subfolders: usize, time: SystemTime, owner: Ownership) -> Attr {
        let readable = (owner.mode & 0o444) as u16;
        let nlink = u32::try_from(2 + subfolders).unwrap_or(u32::MAX);
        Attr { kind: Kind::Directory, mode: readable | readable >> 2, nlink, ..self.blank(time, owner) }
    }

    pub(super) fn link(&self, node: &Node, time: SystemTime, owner: Ownership) -> Attr {
        let size_bytes = node.target().map_or(0, |target| target.len() as u64);
        Attr { kind: Kind::Link, size_bytes, mode: 0o777, nlink: 1, ..self.blank(time, owner) }
    }

    fn blank(&self, time: SystemTime, owner: Ownership) -> Attr {
        let (uid, gid) = (self.uid.unwrap_or(owner.uid), self.gid.unwrap_or(owner.gid));
        Attr { time, uid, gid, ..Attr::unknown(0, Kind::File) }
    }
}

/// When a backup was made, else when its metadata file was written.
pub(super) fn time_of(entry: &Entry) -> SystemTime {
    let created_at = entry.created_at.map(SystemTime::from);
    created_at.or(entry.metadata_stat.modified).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Who may read all of these: only the bits that all have. Where owners or groups differ it is root's, and the members
/// of root's group are no more than others.
pub(super) fn strictest(owners: impl Iterator<Item = Ownership>) -> Ownership {
    let both = |a: Ownership, b: Ownership| {
        let mode = a.mode & b.mode;
        Ownership {
            mode: if a.gid == b.gid { mode } else { mode & (0o707 | (mode & 0o007) << 3) },
            uid: if a.uid == b.uid { a.uid } else { 0 },
            gid: if a.gid == b.gid { a.gid } else { 0 },
        }
    };
    owners.reduce(both).unwrap_or(Ownership { mode: 0o444, uid: 0, gid: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_shows_only_what_everything_in_it_shows() {
        let owner = |mode, uid, gid| Ownership { mode, uid, gid };
        let all = |owners: &[Ownership]| strictest(owners.iter().copied());
        assert_eq!(all(&[owner(0o640, 7, 8), owner(0o644, 7, 8)]), owner(0o640, 7, 8));
        assert_eq!(all(&[owner(0o640, 7, 8), owner(0o644, 7, 9)]), owner(0o600, 7, 0));
        assert_eq!(all(&[owner(0o644, 7, 8), owner(0o644, 6, 9)]), owner(0o644, 0, 0));
        assert_eq!(all(&[]), owner(0o444, 0, 0));
    }
}
