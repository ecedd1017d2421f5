#!/usr/bin/env bash
# CNCF distribution 2.8.2 (docker-registry of Debian 12; 3.1.2 does the same) as a pull-through cache. For
# each tag it asks the registry behind it, so a tag that was moved gives the new image at once. A tag that
# was deleted there, for instance since the image must not be used any more, is given from the cache as
# before, with 200, for up to a week: an answer of 404 counts like a registry that is not there. The list of
# tags, which is not cached, has it no more. Needs apt with Debian 12's packages.
set -euo pipefail
dir=$(mktemp -d)
pids=
trap 'kill $pids 2>/dev/null; wait || true; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download docker-registry=2.8.2+ds1-1 >log 2>&1 || { echo "no docker-registry 2.8.2+ds1-1 here" >&2; exit 2; }
dpkg-deb -x docker-registry_*.deb .
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
serve() { # NAME PORT and more lines of configuration
    printf '%s\n' 'version: 0.1' "storage: {filesystem: {rootdirectory: $dir/$1}, delete: {enabled: true}}" \
        "http: {addr: 127.0.0.1:$2}" "${@:3}" >"$1.yml"
    usr/bin/docker-registry serve "$1.yml" >>log 2>&1 &
    pids="$pids $!"
    for _ in $(seq 100); do curl -sf "http://127.0.0.1:$2/v2/" >/dev/null && return; sleep 0.1; done
    return 1
}
origin=$(free)
serve origin "$origin"
cache=$(free)
serve cache "$cache" "proxy: {remoteurl: 'http://127.0.0.1:$origin'}"
origin=http://127.0.0.1:$origin/v2/app cache=http://127.0.0.1:$cache/v2/app

echo '{"architecture":"amd64","os":"linux"}' >config
config=sha256:$(sha256sum config | cut -d' ' -f1)
place=$(curl -sf -D - -X POST "$origin/blobs/uploads/" | tr -d '\r' | sed -n 's/^Location: //p')
curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary @config "$place&digest=$config"
oci=application/vnd.oci.image
push() { # TAG NOTE
    curl -sf -X PUT -H "Content-Type: $oci.manifest.v1+json" "$origin/manifests/$1" --data-binary \
        '{"schemaVersion":2,"mediaType":"'$oci'.manifest.v1+json","config":{"mediaType":"'$oci'.config.v1+json","digest":"'"$config"'","size":38},"layers":[],"annotations":{"note":"'"$2"'"}}'
}
get() { # REPOSITORY TAG; prints the status and the note
    curl -s -o body -w '%{http_code}' -H "Accept: $oci.manifest.v1+json" "$1/manifests/$2"
    sed -n 's/.*"note":"\([a-z]*\)".*/ \1/p' body
}
usr/bin/docker-registry --version
push moved old
push deleted old
echo "both through the cache: $(get "$cache" moved), $(get "$cache" deleted)"
push moved new
digest=$(curl -s -I -H "Accept: $oci.manifest.v1+json" "$origin/manifests/deleted" | tr -d '\r' | sed -n 's/^Docker-Content-Digest: //p')
curl -sf -X DELETE "$origin/manifests/$digest"
moved=$(get "$cache" moved) there=$(get "$origin" deleted) deleted=$(get "$cache" deleted) tags=$(curl -s "$cache/tags/list")
echo "the tag that was moved, through the cache: $moved"
echo "the tag that was deleted, from the registry: $there, through the cache: $deleted"
echo "list of tags through the cache: $tags"
[ "$moved, $there, $deleted" = "200 new, 404, 200 old" ] && [[ "$tags" = *'["moved"]'* ]] || { echo "this has changed" >&2; exit 1; }
