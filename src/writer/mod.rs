//! Backups that genuine Cinder restores, chains onto and imports.
//!
//! Problem: a volume is read once, at the speed of all cores, and becomes objects of one stream each; the backup must be
//! restorable years later by programs that check little; and the run that makes it may be killed at any moment. Idea: the volume
//! is cut into pieces of up to a megabyte that are read, hashed and compressed each by itself on any thread, and only put
//! together in order; what is written is exactly what Cinder writes, and nothing of it is seen until all of it is there.
//!
//! Invariant: memory is that of the pieces in flight, whatever the length of the volume or of an object.

// Pieces of plain bytes to the stored bytes of an object.
pub mod encode;
// Nothing of a backup is visible until all of it is there.
pub mod staging;
// Objects put into a store behind HTTP; seen when the last one is there.
pub mod upload;
// What the pipeline needs of either.
mod destination;
// What is backed up: a device or an image file.
pub mod source;
// Which ranges of it must be read.
mod ranges;
// All cores on one volume, its objects in order.
mod pipeline;
// All files of one backup, written and published.
mod files;
// One new backup: its parent, its names, its pipeline, its publishing.
pub mod create;
// A full backup out of a chain, which needs its ancestors no more.
pub mod consolidate;
// A source that holds still while it is read.
pub mod snapshot;
// Backups leave a store, children before parents.
pub mod delete;
// A damaged backup mended out of copies that the store holds elsewhere.
pub mod repair;
// A backup's row in Cinder's database, made from the store alone.
pub mod records;

pub use self::destination::Target;
