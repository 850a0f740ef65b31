# Snapshots that cannot be read to the end, or not be taken, and a store without room. shellcheck shell=dash disable=SC2154

begin "a full store"
mkdir /tmp/small
must mount -t tmpfs -o size=4m small /tmp/small
create /tmp/small /dev/vg/web --snapshot lvm
ends 1
cat /tmp/err
check "it says why" has /tmp/err "No space left on device"
check "the snapshot is dropped" has_snapshots 0
check "the store is empty" store_is_empty /tmp/small
must umount /tmp/small

begin "a snapshot that runs full while it is read"
free=$(vgs --noheadings --units m --nosuffix -o vg_free vg 2>/dev/null | tr -d ' ' | cut -d. -f1)
must lvcreate -q -y -n filler -L $((free - 4))M vg
create /tmp/overflow /dev/vg/web --snapshot lvm
hold
dd if=/dev/urandom of=/mnt/flood bs=1M count=6 conv=fsync 2>/dev/null
check "LVM has given it up" [ "$(lvs --noheadings -o lv_snapshot_invalid "vg/${snapshot##*/}" | sed 's/^ *//')" = "snapshot invalid" ]
ends 1
cat /tmp/err
check "it says what happened" has /tmp/err "ran full"
check "the snapshot is dropped" has_snapshots 0
check "the store is empty" store_is_empty /tmp/overflow

begin "a group without room"
must lvcreate -q -y -n filler2 -l 100%FREE vg
create /tmp/overflow /dev/vg/web
ends 1
cat /tmp/err
check "it says why" has /tmp/err "free"
must lvremove -q -y vg/filler vg/filler2

begin "a source that cannot be read"
must umount /mnt
bad=$((2048 + 15 * 2048)) # 15 MiB into the volume, which begins 1 MiB into the disk
dmsetup suspend pv
{
    echo "0 $bad linear $disk_pv 0"
    echo "$bad 8 error"
    echo "$((bad + 8)) $((sectors - bad - 8)) linear $disk_pv $((bad + 8))"
} | dmsetup load pv
dmsetup resume pv
create /tmp/unreadable /dev/vg/web --snapshot lvm
ends 1
cat /tmp/err
check "it says why" has /tmp/err "Input/output error"
check "the snapshot is dropped" has_snapshots 0
check "the store is empty" store_is_empty /tmp/unreadable
dmsetup suspend pv
echo "0 $sectors linear $disk_pv 0" | dmsetup load pv
dmsetup resume pv
