#!/usr/bin/env bash
# Turns single bits of the genuine stores over and reads every image that this can touch: no byte may be wrong.
#
#   scripts/bit-rot.sh [N] [--seed S] [--write]     N flips (10000); --write puts the figures into docs/RELIABILITY.md
set -euo pipefail
cd "$(dirname "$0")/.."

export CINDERFS_BIT_ROT=10000
while [ $# -gt 0 ]; do
    case $1 in
    --write) export CINDERFS_BIT_ROT_WRITE=1 ;;
    --seed) shift && export CINDERFS_BIT_ROT_SEED=$1 ;;
    [0-9]*) CINDERFS_BIT_ROT=$1 ;;
    *) echo "usage: scripts/bit-rot.sh [N] [--seed S] [--write]" >&2 && exit 2 ;;
    esac
    shift
done
CINDERFS_BIT_ROT_STAMP="$(date -u +%F), $(git describe --always --dirty)"
export CINDERFS_BIT_ROT_STAMP
cargo test --release --test bit_rot -- --nocapture no_flipped_bit
