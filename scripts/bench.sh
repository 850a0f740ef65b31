#!/bin/sh
# Builds cinderfs in release mode and measures it; see bench.sh --help and docs/PERFORMANCE.md.
# Work goes to $CINDERFS_BENCH_DIR, else to a fresh directory under /var/tmp that is removed at the end.
set -eu
cd "$(dirname "$0")/.."
case " $* " in *" --help "* | *" -h "*) exec python3 scripts/bench --help ;; esac
cargo build --release --locked --bins --examples >&2
target=${CARGO_TARGET_DIR:-target}/release
exec python3 scripts/bench --cinderfs "$target/cinderfs" --examples "$target/examples" "$@"
