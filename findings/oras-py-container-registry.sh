#!/usr/bin/env bash
# oras-py 0.2.43. oras.container.Container(NAME, registry=REGISTRY) drops the registry that it is given when the
# first part of NAME has a dot in it, and takes that part for the host, without a word. Such repository names
# are allowed by the distribution specification ("my.repo/app"), so requests for a repository of a known
# registry go to another host, with whatever credentials the caller set.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check oras==0.2.43
"$dir/venv/bin/python" - <<'PYTHON'
from oras.container import Container

seen = {}
for name in ("repo/app:1", "my.repo/app:1"):
    one = Container(name, registry="registry.example:5000")
    seen[name] = one.registry
    print(f"{name} with registry=registry.example:5000: host {one.registry}, {one.manifest_url()}")
assert seen == {"repo/app:1": "registry.example:5000", "my.repo/app:1": "my.repo"}, "this has changed"
PYTHON
