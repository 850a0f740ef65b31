#!/usr/bin/env bash
# The backups that were made in the machine, restored here by cinderfs and by genuine Cinder.
#
#   restored.sh FOLDER COUNT    FOLDER is what the machine left: stores, and `sums` with a line `STORE ID SHA256` for each of COUNT backups
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$1"
python=$("$repo/scripts/genuine-cinder/setup.sh")
passed=0
failures=0
judge() { # WHAT ACTUAL EXPECTED
    if [ "$2" = "$3" ]; then echo "ok: $1" && passed=$((passed + 1)); else echo "FAILED: $1: $2, not $3" && failures=$((failures + 1)); fi
}
image=$(mktemp "$PWD/image.XXXXXX")
count=0
while read -r store id sum; do
    count=$((count + 1))
    actual=$("$CINDERFS" restore "$store" "$id" - 2>/dev/null | sha256sum | cut -d' ' -f1)
    judge "cinderfs restores $store $id" "$actual" "$sum"
    rm -f "$image"
    "$python" "$repo/scripts/genuine-cinder/cinder.py" "$store" restore "$id" "$image" >/dev/null
    # Cinder restores into a volume of whole GiB; the rest of it is not the backup's.
    bytes=$("$CINDERFS" restore "$store" "$id" - 2>/dev/null | wc -c)
    judge "Cinder restores $store $id" "$(head -c "$bytes" "$image" | sha256sum | cut -d' ' -f1)" "$sum"
done <sums
rm -f "$image"
judge "number of backups" "$count" "$2"
echo "read here: $passed passed, $failures failed"
[ "$failures" -eq 0 ]
