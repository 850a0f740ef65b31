#!/usr/bin/env bash
# A real S3 server on this machine: the RADOS gateway of Ceph, on a Ceph of one monitor and one OSD.
#
#   scripts/services/s3.sh up FOLDER [PORT]     starts it; writes FOLDER/env. PORT (19000) is the gateway's, the ones below it are Ceph's
#   scripts/services/s3.sh down FOLDER          stops it and removes FOLDER
#
# Needs root on Debian or Ubuntu, where it installs what is missing.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

begin "$@"

need "ceph-mon ceph-osd ceph ceph-authtool monmaptool radosgw radosgw-admin curl eatmydata" \
    "ceph-mon ceph-osd ceph-common radosgw curl eatmydata"
prepare "$2"
port=${3:-19000}
monitor=$((port - 100))
need_free "$port" "$monitor" $((monitor + 1))

conf=$folder/ceph.conf
admin=$folder/admin.keyring
fsid=$(cat /proc/sys/kernel/random/uuid)
mkdir -p "$folder/mon" "$folder/osd"
cat >"$conf" <<EOF
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$((monitor + 1)),v1:127.0.0.1:$monitor]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_port_min = $((monitor + 11))
ms_bind_port_max = $((monitor + 90))
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
mon_data_avail_warn = 2
run_dir = $folder/run
admin_socket = $folder/run/\$name.asok
log_file = $folder/log/\$name.log
crash_dir = $folder/crash
keyring = $admin
[mon]
mon_data = $folder/mon
keyring = $folder/mon/keyring
[osd]
osd_data = $folder/osd
keyring = $folder/osd/keyring
osd_objectstore = bluestore
bluestore_block_size = 10737418240
osd_memory_target = 939524096
osd_mclock_skip_benchmark = true
[client]
rgw_crypt_require_ssl = false
EOF

rm -rf "$folder/mon" && mkdir "$folder/mon"
boot=$folder/boot.keyring
ceph-authtool --create-keyring "$boot" --gen-key -n mon. --cap mon 'allow *' >/dev/null
ceph-authtool --create-keyring "$admin" --gen-key -n client.admin \
    --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *' >/dev/null
ceph-authtool "$boot" --import-keyring "$admin" >/dev/null
monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$((monitor + 1)),v1:127.0.0.1:$monitor]" \
    "$folder/monmap" >/dev/null
ceph-mon -c "$conf" --mkfs -i a --monmap "$folder/monmap" --keyring "$boot"
start mon eatmydata ceph-mon -c "$conf" -f -i a

ceph() { command ceph -c "$conf" --keyring "$admin" --connect-timeout 20 "$@"; }
until_true 60 ceph mon stat || die "the monitor does not answer, see $folder/log"
uuid=$(cat /proc/sys/kernel/random/uuid)
key=$(ceph-authtool --gen-print-key)
osd=$(ceph osd new "$uuid" -i - <<<"{\"cephx_secret\": \"$key\"}")
ceph-authtool --create-keyring "$folder/osd/keyring" -n "osd.$osd" --add-key "$key" >/dev/null
ceph-osd -c "$conf" -i "$osd" --mkfs --osd-uuid "$uuid" >>"$folder/log/osd.log" 2>&1
# Nothing here has to outlive the machine, and a disk that is waited for at each step takes most of the time.
start osd eatmydata ceph-osd -c "$conf" -f -i "$osd"
osd_is_up() { ceph osd stat | grep -q ' 1 up'; }
until_true 60 osd_is_up || die "the OSD does not come up, see $folder/log"

ceph auth get-or-create client.rgw.a mon 'allow rw' osd 'allow rwx' -o "$folder/rgw.keyring"
# Without tcp_nodelay each small body waits 40 ms behind its head, for a client that goes on with a connection.
start rgw radosgw -c "$conf" -f -n client.rgw.a --keyring "$folder/rgw.keyring" \
    --rgw_frontends "beast endpoint=127.0.0.1:$port tcp_nodelay=1" --rgw_thread_pool_size 32
until_true 120 answers "http://127.0.0.1:$port/" || die "the gateway does not answer, see $folder/log"
radosgw-admin -c "$conf" -n client.admin --keyring "$admin" user create --uid=test --display-name=test \
    --access-key=testkey --secret=testsecret >/dev/null 2>&1

cat >"$folder/env" <<EOF
S3_ENDPOINT=http://127.0.0.1:$port
AWS_ACCESS_KEY_ID=testkey
AWS_SECRET_ACCESS_KEY=testsecret
AWS_REGION=default
EOF
