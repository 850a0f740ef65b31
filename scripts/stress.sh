#!/usr/bin/env bash
# Lets 24 readers read some 50 images of a mount, in every way there is, while others add to the store and delete from it: every byte is compared.
#
#   scripts/stress.sh [MINUTES] [--write]     so long with a disk cache and so long without (10); --write puts the figures into docs/RELIABILITY.md
#
# Needs root and /dev/fuse.
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=10
while [ $# -gt 0 ]; do
    case $1 in
    --write) export CINDERFS_STRESS_WRITE=1 ;;
    [0-9]*) minutes=$1 ;;
    *) echo "usage: scripts/stress.sh [MINUTES] [--write]" >&2 && exit 2 ;;
    esac
    shift
done
export CINDERFS_STRESS_SECONDS=$((minutes * 60))
cargo test --release --test stress -- --nocapture --test-threads 1
