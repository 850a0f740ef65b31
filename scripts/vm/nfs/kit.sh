# The server, mounts, and what is expected of both. shellcheck shell=dash

# What is exported: all genuine backups, or few for what needs no more, since this machine is slow.
share_is() {
    exported=/srv/$1
    share=10.7.0.1:$exported
    # Where Cinder's driver would mount it.
    cinders=/var/lib/cinder/backup_mount/$(printf %s "$share" | md5sum | cut -d' ' -f1)
    mkdir -p "$cinders"
    sums=/tmp/sums.$1
    configure
}
ours=/run/cinderfs/shares

# `ID LENGTH SUM` of each genuine backup.
sums() {
    awk -F'"' '/^   "[0-9a-f-]*": \{/ { id = $2 } /^    "bytes":/ { gsub(/[^0-9]/, "", $3); bytes = $3 } /^    "sha256":/ { print id, bytes, $4 }' "$1"
}

start_server() {
    ip link set dummy0 up
    ip addr add 10.7.0.1/24 dev dummy0 # the other addresses of its network are silent
    printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\ncinder:x:400:400::/:/bin/sh\n_rpc:x:401:65534::/:/bin/sh\n' >/etc/passwd
    printf 'root:x:0:\nnogroup:x:65534:\ncinder:x:400:\n' >/etc/group
    echo 10.7.0.1 nas >/etc/hosts
    mkdir -p /var/lib/nfs/sm /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs /mnt
    touch /var/lib/nfs/etab /var/lib/nfs/rmtab
    must mount -t nfsd nfsd /proc/fs/nfsd
    must mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs
    mkdir -p /run/rpcbind && chmod 777 /run/rpcbind
    must rpcbind -w
    soon eval 'rpcinfo >/dev/null 2>&1 || [ -S /run/rpcbind.sock ]'
    must rpc.statd
    for exported in /srv/all /srv/few /srv/new; do export_it rw,no_root_squash; done
    # How long after its start the server gives out no locks: 90 s unless told, and 50 s those of version 3.
    echo 10 >/proc/fs/nfsd/nfsv4leasetime
    echo 10 >/proc/fs/nfsd/nfsv4gracetime
    echo 5 >/proc/sys/fs/nfs/nlm_grace_period
    must rpc.nfsd 4
    must rpc.mountd
}
# export_it OPTIONS
export_it() { must exportfs -i -o "$1,no_subtree_check,sync" "10.7.0.0/24:$exported"; }
withdraw() { must exportfs -u "10.7.0.0/24:$exported"; }
stop_server() { echo 0 >/proc/fs/nfsd/threads; }
continue_server() { must rpc.nfsd 4; }

# mount_as_cinder [OPTIONS]
mount_as_cinder() { must mount -t nfs -o "$options${1:+,$1}" "$share" "$cinders"; }
# is_shown TYPE DIRECTORY: such a mount is there; the directory may be the beginning of one.
is_shown() { grep -q " $2[^ ]* .* - $1" /proc/self/mountinfo; }
nothing_of_ours_is_mounted() { ! is_shown nfs "$ours"; }
# A process that reads a share may be late to notice that it is over.
soon() {
    left=100
    until "$@"; do
        [ $((left -= 1)) -gt 0 ] || return 1
        sleep 0.1
    done
}
# says STATUS WORDS COMMAND ...: it ends so, and says that.
says() {
    wanted=$1 words=$2
    shift 2
    "$@" >/tmp/out 2>/tmp/err </dev/null
    status=$?
    check "\`$*\` ends with $wanted" [ "$status" -eq "$wanted" ]
    [ -z "$words" ] || { check "it says \"$words\"" has /tmp/err "$words" && sed 's/^/    /' /tmp/err; }
}
# The conf that Cinder would have.
configure() { # [OPTIONS]
    cat >/tmp/cinder.conf <<CONF
[DEFAULT]
backup_driver = cinder.backup.drivers.nfs.NFSBackupDriver
backup_share = $share
backup_mount_options = $options${1:+,$1}
CONF
}
# Nothing of ours but backups is in the store.
nothing_is_hidden() { [ -z "$(ls -A "$exported" | grep '^\.')" ]; }
# lists N: so many backups are listed, all of them well.
lists() {
    says 0 "" cinderfs list /tmp/cinder.conf -f value -c Status
    check "$1 backups are listed" [ "$(grep -c available /tmp/out)" = "$1" ]
}
# keep ID: a backup of /tmp/disk, as the server has it, for what runs outside of the machine afterwards.
keep() {
    folder=$(dirname "$(find "$exported" -name "*_backup_$1_metadata")")
    kept=/out/nfs$version${folder#"$exported"}
    mkdir -p "$kept"
    must cp -a "$folder/." "$kept"
    echo "nfs$version $1 $(sha256sum </tmp/disk | cut -d' ' -f1)" >>/out/sums
}
# A backup in the making, whose process is killed.
left_by_a_killed_create() {
    cinderfs create /tmp/cinder.conf /tmp/disk --object-size 1M --progress none >/tmp/out 2>/tmp/err &
    job=$!
    until ls -d "$exported"/.cinderfs-*/parts/.* >/dev/null 2>&1; do kill -0 $job || break; done
    kill -KILL $job
    wait $job 2>/dev/null
}
daemon() { pidof cinderfs | tr ' ' '\n' | while read -r pid; do tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q -- --daemon && echo "$pid"; done; }
drop_caches() { echo 3 >/proc/sys/vm/drop_caches; }
