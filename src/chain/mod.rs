//! From a backup to its full one, flattened into one map of extents.
//!
//! Both halves are pure: [`resolve`] follows ids through what a catalog knows, [`extent_map`] paints extents over each
//! other, [`length`] decides where a volume ends. None of them opens an object.

pub mod resolve;
pub mod extent_map;
pub mod length;
