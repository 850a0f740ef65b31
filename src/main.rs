//! The `cinderfs` command: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    cinderfs::cli::main()
}
