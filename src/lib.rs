//! Every OpenStack Cinder volume backup as a verified, read-only disk image.
//!
//! Cinder writes a volume backup as a *container* of compressed *objects* with two JSON documents beside them.
//! This library resolves a chain of such backups on read, decompresses only what is asked for, compares every block
//! with its sha256 and hands out nothing else. The [`writer`] goes the other way: it makes backups that Cinder restores.
//!
//! ```text
//!   front-ends        mount (FUSE)      restore      index, hydrate      list, show
//!                          \               |             |              /
//!   image             Image: len, read_at, seek_hole; one virtual disk of one backup
//!                       |            |             |
//!   verify            chain        block        object
//!                     extent map   cache by     plain ranges out of
//!                     newest wins  sha256       compressed bytes
//!                       |                          |
//!   meaning           backup: metadata, digests  codec: none zlib bz2 zstd
//!                       |                          |
//!   bytes             format: JSON as Cinder writes it
//!                       |                          |
//!   place             store: list and open objects beneath one root
//! ```
//!
//! # Vocabulary
//!
//! | word | meaning |
//! | --- | --- |
//! | store | where containers live: a directory, later an object store |
//! | container | a folder or bucket; holds the objects of one or more backups |
//! | object | one named byte string in a store; Cinder's "chunk" is a data object |
//! | backup | what one `_metadata` document describes: objects, digests, a parent or none |
//! | chain | a backup, its parent, and so on to a full backup |
//! | extent | a range of the volume that one object holds |
//! | block | the unit of the sha256 digests, 32 KiB unless configured otherwise |
//! | image | the whole volume as of one backup |
//! | restart point | a place inside an object's stream from which decoding may start |
//! | stretch | what lies between two neighbouring restart points |
//!
//! # Example
//!
//! ```
//! use std::{path::Path, sync::Arc};
//! use cinderfs::{catalog::{Catalog, CatalogOptions}, store::posix::PosixStore};
//!
//! # fn main() -> cinderfs::Result<()> {
//! let store = PosixStore::open(Path::new("tests/fixtures/stores/ext4"))?;
//! let catalog = Catalog::open(Arc::new(store), CatalogOptions::default())?;
//! let snapshot = catalog.snapshot();
//! let newest = snapshot.entries().next_back().expect("the store holds three backups");
//! let image = catalog.image(newest)?;
//!
//! // The magic number of ext4, at 56 bytes in its superblock. Whatever is read has been verified.
//! let mut magic = [0; 2];
//! image.read_at(&mut magic, 1024 + 56)?;
//! assert_eq!(magic, [0x53, 0xef]);
//! # Ok(())
//! # }
//! ```

// Offsets and lengths are `u64` on disk and `usize` in memory; the code converts between them freely.
const _: () = assert!(size_of::<usize>() == size_of::<u64>(), "cinderfs needs a 64-bit target");

// Newtypes for what could be swapped: ids, names, digests.
pub mod types;
// What can go wrong, with the rules for saying so.
pub mod error;
// What binary words are written as in texts of others.
mod base64;
mod byte_lru;
mod expendable;
mod in_order;
mod open_files;
mod scratch;
mod waiting;
// Locks, which the tests can put on a made-up scheduler.
mod sync;
// Threads for work that nobody waits for.
pub mod workers;
// A process that gives up what it does not need any more.
#[cfg(feature = "fuse")]
pub mod sandbox;
// -- read path, from the bytes at rest to the reader --
// What a cinder.conf says about backups.
pub mod cinder_conf;
// Where containers live.
pub mod store;
// Compressed streams: none, zlib, bz2, zstd.
pub mod codec;
// The bytes Cinder writes: names, `_metadata`, `_sha256file`.
pub mod format;
// What is kept between runs: restart points, verified blocks, whole images.
pub mod cache_dir;
// One opened backup: metadata, digests and objects, checked against each other.
pub mod backup;
// From a backup to its full one, flattened into one map of extents.
pub mod chain;
// Blocks that are proven right, and the cache of them.
pub mod block;
// Plain ranges out of compressed objects.
pub mod object;
// The virtual disk, the one type that front-ends see.
pub mod image;
// Which backups a store holds, and which are unusable and why.
pub mod catalog;
// Consumers of images, side by side.
pub mod frontend;
// -- write path, from the volume to the bytes at rest --
// Backups that genuine Cinder restores.
pub mod writer;
// The command line; the only module that prints.
pub mod cli;

pub use error::{Error, ErrorKind, Result};
