# A volume in a thin pool, and lists of what changed between two of its snapshots. shellcheck shell=dash

must lvcreate -q -y --type thin-pool -n pool -L 128M --poolmetadatasize 4M --chunksize 64k vg
must lvcreate -q -y --thin -n lean -V 32M vg/pool
must mkfs.ext4 -q /dev/vg/lean
must mount /dev/vg/lean /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=6 2>/dev/null
sync

for kind in lvm auto; do
    begin "a mounted volume in a thin pool, --snapshot $kind"
    start_writer
    create /out/thin /dev/vg/lean --snapshot $kind
    hold
    keep "$snapshot"
    check "the volume is written to meanwhile" kept_differs_from /dev/vg/lean
    check "the snapshot has no room of its own" [ "$(lvs --noheadings -o pool_lv "vg/${snapshot##*/}" | tr -d ' ')" = pool ]
    ends 0
    stop_writer
    cat /tmp/err
    is_what_was_kept
    check "the snapshot is dropped" has_snapshots 0
done

begin "SIGKILL while the snapshot of a thin volume is read"
create /tmp/thin-killed /dev/vg/lean
hold
kill -KILL $job
ends 137
check "the snapshot is left" has_snapshots 1
create /tmp/thin-killed /dev/vg/lean
hold
check "only its own snapshot is there" has_snapshots 1
kill -INT $job
ends 130
check "no snapshot is left" has_snapshots 0

begin "--changed-from what thin_delta tells"
volume=0c3c4a5e-7f38-4b6e-9f55-5d8f4a1c2b3d
must lvcreate -q -y -s -kn -n monday vg/lean
dd if=/dev/urandom of=/mnt/data bs=64k seek=20 count=9 conv=notrunc,fsync 2>/dev/null
rm /mnt/busy1
sync
fstrim /mnt 2>/dev/null
must lvcreate -q -y -s -kn -n tuesday vg/lean
number() { lvs --noheadings -o thin_id "vg/$1" | tr -d ' '; }
dmsetup message vg-pool-tpool 0 reserve_metadata_snap
thin_delta --metadata-snap --snap1 "$(number monday)" --snap2 "$(number tuesday)" /dev/mapper/vg-pool_tmeta >/out/delta.xml
check "thin_delta tells what changed" has /out/delta.xml "<different "
dmsetup message vg-pool-tpool 0 release_metadata_snap
create /out/delta /dev/vg/monday --snapshot none --volume-id $volume
ends 0
keep /dev/vg/monday
is_what_was_kept
create /out/delta /dev/vg/tuesday --snapshot none --volume-id $volume --parent "$id" --changed-from /out/delta.xml
ends 0
cat /tmp/err
keep /dev/vg/tuesday
is_what_was_kept
create /out/delta /dev/vg/tuesday --snapshot none --volume-id $volume --parent "$(cinderfs list /out/delta --format value -c ID -c Incremental | sed -n 's/ False//p')" \
    --changed-from /out/delta.xml --paranoid
ends 0
check "the list lacks nothing" eval '! grep -q "not to be trusted" /tmp/err'
keep /dev/vg/tuesday
is_what_was_kept
