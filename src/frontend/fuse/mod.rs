//! The mount: every backup of a store as a read-only file, through FUSE.
//!
//! ```text
//!   kernel -> fs        requests and `replies`, panics caught; thin
//!               tree    what a request means: catalog and images on one side, names and inodes on the other
//!               |  \
//!    namespace names inodes attr    pure: which names stand where, which number a node has, what stat shows
//!
//!   hydrated    images that the kernel reads from a file of ours
//!   mount       the options given to the kernel, signals, the end
//!   mountpoint  where a mount may stand        unmount  taking it away, alive or dead
//!   daemon      the background process         unmounter  who does that when the daemon may not
//!   desk        who answers when the store does not     killed     whom the answer does not interest any more
//!   companion   what the unmounter, and the keeper of a share's mount, have in common
//!   options     -o
//! ```
//!
//! Invariants: the kernel caches pages of an image by its inode, and an inode never changes its content: a replaced backup is
//! another inode. Every request is answered, also when serving it panics. What a mount promises to its users stands in
//! `docs/SEMANTICS.md`.

// What `stat` shows.
pub mod attr;
// This program once more, beside a daemon.
mod companion;
// The process that serves a mount in the background.
pub mod daemon;
mod desk;
// Which errno a failure becomes.
pub mod errno;
// FUSE requests, answered from the tree.
pub mod fs;
// Images that lie whole in the cache directory.
pub mod hydrated;
// Who keeps the mount of a share for a daemon.
pub mod keeper;
// Who was killed while he waited.
mod killed;
// Inode numbers.
pub mod inodes;
// Mounting, signals, and the end.
pub mod mount;
// Where a mount may stand.
pub mod mountpoint;
// File names in the tree.
pub mod names;
// Which names stand where.
pub mod namespace;
// `-o`.
pub mod options;
// Their answers.
mod replies;
// What requests mean.
pub mod tree;
// Taking mounts away.
pub mod unmount;
// Who takes the mount away when the daemon may not.
pub mod unmounter;
