# Backups that are made on the share, and removed. shellcheck shell=dash

begin "NFS $version: create, restore, delete"
dd if=/dev/urandom of=/tmp/disk bs=1M count=6 2>/dev/null
made=$(cinderfs create /tmp/cinder.conf /tmp/disk --object-size 1M --progress none 2>/tmp/err)
check "a full backup" [ -n "$made" ]
sed "s/^/    /" /tmp/err
check "nothing hidden is left" nothing_is_hidden
keep "$made"
dd if=/dev/urandom of=/tmp/disk bs=64k seek=17 count=3 conv=notrunc 2>/dev/null
next=$(cinderfs create /tmp/cinder.conf /tmp/disk --incremental --progress none 2>/tmp/err)
check "an incremental one" [ -n "$next" ]
cinderfs restore /tmp/cinder.conf "$next" - 2>/dev/null | cmp -s - /tmp/disk
check "its image is the disk" [ $? = 0 ]
keep "$next"
says 0 "" cinderfs verify /tmp/cinder.conf --progress none
check "all 10 backups are good" has /tmp/out "10 backups: 10 good"
says 2 "" cinderfs delete /tmp/cinder.conf "$made"
says 0 "" cinderfs delete /tmp/cinder.conf "$made" --cascade
check "nothing hidden is left" nothing_is_hidden
check "and nothing is mounted" nothing_of_ours_is_mounted

begin "NFS $version: create is killed in the middle"
left_by_a_killed_create
check "its folder is left" eval '[ "$(ls -d $exported/.cinderfs-* | wc -l)" = 1 ]'
check "its mount is left" is_shown nfs "$ours"
lists 8
check "who came next took the mount away" nothing_of_ours_is_mounted
made=$(cinderfs create /tmp/cinder.conf /tmp/disk --progress none 2>/tmp/err)
check "the next run succeeds" [ -n "$made" ]
check "and removed what was left" nothing_is_hidden
must cinderfs delete /tmp/cinder.conf "$made"

begin "NFS $version: two write at once"
cinderfs create /tmp/cinder.conf /tmp/disk --progress none >/tmp/one 2>/tmp/err &
job=$!
cinderfs create "$share" /tmp/disk --progress none >/tmp/two 2>/tmp/err
wait $job
check "both succeed" eval '[ -s /tmp/one ] && [ -s /tmp/two ]'
for made in $(cat /tmp/one /tmp/two); do must cinderfs delete /tmp/cinder.conf "$made"; done
ls -lAR "$exported"/.cinderfs-* 2>/dev/null # should there be any
check "and nothing is mounted" nothing_of_ours_is_mounted
