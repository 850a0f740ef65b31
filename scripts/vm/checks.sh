# What payloads count and tell with; run.sh puts it beside each. shellcheck shell=dash

passed=0
failures=0
fail() {
    echo "FAILED: $*"
    [ ! -s /tmp/err ] || sed 's/^/    /' /tmp/err
    failures=$((failures + 1))
}
begin() { echo "--- $* ($(cut -d' ' -f1 /proc/uptime) s)"; }
# check WHAT COMMAND ...
check() {
    what=$1
    shift
    if "$@"; then echo "ok: $what" && passed=$((passed + 1)); else fail "$what"; fi
}
# has FILE WORDS: says what was printed if it is not there.
has() { grep -qF -- "$2" "$1"; }
# must COMMAND ...: what the rest depends on.
must() {
    "$@" >/tmp/must 2>&1 && return
    cat /tmp/must
    echo "FAILED: $*"
    exit 1
}
