//! Consumers of images, side by side.

pub mod document;
pub mod restore;
