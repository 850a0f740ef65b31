# For the scripts beside this one: packages, processes, ports. Each server has a folder of its own, with its data, its logs in `log`, its
# processes in `run`, and in `env` what tests have to know. LIFE_SECONDS bounds the life of each process that is started here, for when nobody
# is left to stop it; 0, which is the default, does not.

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# begin "$@": a script's own arguments. `up FOLDER ...` goes on, `install FOLDER ...` as far as `prepare`, which is behind the packages;
# `down FOLDER` stops what was started in it, removes it, and ends the script.
begin() {
    order=${1:-}
    case "$order ${2:+FOLDER}" in
    "up FOLDER" | "install FOLDER") ;;
    "down FOLDER")
        stop_all "$2"
        rm -rf -- "$2"
        exit
        ;;
    *) die "up FOLDER ..., or down FOLDER; the file's beginning says more" ;;
    esac
}

# need "COMMAND ..." "PACKAGE ...": installs the packages where a command is missing.
need() {
    local command missing=
    for command in $1; do type -P "$command" >/dev/null || missing=1; done
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || die "one of these is missing: $1 (packages: $2)"
    # Lists may be missing, or so old that what they name is gone.
    { install_packages "$2" || { apt-get update -qq && install_packages "$2"; }; } >&2 || die "cannot install $2"
    for command in $1; do type -P "$command" >/dev/null || die "still no $command after $2 was installed"; done
}

# Debian starts the servers that it installs, and these would have the ports; where nothing else decides that, it is told not to.
install_packages() (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
    fi
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $1
)

# prepare FOLDER: makes it, and stops what was started in it if the script fails.
prepare() {
    [ "${order:-}" != install ] || exit 0
    mkdir -p "$1/run" "$1/log"
    folder=$(cd "$1" && pwd)
    trap 'status=$?; [ $status = 0 ] || stop_all "$folder"; exit $status' EXIT
}

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

need_free() {
    local port
    for port in "$@"; do is_free "$port" || die "port $port is taken"; done
}

# free_port FROM BELOW ABOVE: the first port from FROM on, in steps of a hundred, that is free with so many below it and above it.
free_port() {
    local port=$1 each
    while [ "$port" -lt 32000 ]; do # above are those that the kernel gives to anybody
        for ((each = port - $2; each <= port + $3; each++)); do is_free "$each" || break; done
        if [ "$each" -gt $((port + $3)) ]; then
            echo "$port"
            return
        fi
        port=$((port + 100))
    done
    die "no free port from $1 on"
}

# until_true SECONDS COMMAND ...
until_true() {
    local left=$(($1 * 5))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $((left -= 1)) -gt 0 ] || return 1
        sleep 0.2
    done
}

answers() { curl -sS -o /dev/null --max-time 5 "$1"; }

# start NAME COMMAND ...: in a session of its own, below `timeout`, which hands signals on. A process is known by its id and the time it was started at, since ids are used again.
start() {
    local name=$1
    shift
    setsid timeout --kill-after=5 "${LIFE_SECONDS:-0}" "$@" >>"$folder/log/$name.log" 2>&1 </dev/null &
    echo "$! $(started_at $!)" >"$folder/run/$name.pid"
}

started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# stop_all FOLDER: ends what was started in it, the newest first.
stop_all() {
    local file pid at
    for file in $(ls -t "$1"/run/*.pid 2>/dev/null); do
        read -r pid at <"$file" || true
        if [ -n "$at" ] && [ "$(started_at "$pid")" = "$at" ]; then
            kill "$pid" 2>/dev/null
            until_true 10 is_gone "$pid" "$at" || kill -9 "$pid" 2>/dev/null
        fi
        rm -f "$file"
    done
}

is_gone() { [ "$(started_at "$1")" != "$2" ]; }
