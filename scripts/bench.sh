#!/bin/sh
# Builds cinderfs in release mode and measures it; see bench.sh --help and docs/PERFORMANCE.md.
# With --build it only builds. Work goes to $CINDERFS_BENCH_DIR, else to a fresh directory under /var/tmp that is removed at the end.
set -eu
cd "$(dirname "$0")/.."
case " $* " in *" --help "* | *" -h "*) exec python3 scripts/bench --help ;; esac
cargo build --release --locked --bins --example fuse_ceiling --example decode_speed --example hash_ceiling --example restart_points >&2
[ "${1:-}" != --build ] || exit 0
target=${CARGO_TARGET_DIR:-target}/release
exec python3 scripts/bench --cinderfs "$target/cinderfs" --examples "$target/examples" "$@"
