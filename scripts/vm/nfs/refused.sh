# What may not be read, not be written, or not be found any more. shellcheck shell=dash

begin "the export is withdrawn while a backup is read"
configure
begin_to_read
continue_server
withdraw
cat <&9 >/dev/null 2>/tmp/err
check "the reader gets an error" [ $? = 1 ]
sed 's/^/    /' /tmp/err
export_it rw,no_root_squash
check "it is read again when it is exported again" soon is_right
end_of_reading

begin "the export is withdrawn beneath a mount of ours that was left"
left_by_a_killed_create
check "a mount is left" is_shown nfs "$ours"
withdraw
mv "$exported" /srv/moved
mkdir "$exported"
export_it rw,no_root_squash
drop_caches
says 0 "" cinderfs list /tmp/cinder.conf -f value -c ID
check "the new folder is listed, not the old one" [ ! -s /tmp/out ]
check "nothing is mounted" nothing_of_ours_is_mounted
rmdir "$exported"
mv /srv/moved "$exported"
must exportfs -f
rm -rf "$exported"/.cinderfs-*

begin "the export does not exist"
says 10 "mount(8) says" cinderfs list nas:/srv/nothing

begin "root counts as nobody, and nobody may not write"
chown -R cinder:cinder "$exported"
chmod -R a+rX "$exported"
export_it rw,root_squash
lists 8
says 12 "may not write there" cinderfs create /tmp/cinder.conf /tmp/disk --progress none
chmod 750 "$exported"
drop_caches
says 12 "Permission denied" cinderfs list /tmp/cinder.conf
chmod 755 "$exported"
export_it rw,no_root_squash

begin "the share is exported, or mounted, read-only"
export_it ro,no_root_squash
says 1 "read-only" cinderfs create /tmp/cinder.conf /tmp/disk --progress none
export_it rw,no_root_squash
configure ro
lists 8
says 1 "read-only" cinderfs create /tmp/cinder.conf /tmp/disk --progress none
says 1 "read-only" cinderfs delete /tmp/cinder.conf "$large" --cascade
check "nothing is mounted" nothing_of_ours_is_mounted

begin "without privileges"
nobody="/usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/tmp"
configure
says 12 "mount -t nfs -o vers=4.2,nosuid,nodev,noexec $share DIRECTORY" $nobody cinderfs list /tmp/cinder.conf
says 12 "let root run" $nobody cinderfs list "$share"
mount_as_cinder
chmod 755 /var/lib/cinder /var/lib/cinder/backup_mount
says 0 "" $nobody cinderfs list /tmp/cinder.conf -f value -c ID
check "once root has mounted it, others read it" eval '[ "$(wc -l </tmp/out)" = 8 ]'
must umount "$cinders"
