#!/usr/bin/env bash
# CNCF distribution 2.8.2 (docker-registry of Debian 12). `registry garbage-collect --delete-untagged`
# counts a manifest as untagged when no tag names it directly. The manifests of an image of several
# platforms are named by its index only, so the clean-up deletes all of them, and what only they hold. The
# tag stays and still gives the index: the image looks as if it were there and cannot be pulled. Other parts
# of an image that an index lists, such as attestations and SOCI indexes, go the same way. (3.1.2 keeps
# them.) Needs apt with Debian 12's packages.
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

oci=application/vnd.oci.image
digest() { printf 'sha256:%s' "$(printf %s "$1" | sha256sum | cut -d' ' -f1)"; }
blob() {
    local place
    place=$(curl -sf -D - -X POST "$at/blobs/uploads/" | tr -d '\r' | sed -n 's/^Location: //p')
    curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary "$1" "$place&digest=$(digest "$1")"
}
put() { curl -sf -X PUT -H "Content-Type: $1" --data-binary "$3" "$at/manifests/$2"; }
entries=
for architecture in amd64 arm64; do
    config='{"architecture":"'$architecture'","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
    blob "$config"
    image='{"schemaVersion":2,"mediaType":"'$oci'.manifest.v1+json","config":{"mediaType":"'$oci'.config.v1+json","digest":"'$(digest "$config")'","size":'${#config}'},"layers":[]}'
    put $oci.manifest.v1+json "$(digest "$image")" "$image"
    entries+=${entries:+,}'{"mediaType":"'$oci'.manifest.v1+json","digest":"'$(digest "$image")'","size":'${#image}',"platform":{"architecture":"'$architecture'","os":"linux"}}'
done
put $oci.index.v1+json 1.0 '{"schemaVersion":2,"mediaType":"'$oci'.index.v1+json","manifests":['"$entries"']}'

seen() { curl -s -o /dev/null -w '%{http_code} ' -H "Accept: $oci.index.v1+json, $oci.manifest.v1+json" "$at/manifests/$1"; }
look() { for one in 1.0 $(grep -o 'sha256:[0-9a-f]*' <<<"$entries"); do seen "$one"; done; }
usr/bin/docker-registry --version
before=$(look)
usr/bin/docker-registry garbage-collect --delete-untagged config.yml >gc.log 2>&1
after=$(look)
echo "tag, amd64, arm64 before: $before"
echo "                   after: $after"
[ "$before, $after" = "200 200 200 , 200 404 404 " ] || { echo "this has changed" >&2; cat gc.log >&2; exit 1; }
