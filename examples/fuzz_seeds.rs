//! Writes what `scripts/fuzz.sh` begins from: `fuzz_seeds FOLDER` puts a folder of files there for each target.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a tool of scripts/fuzz.sh")]
#![allow(missing_docs, unreachable_pub, reason = "the kit of the targets is no library")]

#[path = "../tests/common/fuzz/mod.rs"]
mod bodies;

use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(std::env::args_os().nth(1).unwrap());
    for target in bodies::TARGETS {
        let folder = root.join(target.name);
        std::fs::create_dir_all(&folder).unwrap();
        let seeds = (target.seeds)();
        for (n, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n:03}")), seed).unwrap();
        }
        println!("{}", target.name);
    }
}
