#!/bin/sh
# Makes the virtual environment that holds genuine Cinder and prints the path of its Python interpreter.
# Takes about half a minute, and nothing when the environment is there and holds what requirements.txt names.
#
#   setup.sh            Cinder as requirements.txt has it
#   setup.sh 28.0.0     that release with the other packages of requirements.txt, in an environment of its own
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
release=${1:-}
if [ -n "$release" ]; then
    venv=${CINDERFS_VENV:-$HOME/.cache/cinderfs/cinder}-$release
else
    venv=${CINDERFS_VENV:-$HOME/.cache/cinderfs/cinder-29}
fi
stamp=$venv/installed-requirements.txt # written last: an interrupted set-up is done again
wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
sed "s/^cinder==.*/cinder==${release:-&}/; s/^cinder==cinder==/cinder==/" "$here/requirements.txt" >"$wanted"

if ! cmp -s "$wanted" "$stamp" || ! "$venv/bin/python" -c '' 2>/dev/null; then
    echo "setup.sh: installing genuine Cinder into $venv" >&2
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        { apt-get update -qq && apt-get install -y -qq python3-venv; } >&2
    fi
    python3 -m venv --clear "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$wanted" >&2
    # A first backup shows that nothing is missing.
    "$venv/bin/python" "$here/cinder.py" "$venv/first-store" backup "$here/requirements.txt" --compression zstd >&2
    cp "$wanted" "$stamp"
fi
echo "$venv/bin/python"
