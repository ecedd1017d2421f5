#!/usr/bin/env bash
# skopeo 1.9.3 (Debian 12) with containers/storage, where podman, buildah and CRI-O keep images, too. The
# storage knows an image by the digest of its config, and gives for all its names the manifest that came
# last. Two images that differ in their manifests only, in an annotation, as an image and its conversion to
# SOCI v2 or one that was labelled for a catalogue, become one: after pulling app:1 and app:2, app:1 is
# inspected, pushed and saved with the manifest of app:2, and the other way round when they are pulled the
# other way round. Needs skopeo and user namespaces; what skopeo writes to /var/lib is in a tmpfs.
set -euo pipefail
skopeo --version
[ "$(skopeo --version)" = "skopeo version 1.9.3" ] || { echo "this is for skopeo 1.9.3" >&2; exit 2; }
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
mkdir -p layout/blobs/sha256
digest() { sha256sum "$1" | cut -d' ' -f1; }
keep() { cp "$1" "layout/blobs/sha256/$(digest "$1")"; }
oci=application/vnd.oci.image
echo hello >hello
tar --owner=0 --group=0 -cf layer hello
printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$(digest layer)" >config
manifest() { # MORE
    printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"%s.layer.v1.tar","digest":"sha256:%s","size":%s}]%s}' \
        $oci $oci "$(digest config)" "$(stat -c %s config)" $oci "$(digest layer)" "$(stat -c %s layer)" "$1"
}
manifest '' >one
manifest ',"annotations":{"com.example.converted":"yes"}' >two
entry() { printf '{"mediaType":"%s.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"%s"}}' $oci "$(digest "$1")" "$(stat -c %s "$1")" "$1"; }
printf '{"schemaVersion":2,"manifests":[%s,%s]}' "$(entry one)" "$(entry two)" >layout/index.json
echo '{"imageLayoutVersion":"1.0.0"}' >layout/oci-layout
for one in layer config one two; do keep $one; done
cat >inside.sh <<'INSIDE'
mount -t tmpfs tmpfs /var/lib
for order in "one two" "two one"; do
    rm -rf root run
    storage="containers-storage:[vfs@$PWD/root+$PWD/run]example.com/app"
    for tag in $order; do skopeo --insecure-policy copy -q oci:layout:$tag "$storage:$tag" >>log 2>&1; done
    for tag in one two; do
        skopeo inspect --raw "$storage:$tag" | cmp -s - one && is=one || is=two
        echo "pulled $order: app:$tag has the manifest of $is"
    done
done
INSIDE
HOME=$dir unshare --user --map-root-user --mount bash inside.sh | tee seen
[ "$(sed 's/.*of //' seen | paste -sd' ')" = "two two one one" ] || { echo "this has changed" >&2; exit 1; }
