# For the scripts beside this one: packages, processes, ports. Each server has a folder of its own, with its data, its logs in `log`, its
# processes in `run`, and in `env` what tests have to know.

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# begin "$@": a script's own arguments. `up FOLDER ...` goes on; `down FOLDER` stops what was started in it, removes it, and ends the script.
begin() {
    case "${1:-} ${2:+FOLDER}" in
    "up FOLDER") ;;
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
    # shellcheck disable=SC2086
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $2; } >&2 ||
        die "cannot install $2"
    for command in $1; do type -P "$command" >/dev/null || die "still no $command after $2 was installed"; done
}

# prepare FOLDER: makes it, and stops what was started in it if the script fails.
prepare() {
    mkdir -p "$1/run" "$1/log"
    folder=$(cd "$1" && pwd)
    trap 'status=$?; [ $status = 0 ] || stop_all "$folder"; exit $status' EXIT
}

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

need_free() {
    local port
    for port in "$@"; do is_free "$port" || die "port $port is taken"; done
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

# start NAME COMMAND ...: in a session of its own. A process is known by its id and the time it was started at, since ids are used again.
start() {
    local name=$1
    shift
    setsid "$@" >>"$folder/log/$name.log" 2>&1 </dev/null &
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
