#!/usr/bin/env bash
# Runs the tests that need real servers: starts Swift with tempauth and with Keystone, Ceph's S3, an emulator of Google's and GlusterFS, each in a
# folder of its own below a temporary one, and stops them whatever happens.
#
#   scripts/services/test.sh [TEST ...]             the tests whose names hold one of these; all unless told
#   scripts/services/test.sh --gluster [TEST ...]   with GlusterFS only
#
# Needs root on Debian or Ubuntu.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
services=$PWD/scripts/services
folder=$(mktemp -d /tmp/cinderfs-services.XXXXXX)

. "$services/lib.sh"
need "openssl socat" "openssl socat"

stop() {
    stop_all "$folder/tls"
    for each in s3:s3 swift:swift keystone:swift gcs:gcs gluster:gluster; do
        "$services/${each##*:}.sh" down "$folder/${each%%:*}"
    done
    rm -rf -- "$folder"
}
trap stop EXIT

# tell KIND: what the server says of itself, for tests.
tell() {
    while IFS='=' read -r name value; do
        export "TEST_${1^^}_$name=$value"
    done <"$folder/$1/env"
}

gluster() {
    "$services/gluster.sh" up "$folder/gluster" || return
    tell gluster
    cargo test --locked --no-fail-fast --test share_gluster -- --ignored "$@"
}
if [ "${1:-}" = --gluster ]; then
    shift
    gluster "$@"
    exit
fi

# One after the other installs packages, all at once start.
pids=()
"$services/s3.sh" up "$folder/s3" 19400 || exit 1
"$services/swift.sh" up "$folder/swift" 18480 || exit 1
TOKEN_SECONDS=20 "$services/swift.sh" up "$folder/keystone" 18580 keystone &
pids+=($!)
"$services/gcs.sh" up "$folder/gcs" 19500 &
pids+=($!)
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done

# The S3 server once more, behind TLS with a certificate of a private CA.
folder_of_all=$folder
tls() {
    prepare "$folder_of_all/tls" && cd "$folder" || return
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=private CA" -keyout ca.key -out ca.pem &&
        openssl req -newkey rsa:2048 -nodes -subj "/CN=s3" -keyout s3.key -out s3.csr &&
        openssl x509 -req -days 2 -in s3.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out s3.pem \
            -extfile <(echo "subjectAltName=IP:127.0.0.1") &&
        start socat socat "OPENSSL-LISTEN:19443,bind=127.0.0.1,reuseaddr,fork,cert=s3.pem,key=s3.key,verify=0" TCP:127.0.0.1:19400 &&
        until_true 10 curl -fsk -o /dev/null https://127.0.0.1:19443/
}
(tls) 2>"$folder/tls.log" || { cat "$folder/tls.log" >&2; exit 1; }
export TEST_S3_TLS_ENDPOINT=https://127.0.0.1:19443 TEST_S3_CA=$folder/tls/ca.pem

for kind in s3 swift keystone gcs; do tell "$kind"; done
export TEST_KEYSTONE_TOKEN_SECONDS=20
TEST_CINDER_PYTHON=$(scripts/genuine-cinder/setup.sh) || exit 1
export TEST_CINDER_PYTHON
status=0
cargo test --locked --no-fail-fast --test remote_servers --test remote_commands --test remote_create \
    --test remote_conf --test remote_killed -- --ignored "$@" || status=1
gluster "$@" || status=1
exit $status
