#!/usr/bin/env bash
# Runs the tests that need real servers: starts Swift with tempauth and with Keystone, Ceph's S3, an emulator of Google's and GlusterFS, each in a
# folder of its own below a temporary one, on ports that are free, and stops them whatever happens.
#
#   scripts/services/test.sh [TEST ...]             the tests whose names hold one of these; all unless told
#   scripts/services/test.sh --gluster [TEST ...]   with GlusterFS only
#
# Needs root on Debian or Ubuntu. Killed itself, it leaves servers that end within half an hour.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
services=$PWD/scripts/services
. "$services/lib.sh"

# Seconds that Keystone's tokens live: a test waits three times as long, and no request takes so long, also on a busy machine.
token_seconds=20
export LIFE_SECONDS=1800

folder=
stop() {
    local each downs=()
    [ -n "$folder" ] || return
    stop_all "$folder/tls"
    for each in s3:s3 swift:swift keystone:swift gcs:gcs gluster:gluster; do
        [ ! -d "$folder/${each%%:*}" ] || "$services/${each##*:}.sh" down "$folder/${each%%:*}" &
        downs+=($!)
    done
    # And not for tests that run still, which have no server any more.
    wait_for "${downs[@]}"
    rm -rf -- "$folder"
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT HUP

# tell SERVER [NAME]: what the server says of itself, for tests.
tell() {
    local name value called=${2:-$1}
    while IFS='=' read -r name value; do
        export "TEST_${called^^}_$name=$value"
    done <"$folder/$1/env"
}

# wait_for PID ...
wait_for() {
    local pid status=0
    for pid in "$@"; do wait "$pid" || status=1; done
    return $status
}

# ignored TEST ...: what of these test programs needs servers, and waits for them most of the time.
ignored() {
    # shellcheck disable=SC2046
    cargo test --locked --no-fail-fast $(printf -- '--test %s ' "$@") -- --ignored --test-threads=6 "${names[@]}"
}

began=$SECONDS
say() { echo "services: $1 after $((SECONDS - began)) s"; }

only=
remote=(remote_servers remote_mounts remote_layouts remote_bad_ways remote_commands remote_create remote_repair_servers remote_conf)
gluster=(share_gluster share_gluster_store)
patient=(cinder_conf_genuine remote_killed remote_tokens)
if [ "${1:-}" = --gluster ]; then
    only=gluster
    shift
fi
names=("$@")
programs=("${gluster[@]}")
[ -n "$only" ] || programs+=("${patient[@]}" "${remote[@]}")

# Packages one after the other, since apt works for one at a time.
"$services/gluster.sh" install - || exit 1
if [ -z "$only" ]; then
    need "openssl socat" "openssl socat"
    "$services/s3.sh" install - && "$services/swift.sh" install - - keystone && "$services/gcs.sh" install - || exit 1
fi
TEST_CINDER_PYTHON=$(scripts/genuine-cinder/setup.sh) || exit 1
export TEST_CINDER_PYTHON
# shellcheck disable=SC2046
cargo test --locked --no-run $(printf -- '--test %s ' "${programs[@]}") || exit 1
say "packages and programs are there"

folder=$(mktemp -d "${TMPDIR:-/tmp}/cinderfs-services.XXXXXX")
pids=()
up() { # KIND SCRIPT ARGUMENT ...
    local kind=$1 script=$2
    shift 2
    "$services/$script.sh" up "$folder/$kind" "$@" &
    pids+=($!)
}
up gluster gluster
if [ -z "$only" ]; then
    # Far enough from each other that none is given away twice.
    s3=$(free_port 19400 100 0) && swift=$(free_port 18400 0 5) && keystone=$(free_port $((swift + 20)) 0 5) &&
        gcs=$(free_port $((s3 + 10)) 0 0) && tls=$(free_port $((s3 + 20)) 0 0) || exit 1
    up s3 s3 "$s3"
    up swift swift "$swift"
    TOKEN_SECONDS=$token_seconds up keystone swift "$keystone" keystone
    up gcs gcs "$gcs"
fi
wait_for "${pids[@]}" || exit 1
tell gluster
if [ -n "$only" ]; then
    ignored "${gluster[@]}"
    exit
fi

# The S3 server once more, behind TLS with a certificate of a private CA.
folder_of_all=$folder
tls() {
    prepare "$folder_of_all/tls" && cd "$folder" || return
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=private CA" -keyout ca.key -out ca.pem &&
        openssl req -newkey rsa:2048 -nodes -subj "/CN=s3" -keyout s3.key -out s3.csr &&
        openssl x509 -req -days 2 -in s3.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out s3.pem \
            -extfile <(echo "subjectAltName=IP:127.0.0.1") &&
        start socat socat "OPENSSL-LISTEN:$tls,bind=127.0.0.1,reuseaddr,fork,cert=s3.pem,key=s3.key,verify=0" "TCP:127.0.0.1:$s3" &&
        until_true 10 curl -fsk -o /dev/null "https://127.0.0.1:$tls/"
}
(tls) 2>"$folder/tls.log" || { cat "$folder/tls.log" >&2; exit 1; }
export TEST_S3_TLS_ENDPOINT=https://127.0.0.1:$tls TEST_S3_CA=$folder/tls/ca.pem
for kind in s3 swift keystone gcs; do tell "$kind"; done
tell swift apart && export TEST_APART_OS_USERNAME=apart:tester
export TEST_KEYSTONE_TOKEN_SECONDS=$token_seconds
say "the servers are up"

# Three at once, of which two wait more than they work; what they print is shown one after the other.
ignored "${gluster[@]}" >"$folder/gluster.out" 2>&1 &
shares=$!
ignored "${patient[@]}" >"$folder/patient.out" 2>&1 &
waiting=$!
status=0
ignored "${remote[@]}" || status=1
wait_for $shares || status=1
cat "$folder/gluster.out"
wait_for $waiting || status=1
cat "$folder/patient.out"
say "the tests are done"
exit $status
