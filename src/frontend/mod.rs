//! Consumers of images, side by side.

pub mod audit;
pub mod diff;
pub mod document;
#[cfg(feature = "fuse")]
pub mod fuse;
pub mod hydrate;
pub mod index;
pub mod map;
pub mod restore;
pub mod verify;
