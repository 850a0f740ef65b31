#!/usr/bin/env bash
# Runs the tests that need real servers: starts Swift with tempauth and with Keystone, Ceph's S3 and an emulator of Google's, each in a folder of
# its own below a temporary one, and stops them whatever happens.
#
#   scripts/services/test.sh [TEST ...]     the tests whose names hold one of these; all unless told
#
# Needs root on Debian or Ubuntu.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
services=$PWD/scripts/services
folder=$(mktemp -d /tmp/cinderfs-services.XXXXXX)

stop() {
    for each in s3:s3 swift:swift keystone:swift gcs:gcs; do
        "$services/${each##*:}.sh" down "$folder/${each%%:*}"
    done
    rm -rf -- "$folder"
}
trap stop EXIT

# One after the other installs packages, all at once start.
pids=()
"$services/s3.sh" up "$folder/s3" 19400 || exit 1
"$services/swift.sh" up "$folder/swift" 18480 || exit 1
TOKEN_SECONDS=20 "$services/swift.sh" up "$folder/keystone" 18580 keystone &
pids+=($!)
"$services/gcs.sh" up "$folder/gcs" 19500 &
pids+=($!)
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done

for kind in s3 swift keystone gcs; do
    while IFS='=' read -r name value; do
        export "TEST_${kind^^}_$name=$value"
    done <"$folder/$kind/env"
done
export TEST_KEYSTONE_TOKEN_SECONDS=20
cargo test --locked --no-fail-fast --test remote_servers -- --ignored "$@"
