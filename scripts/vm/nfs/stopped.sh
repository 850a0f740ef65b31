# The server goes, for a moment or for longer, while a backup is read. shellcheck shell=dash

is_right() { cmp -s "/mnt/backups/$large/volume.img" /tmp/large 2>/dev/null; }
# Begins to read, and has the server stop after the first part.
begin_to_read() {
    must cinderfs mount -o store_timeout=5,cache_size=32M "$@" /tmp/cinder.conf /mnt
    drop_caches
    exec 9<"/mnt/backups/$large/volume.img"
    dd of=/tmp/first bs=4096 count=1 <&9 2>/dev/null
    stop_server
}
end_of_reading() {
    exec 9<&-
    must cinderfs umount /mnt
    check "the share is gone" soon nothing_of_ours_is_mounted
}

begin "NFS $version, hard: the server is restarted while a backup is read"
configure hard
begin_to_read
(sleep 2 && continue_server) &
restart=$!
cat /tmp/first - <&9 2>/tmp/err | cmp -s - /tmp/large
check "the reader gets it whole" [ $? = 0 ]
wait $restart
end_of_reading

for kind in hard soft,timeo=10,retrans=1; do
    begin "NFS $version, $kind: the server stays away"
    configure $kind
    begin_to_read
    cat <&9 >/dev/null 2>/tmp/err
    check "the reader gets an error" [ $? = 1 ]
    sed 's/^/    /' /tmp/err
    check "listings are answered" eval 'ls /mnt/backups >/dev/null'
    continue_server
    check "it is read again when the server is back" soon is_right
    end_of_reading
done

begin "NFS $version, hard: the server is away when the daemon is to end"
configure hard
begin_to_read
exec 9<&-
check "the mount is taken away" cinderfs umount /mnt
check "the share is gone" soon nothing_of_ours_is_mounted
gone() { [ -z "$(pidof cinderfs)" ]; }
check "no process of ours is left" soon gone
continue_server
