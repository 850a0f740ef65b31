# A volume with a mounted file system, backed up while it is written to. shellcheck shell=dash

must lvcreate -q -y -n web -L 24M vg
must mkfs.ext4 -q /dev/vg/web
must mount /dev/vg/web /mnt
dd if=/dev/urandom of=/mnt/data bs=1M count=8 2>/dev/null
echo written before >/mnt/marker
sync

begin "a mounted volume is refused without a snapshot"
create /out/thick /dev/vg/web --snapshot none
ends 1
check "it says who uses it" has /tmp/err "is mounted at \"/mnt\""
check "the store is empty" store_is_empty /out/thick

for kind in lvm auto; do
    begin "a mounted volume that is written to, --snapshot $kind"
    start_writer
    create /out/thick /dev/vg/web --snapshot $kind --name $kind
    hold
    check "there is one snapshot, tagged" [ "$(lvs --noheadings -o lv_tags "vg/${snapshot##*/}" | tr -d ' ')" = cinderfs ]
    check "it is read-only" [ "$(cat "/sys/class/block/$(basename "$(readlink -f "$snapshot")")/ro")" = 1 ]
    keep "$snapshot"
    check "the volume is written to meanwhile" kept_differs_from /dev/vg/web
    ends 0
    stop_writer
    cat /tmp/err
    is_what_was_kept
    check "the snapshot is dropped" has_snapshots 0
done

begin "a device as the target of restore"
must lvcreate -q -y -n target -L 24M vg
check "restored to the volume" cinderfs restore /out/thick "$id" /dev/vg/target --force --progress none
check "its bytes are right" cmp /dev/vg/target /tmp/kept
# The kernel writes the file system out before LVM takes the snapshot: there is nothing to recover.
check "its file system is clean" e2fsck -fn /dev/vg/target
check "there is no journal to replay" eval '! dumpe2fs -h /dev/vg/target 2>/dev/null | grep -q needs_recovery'
mkdir -p /mnt2
must mount -o ro /dev/vg/target /mnt2
check "the marker is there" [ "$(cat /mnt2/marker)" = "written before" ]
check "a mounted target is refused" eval '! cinderfs restore /out/thick "$id" /dev/vg/target --force 2>/tmp/err'
cat /tmp/err
must umount /mnt2

begin "a snapshot as the source"
must lvcreate -q -y -s -n still -L 8M vg/web
create /tmp/refused /dev/vg/still --snapshot lvm
ends 2
check "it says why" has /tmp/err "it is an LVM snapshot itself"
create /out/thick /dev/vg/still
ends 0
keep /dev/vg/still
is_what_was_kept
must lvremove -q -y vg/still
