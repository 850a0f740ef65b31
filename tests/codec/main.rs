//! Does each codec give exactly the plain bytes, and nothing else, whatever is stored?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy.toml allows them in tests but does not see that helpers are tests, too"
)]

mod bz2_restarts;
mod damage;
mod deflate;
mod genuine;
mod kit;
mod restart_fixtures;
mod restart_zstd;
mod streams;
mod zlib_restarts;
