#!/usr/bin/env bash
# skopeo 1.9.3 (Debian 12) with containers/storage, as podman and buildah have it. An additional image store
# (additionalimagestores in storage.conf, overlay.imagestore) is a folder of images to read besides one's
# own. With the overlay driver, a folder that is absent, as on a disk or NFS that is not mounted at the
# moment, is no store less: everything fails that opens the storage, for images that are in one's own store,
# too. An empty folder does no harm, and the vfs driver makes the folder. Needs root and skopeo.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "run it as root" >&2; exit 2; }
skopeo --version
[ "$(skopeo --version)" = "skopeo version 1.9.3" ] || { echo "this is for skopeo 1.9.3" >&2; exit 2; }
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p layout/blobs/sha256 there
digest() { sha256sum "$1" | cut -d' ' -f1; }
keep() { mv "$1" "layout/blobs/sha256/$(digest "$1")"; }
oci=application/vnd.oci.image
echo hello >hello
tar -cf layer hello
printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$(digest layer)" >config
printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"%s.layer.v1.tar","digest":"sha256:%s","size":%s}]}' \
    $oci $oci "$(digest config)" "$(stat -c %s config)" $oci "$(digest layer)" "$(stat -c %s layer)" >manifest
printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s.manifest.v1+json","digest":"sha256:%s","size":%s}]}' \
    $oci "$(digest manifest)" "$(stat -c %s manifest)" >layout/index.json
echo '{"imageLayoutVersion":"1.0.0"}' >layout/oci-layout
for one in layer config manifest; do keep $one; done
cat >inside.sh <<'INSIDE'
mount -t tmpfs tmpfs /var/lib
image() { echo "containers-storage:[$1@$PWD/$1+$PWD/run-$1${2:+:$2}]example.com/app:1"; }
for driver in overlay vfs; do
    skopeo --insecure-policy copy -q oci:layout "$(image $driver "")" || exit 2
    for store in there absent; do
        skopeo inspect --raw "$(image $driver "$driver.imagestore=$PWD/$store")" >/dev/null 2>err && status=read || status=$(grep -o "can't stat imageStore dir" err)
        echo "$driver $store: $status"
    done
done
INSIDE
unshare --mount bash inside.sh >seen || { echo "no overlay storage here" >&2; exit 2; }
cat seen
[ "$(paste -sd, seen)" = "overlay there: read,overlay absent: can't stat imageStore dir,vfs there: read,vfs absent: read" ] || {
    echo "this has changed" >&2
    exit 1
}
