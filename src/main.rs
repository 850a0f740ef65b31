//! The `cinderfs` command: parse, run, exit code.

fn main() {}
