#!/bin/sh
# Runs tests with the oldest release of each dependency that pyproject.toml allows: lowest.sh [PYTHON]
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
venv=.venv-lowest
sh tests/make-venv.sh "$venv" "$python" '.[dev]'
# The lists of what the package needs, alone and with containerd; each bound becomes a version.
sed -n '/^dependencies = \[/,/^\]/p; /^containerd = /p' pyproject.toml |
    grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+' | tr -d '"' | sed 's/>=/==/' >"$venv/lowest.txt"
cat "$venv/lowest.txt"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$venv/lowest.txt"
SOCI_TESTS_SCALE=0.1 "$venv/bin/pytest" -q -n auto -m 'not slow and not soak' tests/oci tests/ztoc tests/index \
    tests/targets tests/commands/registries tests/commands/test_convert.py tests/commands/test_like_the_reference.py
