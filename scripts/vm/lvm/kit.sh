# What all parts use. shellcheck shell=dash
. ./checks.sh

# has_snapshots N: that many of ours are in the group.
has_snapshots() {
    must lvs --noheadings -o lv_name vg
    [ "$(grep -c cinderfs-snapshot /tmp/must)" = "$1" ]
}
# Nothing that a lister of Cinder would take for a backup, or for a part of one.
store_is_empty() {
    must eval "cinderfs list $1 --format value -c ID 2>/dev/null"
    [ ! -s /tmp/must ] && [ -z "$(ls "$1")" ]
}

# create STORE SOURCE OPTION ...: in the background, as $job; $store is where.
create() {
    store=$1
    mkdir -p "$store"
    : >/tmp/id
    cinderfs create "$@" --progress none >/tmp/id 2>/tmp/err &
    job=$!
}
# Waits until the backup holds its snapshot, and has it stand still.
hold() {
    snapshot=
    while [ -z "$snapshot" ] && kill -0 $job 2>/dev/null; do
        # The fourth part of its name is its process.
        for snapshot in "/dev/vg/cinderfs-snapshot-"*-*-*-"$(printf %x $job)"-*-*; do [ -e "$snapshot" ] || snapshot=; done
    done
    kill -STOP $job || { fail "the backup ended before it could be held" && exit 1; }
    while lvcreate_runs; do sleep 0.05; done
}
# Not one that ended and that nobody has asked for its status yet.
lvcreate_runs() {
    for pid in $(pidof lvcreate); do
        [ ! -e "/proc/$pid/exe" ] || return 0
    done
    return 1
}
# Waits until `lvcreate` runs for the backup.
making() {
    while ! lvcreate_runs; do kill -0 $job || { fail "no lvcreate was seen" && exit 1; }; done
}
# ends STATUS
ends() {
    kill -CONT $job 2>/dev/null
    wait $job
    status=$?
    check "it ends with $1" [ "$status" -eq "$1" ]
}
# keep DEVICE: what it holds now.
keep() { must dd if="$1" of=/tmp/kept bs=1M; }
kept_differs_from() { ! cmp -s /tmp/kept "$1"; }
# The backup just made is of what was kept; it leaves the machine with the sum.
is_what_was_kept() {
    id=$(cat /tmp/id)
    cinderfs restore "$store" "$id" - 2>/dev/null | cmp -s - /tmp/kept
    check "the image is what its source held" [ $? = 0 ]
    echo "${store##*/} $id $(sha256sum </tmp/kept | cut -d' ' -f1)" >>/out/sums
}

# Something writes to the mounted file system all the time, and not only into memory.
writer=
start_writer() {
    (
        i=0
        while :; do
            i=$(((i + 1) % 6))
            dd if=/dev/urandom of=/mnt/busy$i bs=64k count=2 conv=notrunc,fsync 2>/dev/null
        done
    ) &
    writer=$!
}
stop_writer() {
    kill $writer
    wait $writer 2>/dev/null
}
