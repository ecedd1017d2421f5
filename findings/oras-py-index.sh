#!/usr/bin/env bash
# oras-py 0.2.43. Pulling a tag that is an image index (any image of several platforms, any SOCI v2 image)
# raises nothing, writes nothing and returns an empty list, as if there were no files in it. get_manifest()
# returns the index in the place of a manifest. upload_manifest() refuses to send one: it asks for "config"
# and "layers" and raises jsonschema's ValidationError before any request, though every registry takes it.
# Needs Go 1.24 or newer for a small registry (crane 0.20.6).
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
GOBIN=$dir go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check oras==0.2.43
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
"$dir/crane" registry serve --address "$at" >"$dir/log" 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
echo hello >"$dir/hello"
tar -cf "$dir/layer.tar" -C "$dir" hello
"$dir/crane" append --oci-empty-base -f "$dir/layer.tar" -t "$at/app:one" >/dev/null 2>&1
"$dir/crane" index append --docker-empty-base=false -m "$at/app:one" -t "$at/app:v2" >/dev/null 2>&1
mkdir "$dir/out"
"$dir/venv/bin/python" - "$at" "$dir/out" <<'PYTHON'
import os
import sys

import oras.client

at, out = sys.argv[1:]
client = oras.client.OrasClient(hostname=at, insecure=True)
files = client.pull(target=f"{at}/app:v2", outdir=out)
print("pull returned", files, "and wrote", os.listdir(out))
manifest = client.get_manifest(f"{at}/app:v2")
print("get_manifest returned", sorted(manifest))
try:
    client.upload_manifest(manifest, client.get_container(f"{at}/app:copy"))
    refused = ""
except Exception as error:
    refused = f"{type(error).__name__}: {str(error).splitlines()[0]}"
print("upload_manifest raised", refused)
assert files == [] and os.listdir(out) == [], "this has changed"
assert sorted(manifest) == ["manifests", "mediaType", "schemaVersion"], "this has changed"
assert refused == "ValidationError: 'config' is a required property", "this has changed"
PYTHON
