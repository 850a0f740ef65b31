#!/bin/sh
# Compares cinderfs with genuine Cinder on random chains; see gate.py --help for the options.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$("$here/setup.sh")
exec "$python" "$here/gate.py" "$@"
