#!/usr/bin/env bash
# Runs a payload as root in a virtual machine, for what the kernel of this machine may lack (device-mapper, a client of
# NFS): Debian's cloud kernel in QEMU, emulated in software, with nothing but an initramfs. Takes about 10 s beside the payload.
#
#   scripts/vm/run.sh lvm                       the folder scripts/vm/lvm
#   CINDERFS=/usr/bin/cinderfs scripts/vm/run.sh lvm
#   VM_KEEP=1 scripts/vm/run.sh lvm             leaves the work folder, and names it
#   scripts/vm/run.sh nfs --write               writes what was shown into docs/transcripts/nfs.txt, if all of it was
#
# A payload is a folder with these files; the README there describes them:
#   vm.conf   what it needs: packages, programs, modules, disks, ports; read by bash
#   run       runs in the machine; its exit status is ours
#   check     if there: runs here afterwards, with the folder that the machine left in /out as its argument
#
# Exit status: the payload's; 124 when time ran out, 125 when the machine ended without a word.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
PATH=$PATH:/usr/sbin:/sbin

fail() {
    echo "vm: $*" >&2
    exit 1
}

[ $# -eq 1 ] || [ "$#:${2:-}" = 2:--write ] || fail "usage: scripts/vm/run.sh PAYLOAD [--write]"
transcript=${2:+$repo/docs/transcripts/$1.txt}
commit=$([ -z "$transcript" ] || git -C "$repo" log -1 --format='commit %h of %cs')
payload=$here/$1
[ -x "$payload/run" ] && [ -r "$payload/vm.conf" ] || fail "$payload is no payload: it needs run and vm.conf"

# What a payload may ask for.
packages=() # Debian packages to install here, where a program of theirs is missing
programs=() # programs of this machine, copied with their libraries; cinderfs is always there
tests=()    # test programs of this project, built here; /usr/bin/NAME in the machine
unpacked=() # Debian packages laid out in the machine without being installed here
files=()    # other files of this machine
modules=()  # kernel modules, loaded before `run` starts
disks=()    # NAME=SIZE: empty disks, which `run` finds as $disk_NAME
ports=()    # PORT:HOST_PORT: 10.0.2.100:PORT in the machine is 127.0.0.1:HOST_PORT here; there is no other network
memory=768M
seconds_max=600
# shellcheck disable=SC1091
. "$payload/vm.conf"

missing=()
for pair in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static cpio:cpio; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
! ldd "$(command -v busybox)" >/dev/null 2>&1 || missing+=(busybox-static) # init must not need libraries
for program in "${programs[@]}"; do
    command -v "$program" >/dev/null || missing+=("${packages[@]}")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "vm: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null
fi

cinderfs=${CINDERFS:-${CARGO_TARGET_DIR:-$repo/target}/release/cinderfs}
[ -x "$cinderfs" ] || fail "no cinderfs at $cinderfs: build it with cargo build --release, or tell with CINDERFS"
cinderfs=$(realpath -- "$cinderfs")

work=$(mktemp -d "${TMPDIR:-/tmp}/cinderfs-vm.XXXXXX")
cleanup() {
    if [ -n "${VM_KEEP:-}" ]; then echo "vm: the work folder is $work"; else rm -rf -- "$work"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# --- the kernel: unpacked from its package, which is not installed ----------------------------------------------------
chmod 755 "$work" # apt's own user downloads
mkdir -m 777 "$work/deb"
mkdir "$work/kernel"
# The files of a package, as a tar.
download() {
    local folder
    folder=$(mktemp -d "$work/deb/XXXXXX")
    chmod 777 "$folder"
    (cd "$folder" && { apt-get download -qq "$1" 2>/dev/null || { apt-get update -qq && apt-get download -qq "$1"; }; }) ||
        fail "cannot download the package $1"
    dpkg-deb --fsys-tarfile "$folder"/*.deb
}
# The package with the kernel itself, which the one without a version depends on.
find_kernel() {
    kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n '/.*Depends: \(linux-image-[0-9].*\)/ { s//\1/p; q }' || true)
    [ -n "$kernel" ]
}
find_kernel || { apt-get update -qq && find_kernel; } || fail "apt knows no linux-image-cloud-amd64"
download "$kernel" >"$work/kernel.tar"
tar -xf "$work/kernel.tar" -C "$work/kernel"
for place in "$work"/kernel/lib/modules "$work"/kernel/usr/lib/modules; do
    [ -d "$place" ] && version=$(ls "$place") && place=$place/$version && break
done
[ "$place" = "$work/kernel/lib/modules/$version" ] || ln -s usr/lib "$work/kernel/lib"
busybox depmod -b "$work/kernel" "$version"

# --- the initramfs ----------------------------------------------------------------------------------------------------
root=$work/root
mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,dev,proc,sys,tmp,run,etc,mnt,out,root}
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
cp -L "$(command -v busybox)" "$root/usr/bin/busybox"
install -m 755 "$here/init" "$root/init"
cp -rL "$payload" "$root/payload"
cp "$here/checks.sh" "$root/payload/"

# A module and what it depends on, from modules.dep: `kernel/…/NAME.ko: kernel/…/OTHER.ko …`.
add_module() {
    local name=${1//-/_} line file
    line=$(awk -F: -v name="$name" \
        '{ file = $1; sub(/.*\//, "", file); sub(/\.ko.*/, "", file); gsub(/-/, "_", file); if (file == name) { print; exit } }' \
        "$place/modules.dep")
    if [ -z "$line" ]; then
        tr - _ <"$place/modules.builtin" | grep -q "/$name\.ko" || fail "the kernel $version has no module $1"
        return
    fi
    for file in ${line/:/}; do install -D -m 644 "$place/$file" "$root/lib/modules/$version/$file"; done
}
modules=(virtio_pci virtio_blk "${modules[@]}")
[ ${#ports[@]} -eq 0 ] || modules+=(virtio_net)
for module in "${modules[@]}"; do add_module "$module"; done
cp "$place"/modules.{dep,builtin} "$root/lib/modules/$version/"
printf '%s\n' "${modules[@]}" >"$root/etc/vm-modules"

# The libraries of a program; a static one has none. What was unpacked counts more than what is here.
add_libraries() {
    local library
    { LD_LIBRARY_PATH=$root/usr/lib/$(uname -m)-linux-gnu ldd "$1" 2>/dev/null || true; } |
        sed -n 's/^[^/]*\(\/[^ ]*\).*/\1/p' | while read -r library; do
        [[ $library = "$root"/* ]] || [ -e "$root$library" ] || install -D -m 755 "$(realpath -- "$library")" "$root$library"
    done
}
# A program at the same place as here, its name perhaps a link, with its libraries.
add_program() { # PROGRAM [PLACE]
    local real
    real=$(realpath -- "$1")
    install -D -m 755 "$real" "$root${2:-$real}"
    [ -n "${2:-}" ] || [ "$real" = "$1" ] || [ -e "$root$1" ] || ln -s "$real" "$root$1"
    add_libraries "$real"
}
unpacked_programs=()
for package in "${unpacked[@]}"; do
    download "$package" >"$work/package.tar"
    tar -xf "$work/package.tar" -C "$root" --keep-directory-symlink
    while read -r program; do unpacked_programs+=("$root$program"); done < <(
        tar -tf "$work/package.tar" | sed -n 's/^\.\(.*\/s\?bin\/.*[^/]\)$/\1/p'
    )
done
for program in "${unpacked_programs[@]}"; do add_libraries "$program"; done
for program in "${programs[@]}"; do add_program "$(command -v "$program")"; done
add_program "$cinderfs" /usr/bin/cinderfs
for name in "${tests[@]}"; do
    test=$(cd "$repo" && cargo test --quiet --locked --test "$name" --no-run --message-format=json 2>/dev/null |
        sed -n "s|.*\"executable\":\"\([^\"]*/$name-[^\"]*\)\".*|\1|p")
    [ -x "$test" ] || fail "cargo test --test $name --no-run makes no program"
    add_program "$test" "/usr/bin/$name"
done
for file in "${files[@]}"; do install -D -m 644 "$file" "$root$file"; done

letters=(a b c d e f g h)
drives=()
add_disk() { # NAME SIZE
    truncate -s "$2" "$work/$1.img"
    echo "disk_$1=/dev/vd${letters[${#drives[@]} / 2]}" >>"$root/etc/vm-disks"
    drives+=(-drive "file=$work/$1.img,format=raw,if=virtio,cache=unsafe")
}
for disk in "${disks[@]}"; do add_disk "${disk%%=*}" "${disk#*=}"; done
add_disk out 1G # what `run` left in /out comes back on it, as a tar

(cd "$root" && find . -print0 | cpio --null --create --format=newc --quiet | gzip -1) >"$work/initramfs"

# --- the machine ------------------------------------------------------------------------------------------------------
network=(-nic none)
if [ ${#ports[@]} -gt 0 ]; then
    user=user,id=net0,restrict=on
    for pair in "${ports[@]}"; do user+=",guestfwd=tcp:10.0.2.100:${pair%%:*}-tcp:127.0.0.1:${pair##*:}"; done
    network=(-netdev "$user" -device virtio-net-pci,netdev=net0,romfile=)
fi
image=("$work"/kernel/boot/vmlinuz-*)
# Without no_timer_check a busy host makes the kernel believe, at its start, that the timer is broken, and panic.
start=$SECONDS
status=0
timeout "$seconds_max" qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu max -smp 2 -m "$memory" \
    -display none -nodefaults -no-reboot -serial stdio -device virtio-rng-pci \
    -kernel "${image[0]}" -initrd "$work/initramfs" -append "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check" \
    "${drives[@]}" "${network[@]}" </dev/null 2>&1 | sed -u 's|\r||g' | tee "$work/console" || status=${PIPESTATUS[0]}
[ "$status" -ne 124 ] || { echo "vm: not done within $seconds_max s" >&2 && exit 124; }
status=$(sed -n 's/^vm: the payload ended with //p' "$work/console" | tail -1)
echo "vm: the machine ran for $((SECONDS - start)) s"
[ -n "$status" ] || { echo "vm: the machine ended without a word of the payload" >&2 && exit 125; }
[ "$status" -eq 0 ] || exit "$status"
if [ -x "$payload/check" ]; then
    mkdir "$work/out"
    tar -xf "$work/out.img" -C "$work/out"
    CINDERFS=$cinderfs "$payload/check" "$work/out" | tee -a "$work/console"
fi
[ -n "$transcript" ] || exit 0
mkdir -p "${transcript%/*}"
{
    echo "What \`scripts/vm/run.sh $1 --write\` showed with $("$cinderfs" --version) ($commit),"
    echo "on Debian's Linux $version in $(qemu-system-x86_64 --version | sed -n 's/^\(QEMU[^(]*version [^ ]*\).*/\1/p')."
    echo
    "$here/transcript.awk" "$work/console"
} >"$transcript"
