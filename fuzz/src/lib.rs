//! What the targets do, which is the same code as `tests/fuzz_smoke.rs` runs in every test run.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is the report")]

#[path = "../../tests/common/fuzz/mod.rs"]
pub mod bodies;
