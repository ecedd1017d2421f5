#!/bin/sh
# Makes a virtual environment with this project in it: make-venv.sh FOLDER PYTHON WHAT
set -eu
venv=$1 python=$2 what=$3

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "Python 3.10 or newer is needed; name it with: make PYTHON=/path/to/python3" >&2
    exit 1
fi

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

if [ ! -x "$venv/bin/pip" ]; then
    rm -rf "$venv"
    # Debian and Ubuntu keep what venv needs in a package of its own.
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        rm -rf "$venv"
        echo "installing python3-venv" >&2
        { as_root apt-get update -qq && as_root apt-get install -y -qq python3-venv; } >/dev/null 2>&1 || true
        "$python" -m venv "$venv" || {
            rm -rf "$venv"
            echo "no virtual environment could be made; install python3-venv" >&2
            exit 1
        }
    fi
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable "$what"
