//! What the fuzz targets do with their input; the same code runs in every test run (`tests/fuzz_smoke.rs`) and under
//! libFuzzer (`fuzz/`, `scripts/fuzz.sh`).
//!
//! Each target takes bytes that anybody may have written, gives them to one part of the library, and checks more than that
//! it neither panics nor hangs: two ways to the same answer give the same answer, or the answer is that of a naive model.

mod catalog;
mod chains;
mod codecs;
mod documents;
mod files;
mod input;
mod leftovers;
mod lists;
mod names;
#[cfg(feature = "remote")]
mod remote;
mod seeds;
#[cfg(feature = "remote")]
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../http_server.rs"]
mod server;

use input::Input;

/// A target: its name, what it does with an input, and inputs to begin from.
pub struct Target {
    /// As `fuzz/fuzz_targets` has it.
    pub name: &'static str,
    /// Panics when something is wrong.
    pub run: fn(&[u8]),
    /// Out of `tests/fixtures`, most of them.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "metadata", run: documents::metadata, seeds: seeds::metadata },
    Target { name: "digests", run: documents::digests, seeds: seeds::digests },
    Target { name: "points", run: documents::points, seeds: seeds::points },
    Target { name: "range_none", run: codecs::none, seeds: || seeds::streams("none") },
    Target { name: "range_zlib", run: codecs::zlib, seeds: || seeds::streams("zlib") },
    Target { name: "range_bz2", run: codecs::bz2, seeds: || seeds::streams("bz2") },
    Target { name: "range_zstd", run: codecs::zstd, seeds: || seeds::streams("zstd") },
    Target { name: "restart_state", run: codecs::restart_state, seeds: seeds::restart_states },
    Target { name: "seek_index", run: files::seek_index, seeds: seeds::seek_index },
    Target { name: "block_ring", run: files::block_ring, seeds: seeds::operations },
    Target { name: "leftovers", run: leftovers::leftovers, seeds: seeds::leftovers },
    Target { name: "extents", run: chains::extents, seeds: seeds::operations },
    Target { name: "links", run: chains::links, seeds: seeds::operations },
    Target { name: "catalog", run: catalog::catalog, seeds: seeds::catalogs },
    Target { name: "names", run: names::names, seeds: seeds::names },
    Target { name: "changed", run: lists::changed, seeds: seeds::changed },
    Target { name: "record", run: lists::record, seeds: seeds::records },
    Target { name: "cinder_conf", run: lists::cinder_conf, seeds: seeds::cinder_confs },
    #[cfg(feature = "remote")]
    Target { name: "listing", run: remote::listing, seeds: remote::listings },
    #[cfg(feature = "remote")]
    Target { name: "clouds", run: remote::clouds, seeds: remote::clouds_yamls },
    #[cfg(feature = "remote")]
    Target { name: "aws_config", run: remote::aws_config, seeds: remote::aws_configs },
];

/// Runs the target of this name.
#[allow(dead_code, reason = "for fuzz/ alone")]
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    (target.run)(data);
}
