#!/usr/bin/env bash
# CNCF distribution 3.1.2 (2.8.2 does the same). An OCI manifest is "not found" (404, MANIFEST_UNKNOWN) for
# a client that accepts everything: "Accept: */*", as curl and many HTTP libraries send, is not understood,
# nor is no Accept header at all; only the exact media type counts. A manifest in Docker's format is found
# all the same. So a check whether a tag or a digest exists depends on the format that it was pushed in.
# Needs Go 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
GOBIN=$dir go install github.com/distribution/distribution/v3/cmd/registry@v3.1.2 2>/dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=http://127.0.0.1:$port/v2/app
printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $dir/data}}" "http: {addr: 127.0.0.1:$port}" >"$dir/config.yml"
"$dir/registry" serve "$dir/config.yml" >"$dir/log" 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/v2/" >/dev/null && break; sleep 0.1; done

config='{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
digest=sha256:$(printf %s "$config" | sha256sum | cut -d' ' -f1)
place=$(curl -sf -D - -X POST "$at/blobs/uploads/" | tr -d '\r' | sed -n 's/^Location: //p')
curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary "$config" "$place&digest=$digest"
put() { # TAG MANIFEST-TYPE CONFIG-TYPE
    curl -sf -X PUT -H "Content-Type: $2" "$at/manifests/$1" --data-binary \
        '{"schemaVersion":2,"mediaType":"'"$2"'","config":{"mediaType":"'"$3"'","digest":"'"$digest"'","size":'${#config}'},"layers":[]}'
}
oci=application/vnd.oci.image.manifest.v1+json
put oci $oci application/vnd.oci.image.config.v1+json
put docker application/vnd.docker.distribution.manifest.v2+json application/vnd.docker.container.image.v1+json
"$dir/registry" --version
seen=
for tag in oci docker; do
    for accept in '' '*/*' 'application/*' $oci; do
        status=$(curl -s -I -o /dev/null -w '%{http_code}' -H "Accept:$accept" "$at/manifests/$tag")
        echo "$tag manifest, Accept: ${accept:-(no such header)}: $status"
        seen+="$status "
    done
done
[ "$seen" = "404 404 404 200 200 200 200 200 " ] || { echo "this has changed" >&2; exit 1; }
