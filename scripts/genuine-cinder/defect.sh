#!/bin/sh
# Lets genuine Cinder 28.0.0 restore chains wrongly, and has cinderfs find and repair it; see defect.py. SEED repeats a run.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$("$here/setup.sh" 28.0.0)
exec "$python" "$here/defect.py" "$@"
