#!/usr/bin/env bash
# CNCF distribution 2.8.2 (docker-registry of Debian 12; 3.1.2 does the same) with "cache: {blobdescriptor:
# inmemory}", as its usual configuration has it. A registry that runs during `garbage-collect` does not
# notice that blobs are deleted: HEAD says 200, and so does GET, with the full Content-Length and no bytes.
# Clients that push ask by HEAD and send nothing, the manifest is taken, and all report success. The image
# cannot be pulled, and pushing it again changes nothing until the registry is started anew. Needs Go 1.24
# or newer, and apt with Debian 12's packages.
set -euo pipefail
dir=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null; wait || true; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
GOBIN=$dir go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
apt-get download docker-registry=2.8.2+ds1-1 >log 2>&1 || { echo "no docker-registry 2.8.2+ds1-1 here" >&2; exit 2; }
dpkg-deb -x docker-registry_*.deb .
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
up() { for _ in $(seq 100); do curl -sf "http://$1/v2/" >/dev/null && return; sleep 0.1; done; }
from=127.0.0.1:$(free)
./crane registry serve --address "$from" >>log 2>&1 &
pids=$!
up "$from"
at=127.0.0.1:$(free)
cat >config.yml <<YML
version: 0.1
storage:
  filesystem: {rootdirectory: $dir/data}
  delete: {enabled: true}
  cache: {blobdescriptor: inmemory}
http: {addr: '$at'}
YML
serve() {
    usr/bin/docker-registry serve config.yml >>log 2>&1 &
    registry=$!
    pids="$pids $registry"
    up "$at"
}
serve
usr/bin/docker-registry --version
seq 100000 >numbers
tar -cf layer.tar numbers
./crane append --oci-empty-base -f layer.tar -t "$from/app:1" >>log 2>&1
push() { ./crane copy "$from/app:1" "$at/app:1" >>log 2>&1 && echo "pushed" || echo "not pushed"; }
pull() { ./crane pull "$at/app:1" image.tar >>log 2>&1 && echo "pulled" || echo "not pulled"; }
push
pull
manifest=$(./crane digest "$from/app:1")
layer=$(./crane manifest "$from/app:1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["layers"][0]["digest"])')
curl -sf -X DELETE "http://$at/v2/app/manifests/$manifest"
usr/bin/docker-registry garbage-collect config.yml >>log 2>&1
head=$(curl -s -I -o headers -w '%{http_code}' "http://$at/v2/app/blobs/$layer")
get=$(curl -s -o body -w '%{http_code} with %{size_download}' "http://$at/v2/app/blobs/$layer" || true)
echo "after the clean-up: HEAD $head, GET $get of $(tr -d '\r' <headers | sed -n 's/^Content-Length: //p') bytes"
again="$(push), $(pull)"
echo "once more: $again"
kill "$registry"
wait "$registry" || true
serve
anew="$(push), $(pull)"
echo "after a new start: $anew"
[ "$head, $get, $again, $anew" = "200, 200 with 0, pushed, not pulled, pushed, pulled" ] || { echo "this has changed" >&2; exit 1; }
