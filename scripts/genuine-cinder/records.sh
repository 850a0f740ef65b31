#!/bin/sh
# Passes the records that cinderfs makes through genuine Cinder, and deletes behind its back; see records.py. SEED repeats a run.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$("$here/setup.sh")
exec "$python" "$here/records.py" "$@"
