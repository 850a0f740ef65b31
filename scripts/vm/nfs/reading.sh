# Shares that somebody has mounted, and shares that nobody has. shellcheck shell=dash

begin "NFS $version: a share that Cinder has mounted is used"
mount_as_cinder
count=$(wc -l <"$sums")
says 0 "" cinderfs list "$share" -f value -c Status
check "all $count backups are there" [ "$(grep -c available /tmp/out)" = "$count" ]
check "nothing else was mounted" nothing_of_ours_is_mounted
check "it is still mounted" is_shown nfs "$cinders"
must umount "$cinders"

begin "NFS $version: a share that is not mounted, by its cinder.conf"
configure
cinderfs mount /tmp/cinder.conf /mnt
check "it is mounted for the daemon" is_shown nfs "$ours"
check "as the cinder.conf says" eval 'grep -q " $ours[^ ]* .*vers=$version" /proc/self/mountinfo'
check "nothing may be executed" eval 'grep -q " $ours[^ ]* [^ ]*nosuid,nodev,noexec" /proc/self/mountinfo'
wrong=0
while read -r backup bytes sum; do
    id=$backup
    [ "$(head -c "$bytes" "/mnt/backups/$id/volume.img" | sha256sum)" = "$sum  -" ] || { echo "$id is wrong" && wrong=$((wrong + 1)); }
done <"$sums"
check "all $count images have the sha256 of their volumes" [ $wrong = 0 ]
check "a second one uses the same" cinderfs restore "nfs://10.7.0.1$exported/" "$id" /tmp/image --force --progress none
must cinderfs umount /mnt
check "it is gone" soon nothing_of_ours_is_mounted

begin "NFS $version: the daemon is killed"
must cinderfs mount /tmp/cinder.conf /mnt
kill -KILL $(daemon)
check "the share is unmounted" soon nothing_of_ours_is_mounted
must cinderfs umount /mnt
