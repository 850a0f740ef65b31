//! Backups that genuine Cinder restores, chains onto and imports.
//!
//! Problem: a volume is read once, at the speed of all cores, and becomes objects of one stream each. Idea: it is cut into
//! pieces of up to a megabyte that are read, hashed and compressed each by itself on any thread, and only put together in
//! order.
//!
//! Invariant: memory is that of the pieces in flight, whatever the length of the volume or of an object.

// Pieces of plain bytes to the stored bytes of an object.
pub mod encode;
