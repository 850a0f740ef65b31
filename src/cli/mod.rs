//! (draft)

#[cfg(feature = "fuse")]
pub mod mount;
#[cfg(feature = "fuse")]
pub mod umount;
