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

# one PROGRAM: runs a test program, in what is left of the step's time, and shows all that it printed at once.
one() {
    local left=$((unit_deadline - $(date +%s))) status=0 printed
    printed=$(mktemp "$unit_folder/printed.XXXXXX") || return
    timeout --kill-after=10 "$((left > 0 ? left : 1))" "$1" >"$printed" 2>&1 || status=$?
    {
        flock 9
        echo "--- ${1##*/} ended with status $status"
        cat "$printed"
        [ $status -eq 0 ] || echo "${1##*/}" >>"$unit_folder/failed"
    } 9>"$unit_folder/turn"
    rm -f "$printed"
}

# A test that hangs fails; whole, it takes some ten minutes on two cores. Three programs run at once, for most tests wait: for disks,
# for servers that do not answer, for daemons. Not more tests of one program: what one has open while it writes, the process
# that a sibling starts has open too for a moment.
unit() {
    local status=0 programs
    unit_folder=$(mktemp -d) && unit_deadline=$(($(date +%s) + 25 * 60)) || return
    export unit_folder unit_deadline
    export -f one
    if cargo test --locked --no-run 2>&1 | tee "$unit_folder/built"; then
        programs=$(sed -n 's/^ *Executable .* (\(.*\))$/\1/p' "$unit_folder/built")
        [ -n "$programs" ] && xargs -P 3 -d '\n' -n 1 bash -c 'one "$1"' one <<<"$programs" || status=1
        timeout --kill-after=10 10m cargo test --locked --doc || status=1
        if [ -s "$unit_folder/failed" ]; then
            echo "failed: $(sort "$unit_folder/failed" | tr '\n' ' ')"
            status=1
        fi
    else
        status=1
    fi
    rm -rf -- "$unit_folder"
    return $status
}

# The ignored ones of the same programs, with the servers that they need, which end with it.
services() { timeout --kill-after=2m 15m scripts/services/test.sh; }

# With what the benchmark needs beside the program, which else were a second build.
release() { scripts/bench.sh --build; }

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
