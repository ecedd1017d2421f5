#!/usr/bin/env bash
# CNCF distribution 2.8.2 (docker-registry of Debian 12; 3.1.2 loses the layer, too). Digests may be sha512,
# says the image specification. The registry takes a layer under its sha512 digest, stores it under its
# sha256, serves it under both, and takes an image that names it by sha512. `registry garbage-collect` then
# looks for the sha512 digest among its files, finds nothing that uses the layer, and deletes it: the image
# is tagged and cannot be pulled any more. Needs apt with Debian 12's packages.
set -euo pipefail
dir=$(mktemp -d)
registry=
trap 'kill "$registry" 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download docker-registry=2.8.2+ds1-1 >log 2>&1 || { echo "no docker-registry 2.8.2+ds1-1 here" >&2; exit 2; }
dpkg-deb -x docker-registry_*.deb .
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
at=http://127.0.0.1:$port/v2/app
printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $dir/data}}" "http: {addr: 127.0.0.1:$port}" >config.yml
usr/bin/docker-registry serve config.yml >>log 2>&1 &
registry=$!
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/v2/" >/dev/null && break; sleep 0.1; done

put() { # FILE DIGEST
    local place
    place=$(curl -sf -D - -X POST "$at/blobs/uploads/" | tr -d '\r' | sed -n 's/^Location: //p')
    curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$1" "$place&digest=$2"
}
echo '{"architecture":"amd64","os":"linux"}' >config
echo hello >hello
tar -cf layer hello
config=sha256:$(sha256sum config | cut -d' ' -f1) layer=sha512:$(sha512sum layer | cut -d' ' -f1)
put config "$config"
put layer "$layer"
oci=application/vnd.oci.image
curl -sf -X PUT -H "Content-Type: $oci.manifest.v1+json" "$at/manifests/1.0" --data-binary \
    '{"schemaVersion":2,"mediaType":"'$oci'.manifest.v1+json","config":{"mediaType":"'$oci'.config.v1+json","digest":"'"$config"'","size":'"$(stat -c %s config)"'},"layers":[{"mediaType":"'$oci'.layer.v1.tar","digest":"'"$layer"'","size":'"$(stat -c %s layer)"'}]}'
look() {
    for what in manifests/1.0 "blobs/$config" "blobs/$layer"; do
        curl -s -o /dev/null -w '%{http_code} ' -H "Accept: $oci.manifest.v1+json" "$at/$what"
    done
}
usr/bin/docker-registry --version
before=$(look)
usr/bin/docker-registry garbage-collect config.yml >gc.log 2>&1
after=$(look)
echo "manifest, config, layer before: $before"
echo "                         after: $after"
[ "$before, $after" = "200 200 200 , 200 200 404 " ] || { echo "this has changed" >&2; cat gc.log >&2; exit 1; }
