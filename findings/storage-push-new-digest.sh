#!/usr/bin/env bash
# skopeo 1.9.3 (Debian 12) with containers/storage, where podman, buildah and CRI-O keep images, too.
# Pulling an image and pushing it again unchanged gives another digest. The storage keeps layers unpacked,
# so they are compressed again, by another gzip than made them, unless a cache file (blob-info-cache) knows
# that the registry has them; the manifest is written again in any case, with its fields in this library's
# order. So an image has one digest pushed to where it came from, and a third one in another registry or
# once the cache is gone. Signatures and SOCI indexes of the first do not fit; those of single layers fit
# only with the cache. Needs skopeo, pigz, Go 1.24 or newer and user namespaces; what skopeo writes to
# /var/lib is in a tmpfs.
set -euo pipefail
if [ -z "${inside:-}" ]; then
    skopeo --version
    [ "$(skopeo --version)" = "skopeo version 1.9.3" ] || { echo "this is for skopeo 1.9.3" >&2; exit 2; }
    dir=$(mktemp -d)
    registry=
    trap 'kill $registry 2>/dev/null; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
    GOBIN=$dir go install github.com/google/go-containerregistry/cmd/crane@v0.20.6 2>/dev/null
    for _ in 1 2; do
        port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
        "$dir/crane" registry serve --address "127.0.0.1:$port" >>"$dir/log" 2>&1 &
        registry="$registry $!"
        for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/v2/" >/dev/null && break; sleep 0.1; done
        echo "127.0.0.1:$port" >>"$dir/registries"
    done
    inside=1 dir=$dir unshare --user --map-root-user --mount bash "$0"
    exit
fi
mount -t tmpfs tmpfs /var/lib
cd "$dir"
export HOME=$dir
{ read -r one && read -r other; } <registries
seq 300000 >numbers
tar --owner=0 --group=0 -cf layer.tar numbers
pigz layer.tar
./crane append --oci-empty-base -f layer.tar.gz -t "$one/app:1" >>log 2>&1
storage="containers-storage:[vfs@$dir/root+$dir/run]example.com/app:1"
copy() { skopeo --insecure-policy copy --src-tls-verify=false --dest-tls-verify=false "$@" >>log 2>&1; }
copy "docker://$one/app:1" "$storage"
copy "$storage" "docker://$one/app:again"
copy "$storage" "docker://$other/app:1"
find /var/lib/containers -name 'blob-info-cache*' -delete
copy "$storage" "docker://$one/app:later"
declare -A image layer
look() { # WHAT NAME
    image[$1]=$(./crane digest "$2" | cut -c8-19)
    layer[$1]=$(./crane manifest "$2" | python3 -c 'import json, sys; print(json.load(sys.stdin)["layers"][0]["digest"][7:19])')
    echo "$1: image ${image[$1]}, layer ${layer[$1]}"
}
look "pulled" "$one/app:1"
look "pushed to the same registry" "$one/app:again"
look "pushed to another registry" "$other/app:1"
look "to the same one, without the cache" "$one/app:later"
images=$(printf '%s\n' "${image[@]}" | sort -u | wc -l) layers=$(printf '%s\n' "${layer[@]}" | sort -u | wc -l)
[ "$images $layers" = "3 2" ] && [ "${layer[pulled]}" = "${layer[pushed to the same registry]}" ] || {
    echo "this has changed" >&2
    exit 1
}
