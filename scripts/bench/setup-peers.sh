#!/bin/sh
# Installs what scripts/bench.sh compares cinderfs with. Needs root for the packages; rustic takes minutes to build.
set -eu
apt-get install -y --no-install-recommends qemu-utils qemu-system-common squashfs-tools restic borgbackup python3-pyfuse3 \
    strace fuse3
folder=${CINDERFS_PEERS:-$HOME/.cache/cinderfs/peers}
[ -x "$folder/bin/rustic" ] ||
    cargo install rustic-rs@0.11.3 --locked --no-default-features --features mount --root "$folder"
