#!/usr/bin/env bash
# crane 0.20.6 (go-containerregistry). `crane validate --remote` takes every manifest of an index for an image,
# whatever its config's media type and its artifactType say. A SOCI v2 index lists its SOCI indexes beside the
# images, as the image spec allows, so validating any such image fails: its zTOCs are no layers, and "{}" is no
# image config. A pipeline that gates on `crane validate` has to name the platform. Needs Go 1.24 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
GOBIN=$dir go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=127.0.0.1:$port
"$dir/crane" registry serve --address "$at" >"$dir/log" 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://$at/v2/" >/dev/null && break; sleep 0.1; done
crane() { "$dir/crane" "$@" 2>>"$dir/log"; }
digest() { printf 'sha256:%s' "$(printf %s "$1" | sha256sum | cut -d' ' -f1)"; }
put() { curl -sf -X PUT -H "Content-Type: $1" --data-binary "$3" "http://$at/v2/app/manifests/$2"; }
blob() { curl -sf -X POST --data-binary "$1" "http://$at/v2/app/blobs/uploads/?digest=$(digest "$1")"; }

# An image, a SOCI index of it with "ztoc" in place of a zTOC, and both in one index.
oci=application/vnd.oci.image
type=application/vnd.amazon.soci.index.v2+json
echo hello >"$dir/hello"
tar -cf "$dir/layer.tar" -C "$dir" hello
blob '{}'
blob ztoc
soci='{"schemaVersion":2,"mediaType":"'$oci'.manifest.v1+json","config":{"mediaType":"'$type'","digest":"'$(digest '{}')'","size":2},"layers":[{"mediaType":"application/octet-stream","digest":"'$(digest ztoc)'","size":4}]}'
put $oci.manifest.v1+json "$(digest "$soci")" "$soci"
crane append --oci-empty-base -f "$dir/layer.tar" -t "$at/app:bare" >/dev/null
crane mutate --set-platform linux/amd64 -a com.amazon.soci.index-digest="$(digest "$soci")" \
    -t "$at/app:image" "$at/app:bare" >/dev/null
image=$(crane digest "$at/app:image")
platform='"platform":{"architecture":"amd64","os":"linux"}'
put $oci.index.v1+json v2 '{"schemaVersion":2,"mediaType":"'$oci'.index.v1+json","manifests":[
    {"mediaType":"'$oci'.manifest.v1+json","digest":"'$image'","size":'$(crane manifest "$at/app:image" | wc -c)','$platform'},
    {"mediaType":"'$oci'.manifest.v1+json","digest":"'$(digest "$soci")'","size":'${#soci}','$platform',
     "artifactType":"'$type'","annotations":{"com.amazon.soci.image-manifest-digest":"'$image'"}}]}'

status=0 one=0
"$dir/crane" validate --remote "$at/app:v2" >"$dir/out" 2>&1 || status=$?
echo "crane validate --remote: exit $status"
grep -o 'validating layers: [a-z]* layer\|config file missing platform fields' "$dir/out" | sort -u
"$dir/crane" validate --remote "$at/app:v2" --platform linux/amd64 >"$dir/one" 2>&1 || one=$?
echo "crane validate --remote --platform linux/amd64: exit $one"
[ "$status" = 1 ] && [ "$one" = 0 ] && grep -q 'config file missing platform fields' "$dir/out" || {
    echo "this has changed" >&2
    cat "$dir/out" "$dir/one" >&2
    exit 1
}
