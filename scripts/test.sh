#!/usr/bin/env bash
# Runs every test of cinderfs on this machine: formatting, lints, unit, property and damage tests, real mounts, loop
# mounts, real servers (Swift, S3, GlusterFS), the comparison with genuine Cinder, LVM in a virtual machine, the quick start and a short
# benchmark run.
#
#   scripts/test.sh            everything; needs root (mounts, loop devices), /dev/fuse and Debian or Ubuntu
#   scripts/test.sh STEP ...   some steps: packages fmt lint unit services release quickstart cinder vm bench
#
# Nothing is skipped: what a step needs and does not find makes it fail.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

export CARGO_TERM_COLOR=never
# Folders of half-built crates speed up the next build only, which takes place elsewhere; they outgrow what is built.
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}
target=${CARGO_TARGET_DIR:-target}
passed=()
failed=()

# packages: what the tests use beside Rust. Installed only where missing.
packages() {
    local missing=() pair
    for pair in fusermount3:fuse3 qemu-img:qemu-utils mkfs.ext4:e2fsprogs losetup:mount ddrescuelog:gddrescue python3:python3 zstd:zstd \
        setpriv:util-linux getfattr:attr mkfs.btrfs:btrfs-progs mkfs.xfs:xfsprogs bindfs:bindfs; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    [ ${#missing[@]} -eq 0 ] && return 0
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

fmt() { cargo fmt --check; }

lint() {
    cargo clippy --locked --all-targets -- -D warnings &&
        cargo clippy --locked --lib --no-default-features -- -D warnings && # the core needs no FUSE
        RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
}

# A test that hangs fails; whole, it takes some ten minutes on two cores, as long as the build before it.
unit() {
    cargo test --locked --no-run && timeout --kill-after=10 25m cargo test --locked --no-fail-fast
}

# The ignored ones of the same programs, with the servers that they need, which end with it.
services() { timeout --kill-after=2m 15m scripts/services/test.sh; }

release() { cargo build --locked --release; }

quickstart() { CINDERFS=$target/release/cinderfs scripts/quickstart.sh; }

cinder() {
    CINDERFS=$target/release/cinderfs scripts/genuine-cinder/gate.sh &&
        CINDERFS=$target/release/cinderfs scripts/genuine-cinder/records.sh &&
        CINDERFS=$target/release/cinderfs scripts/genuine-cinder/defect.sh
}

# What the kernel here may lack; the stores made there are read by genuine Cinder too.
vm() { CINDERFS=$target/release/cinderfs scripts/vm/run.sh lvm; }

bench() { scripts/bench.sh --quick; }

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(packages fmt lint unit services release quickstart cinder vm bench)
for step in "${steps[@]}"; do
    case $step in
    packages | fmt | lint | unit | services | release | quickstart | cinder | vm | bench) ;;
    *)
        echo "unknown step $step" >&2
        exit 2
        ;;
    esac
    echo "=== $step"
    start=$SECONDS
    if "$step"; then passed+=("$step"); else failed+=("$step"); fi
    echo "=== $step took $((SECONDS - start)) s"
done

leftover=$(grep -c ' - fuse.cinderfs ' /proc/self/mountinfo)
if [ "$leftover" -gt 0 ]; then
    echo "$leftover cinderfs mounts were left behind:" >&2
    grep ' - fuse.cinderfs ' /proc/self/mountinfo >&2
    failed+=(leftover-mounts)
fi
[ ${#failed[@]} -eq 0 ] || echo "failed steps: ${failed[*]}"
echo "steps: ${#passed[@]} passed, ${#failed[@]} failed"
[ ${#failed[@]} -eq 0 ]
