//! What `create` needs to know of its source, and the snapshots it takes, with the kernel's own devices and file systems.
//!
//! Needs root, loop devices, mkfs.ext4, mkfs.xfs and mkfs.btrfs, and fails without them. LVM and ZFS are programs that
//! record how they are called.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests; a panic is the report"
)]

#[path = "create_source/fakes.rs"]
mod fakes;
#[path = "create_source/in_use.rs"]
mod in_use;
#[path = "create_source/kit.rs"]
mod kit;
#[path = "create_source/signals.rs"]
mod signals;
#[path = "create_source/snapshots.rs"]
mod snapshots;
#[path = "create_source/strict_zfs.rs"]
mod strict_zfs;
