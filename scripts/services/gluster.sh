#!/usr/bin/env bash
# A real GlusterFS on this machine: glusterd, and a volume of one brick.
#
#   scripts/services/gluster.sh up FOLDER [VOLUME]    starts it; writes FOLDER/env. VOLUME is `backups` unless told
#   scripts/services/gluster.sh down FOLDER           stops it and removes FOLDER
#
# GlusterFS refuses bricks at 127.0.0.1, so the servers have a network of their own, in which 192.0.2.1 is themselves. Whoever mounts the
# volume has to be in it: nsenter --net="$NETWORK" mount -t glusterfs "$SHARE" DIRECTORY. The mounts are this machine's as
# any other. One at a time, since glusterd has one socket. Needs root on Debian or Ubuntu, where it installs what is missing, and /dev/fuse.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
begin "$@"

need "glusterd gluster glusterfs mount.glusterfs ip nsenter" "glusterfs-server glusterfs-client iproute2 util-linux"
[ ! -S /run/glusterd.socket ] || ! gluster --mode=script volume list >/dev/null 2>&1 || die "a glusterd runs here already"
prepare "$2"
volume=${3:-backups}
address=192.0.2.1
mkdir -p "$folder/work" "$folder/brick" /var/log/glusterfs /run/gluster
cat >"$folder/glusterd.vol" <<EOF
volume management
    type mgmt/glusterd
    option working-directory $folder/work
    option transport-type socket
    option transport.socket.listen-port 24007
    option ping-timeout 0
    option event-threads 1
    option base-port 49152
    option max-port 49251
end-volume
EOF

start network unshare --net sleep infinity
read -r parent _ <"$folder/run/network.pid"
has_child() { holder=$(cat "/proc/$parent/task/$parent/children") && holder=${holder%% *} && [ -n "$holder" ]; }
until_true 10 has_child || die "no process for the network"
is_apart() { [ "$(readlink "/proc/$holder/ns/net")" != "$(readlink /proc/self/ns/net)" ]; }
until_true 10 is_apart || die "no network of its own"
inside() { nsenter --net="/proc/$holder/ns/net" "$@"; }
inside ip link set lo up
inside ip addr add "$address/32" dev lo

start glusterd nsenter --net="/proc/$holder/ns/net" glusterd -N -f "$folder/glusterd.vol" -p "$folder/run/glusterd.self" \
    -l "$folder/log/glusterd-main.log"
ask() { inside gluster --mode=script --wignore "$@"; }
until_true 30 ask volume list || die "glusterd does not answer, see $folder/log"
{
    ask volume create "$volume" "$address:$folder/brick" force
    # How long a client waits for a server that is silent, and then fails what it was asked. 42 s unless told.
    ask volume set "$volume" network.ping-timeout 5
    ask volume start "$volume"
} >>"$folder/log/gluster.log"
is_online() { ask volume status "$volume" detail | grep -q '^Online *: Y'; }
until_true 30 is_online || die "the brick does not come up, see $folder/log"
# glusterd started it, but it is ours to stop.
brick=$(inside pidof glusterfsd | tr ' ' '\n' | while read -r pid; do
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "$folder/brick" && echo "$pid"
done)
[ -n "$brick" ] || die "the brick's process is not to be found"
echo "$brick $(started_at "$brick")" >"$folder/run/brick.pid"

cat >"$folder/env" <<EOF
SHARE=$address:/$volume
NETWORK=/proc/$holder/ns/net
BRICK=$folder/brick
BRICK_PID=$brick
EOF
