#!/usr/bin/env bash
# A real OpenStack Swift on this machine, of one node, with tempauth or with a real Keystone (v3, Fernet tokens, SQLite).
#
#   scripts/services/swift.sh up FOLDER [PORT] [keystone]    starts it; writes FOLDER/env. PORT (18080) is the proxy's, the five behind it are
#                                                            its servers' and Keystone's
#   scripts/services/swift.sh down FOLDER                    stops it and removes FOLDER
#
# Tokens live for TOKEN_SECONDS, 3600 unless set. Needs root on Debian or Ubuntu, where it installs what is missing, and a file system
# with extended attributes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

begin "$@"

need "swift-proxy-server swift-object-server swift-container-server swift-account-server swift-ring-builder memcached curl" \
    "swift-proxy swift-object swift-container swift-account swift memcached curl"
keystone=${4:-}
[ -z "$keystone" ] ||
    need "keystone-manage keystone-wsgi-public eatmydata" "python3-keystone python3-keystonemiddleware eatmydata"
prepare "$2"
port=${3:-18080}
life=${TOKEN_SECONDS:-3600}
object=$((port + 1)) container=$((port + 2)) account=$((port + 3)) cache=$((port + 4)) identity=$((port + 5))
need_free "$port" "$object" "$container" "$account" "$cache" "$identity"
etc=$folder/etc
mkdir -p "$etc" "$folder/node/d1" "$folder/cache"

ring() { # NAME PORT
    (
        cd "$etc"
        swift-ring-builder "$1.builder" create 6 1 1
        swift-ring-builder "$1.builder" add "r1z1-127.0.0.1:$2/d1" 1
        swift-ring-builder "$1.builder" rebalance || [ $? = 1 ] # 1: nothing to move
    ) >>"$folder/log/ring.log"
}

common() { # PORT
    cat <<EOF
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $1
workers = 0
user = $(id -un)
swift_dir = $etc
devices = $folder/node
mount_check = false
recon_cache_path = $folder/cache
EOF
}

server() { # NAME PORT
    ring "$1" "$2"
    {
        common "$2"
        cat <<EOF
[pipeline:main]
pipeline = healthcheck $1-server
[filter:healthcheck]
use = egg:swift#healthcheck
[app:$1-server]
use = egg:swift#$1
EOF
    } >"$etc/$1.conf"
    start "$1" "$(type -P "swift-$1-server")" "$etc/$1.conf"
}

start_keystone() {
    local at=$folder/keystone url=http://127.0.0.1:$identity/v3 manage
    mkdir -p "$at/fernet" "$at/credential"
    chmod 700 "$at/fernet" "$at/credential"
    cat >"$at/keystone.conf" <<EOF
[DEFAULT]
log_file = $folder/log/keystone-main.log
[database]
connection = sqlite:///$at/keystone.db?timeout=1
[token]
provider = fernet
expiration = $life
allow_expired_window = 0
[fernet_tokens]
key_repository = $at/fernet
[fernet_receipts]
key_repository = $at/fernet
[credential]
key_repository = $at/credential
EOF
    # Without eatmydata SQLite waits for the disk at each statement of its schema.
    manage="eatmydata keystone-manage --config-file $at/keystone.conf"
    {
        $manage db_sync
        $manage fernet_setup --keystone-user "$(id -un)" --keystone-group "$(id -gn)"
        $manage credential_setup --keystone-user "$(id -un)" --keystone-group "$(id -gn)"
        $manage bootstrap --bootstrap-password secret --bootstrap-region-id RegionOne \
            --bootstrap-public-url "$url/" --bootstrap-internal-url "$url/" --bootstrap-admin-url "$url/"
    } >>"$folder/log/keystone-manage.log" 2>&1
    start keystone eatmydata env "OS_KEYSTONE_CONFIG_FILES=$at/keystone.conf" \
        keystone-wsgi-public --host 127.0.0.1 --port "$identity"
    until_true 60 answers "$url/" || die "Keystone does not answer, see $folder/log"
    python3 "$(dirname "$0")/keystone_users.py" "$url" "http://127.0.0.1:$port/v1/AUTH_%(tenant_id)s" "$folder/env"
}

auth=tempauth
[ -z "$keystone" ] || auth="authtoken keystoneauth"
start memcached memcached -u "$(id -un)" -l 127.0.0.1 -p "$cache" -U 0 -m 64
[ -z "$keystone" ] || start_keystone
server account "$account"
server container "$container"
server object "$object"
{
    common "$port"
    cat <<EOF
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats $auth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
token_life = $life
user_test_tester = testing .admin
user_apart_tester = testing .admin
user_test_reader = reading
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
www_authenticate_uri = http://127.0.0.1:$identity/
auth_url = http://127.0.0.1:$identity/
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = service
username = swift
password = swiftpass
delay_auth_decision = true
cache = swift.cache
token_cache_time = 300
include_service_catalog = false
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin, member
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:$cache
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
EOF
} >"$etc/proxy.conf"
start proxy "$(type -P swift-proxy-server)" "$etc/proxy.conf"
for each in "$account" "$container" "$object" "$port"; do
    until_true 60 answers "http://127.0.0.1:$each/healthcheck" || die "port $each does not answer, see $folder/log"
done
[ -n "$keystone" ] || cat >"$folder/env" <<EOF
OS_IDENTITY_API_VERSION=1
OS_AUTH_URL=http://127.0.0.1:$port/auth/v1.0
OS_USERNAME=test:tester
OS_PASSWORD=testing
EOF
