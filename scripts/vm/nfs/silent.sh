# Servers that do not answer: the message comes in time, and nothing is left. shellcheck shell=dash

no_process_is_left() { [ -z "$(pidof cinderfs mount mount.nfs)" ]; }

begin "a server that does not exist"
before=$(cut -d. -f1 /proc/uptime)
says 1 "cannot mount the share 10.7.0.2:/srv/few: its server did not answer" cinderfs mount -o store_timeout=5 10.7.0.2:/srv/few /mnt
took=$(($(cut -d. -f1 /proc/uptime) - before))
echo "    after $took s"
check "no process is left" soon no_process_is_left
check "nothing is mounted" nothing_of_ours_is_mounted

begin "a share that is mounted, whose server is silent"
configure hard
drop_caches
mount_as_cinder hard
stop_server
says 1 "" cinderfs list /tmp/cinder.conf
sed 's/^/    /' /tmp/err
check "no process is left" soon no_process_is_left
continue_server
says 0 "" cinderfs list /tmp/cinder.conf -f value -c ID
must umount "$cinders"

begin "a mount of ours that was left, whose server is silent"
must cinderfs mount /tmp/cinder.conf /mnt
kill -STOP "$(daemon)"
stop_server
says 1 "" cinderfs list /tmp/cinder.conf
sed 's/^/    /' /tmp/err
check "the mount in use is left alone" is_shown nfs "$ours"
kill -CONT "$(daemon)"
must cinderfs umount /mnt
check "the share is gone" soon nothing_of_ours_is_mounted
check "no process is left" soon no_process_is_left
continue_server
