//! Consumers of images, side by side. None knows of another, and the core knows of none.

pub mod document;
#[cfg(feature = "fuse")]
pub mod fuse;
