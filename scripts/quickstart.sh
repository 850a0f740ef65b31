#!/usr/bin/env bash
# Shows what cinderfs does, with a small store that genuine Cinder wrote: mounts it, copies an image out, compares it
# with the volume that was backed up, looks into it, and cleans up. Changes nothing outside a temporary folder.
#
#   scripts/quickstart.sh                      builds cinderfs first, if it is not built
#   CINDERFS=/usr/bin/cinderfs scripts/quickstart.sh
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
store=$repo/tests/fixtures/stores/ext4
root=no
[ "$(id -u)" -ne 0 ] || root=yes

fail() {
    echo "quickstart: $*" >&2
    exit 1
}

# say TEXT: tells what comes next. show COMMAND ...: prints a command as one would type it, then runs it.
say() { printf '\n# %s\n' "$*"; }
show() {
    local word line='$'
    for word in "$@"; do
        [[ $word == *[[:space:]]* ]] && word="\"$word\""
        line+=" $word"
    done
    echo "$line"
    "$@"
}

# Files, folders and links below $1 as a tree.
draw() {
    local path kind size target depth
    find "$1" -mindepth 1 -printf '%P\t%y\t%s\t%l\n' | LC_ALL=C sort |
        while IFS=$'\t' read -r path kind size target; do
            depth=${path//[^\/]/}
            printf '%*s%s' $((2 + 2 * ${#depth})) '' "${path##*/}"
            case $kind in
            d) echo / ;;
            l) echo " -> $target" ;;
            *) echo "  ($size bytes)" ;;
            esac
        done
}

# --- what is needed -------------------------------------------------------------------------------------------------
PATH=$PATH:/usr/sbin:/sbin # debugfs is there, and not on everybody's path
missing=()
command -v fusermount3 >/dev/null || missing+=(fuse3)
command -v debugfs >/dev/null || missing+=(e2fsprogs)
if [ ${#missing[@]} -gt 0 ]; then
    [ $root = yes ] && command -v apt-get >/dev/null || fail "please install ${missing[*]}"
    echo "installing ${missing[*]} ..."
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null
fi
[ -e /dev/fuse ] || fail "/dev/fuse is missing: load the kernel module fuse, or give the container that device"

if [ -n "${CINDERFS:-}" ]; then
    binary=$(realpath -e -- "$CINDERFS") || fail "CINDERFS=$CINDERFS is not there"
else
    target=${CARGO_TARGET_DIR:-$repo/target}
    echo "building cinderfs (the first time takes a minute or two) ..."
    CARGO_TARGET_DIR=$target cargo build --quiet --locked --release --manifest-path "$repo/Cargo.toml"
    binary=$(realpath -e -- "$target/release/cinderfs")
fi

# --- whatever happens, everything is taken away again ---------------------------------------------------------------
work=$(mktemp -d "${TMPDIR:-/tmp}/cinderfs-quickstart.XXXXXX")
cleanup() {
    local code=$?
    trap - EXIT
    cd /
    ! mountpoint -q "$work/files" || umount "$work/files" || umount --lazy "$work/files" || code=1
    if grep -qF " $work/mnt " /proc/self/mountinfo; then
        "$binary" umount "$work/mnt" || "$binary" umount --lazy "$work/mnt" || code=1
    fi
    # Never into something that is still mounted.
    rm -rf --one-file-system -- "$work" || code=1
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir "$work/bin" "$work/mnt" "$work/files"
ln -s "$binary" "$work/bin/cinderfs"
ln -s "$store" "$work/backups"
PATH=$work/bin:$PATH
cd "$work"

# --- the tour -------------------------------------------------------------------------------------------------------
echo "cinderfs shows every backup of a Cinder store as a read-only disk image."
say "A store that Cinder wrote: one full backup and two incrementals of one volume."
show cinderfs list backups -c ID -c Name -c Incremental -c "Created At"

say "Mount it. Each backup, full or incremental, becomes a whole disk image."
show cinderfs mount backups mnt
echo '$ find mnt   # drawn as a tree'
draw mnt

name=$(ls mnt/names)
image=mnt/names/$name/latest/volume.img
id=$(basename "$(readlink "mnt/names/$name/latest")")

say "Restore the newest backup with dd. Every block is compared with Cinder's own sha256 on the way."
show dd "if=$image" of=disk.img bs=1M status=none
show sha256sum disk.img
expected=$(grep -A4 "\"$id\": {" "$repo/tests/fixtures/stores/expected.json" |
    sed -n 's/.*"sha256": "\([0-9a-f]*\)".*/\1/p')
[ -n "$expected" ] || fail "expected.json does not know backup $id"
restored=$(sha256sum <disk.img)
[ "${restored%% *}" = "$expected" ] || fail "wrong bytes: the volume's sha256 was $expected"
echo "# equal to the volume's sha256 at the time of the backup"

if [ $root = yes ] && losetup --find >/dev/null 2>&1; then
    say "Look into it without restoring anything."
    show mount -o loop,ro,noload "$image" files
    show ls files
    show cat files/etc/hostname
    hostname=$(cat files/etc/hostname)
    show umount files
else
    say "Look into it without restoring anything. Mounting it takes root and a loop device; debugfs takes neither."
    show debugfs -R "ls -p /" "$image" 2>/dev/null
    show debugfs -R "cat /etc/hostname" "$image" 2>/dev/null
    hostname=$(debugfs -R "cat /etc/hostname" "$image" 2>/dev/null)
fi
[ "$hostname" = fixture ] || fail "etc/hostname should hold fixture, not $hostname"

say "Unmount."
show cinderfs umount mnt
