#!/usr/bin/env bash
# containerd 2.4.2, umoci 0.4.7 and skopeo 1.9.3 with containers/storage (the latter two of Debian 12). A
# layer made by `tar -C "$(mktemp -d)" .` has an entry for "./" with the temporary folder's mode, 0700.
# containerd leaves the root of the container as it made it (0755). containers/storage, where podman and
# buildah keep images, and umoci take the entry's mode: there nobody but root can open any file of the
# container, and a program that runs as another user is "not found". So one image works on one kind of node
# and not on the other. Needs root, skopeo, umoci, Go 1.25 or newer.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "run it as root" >&2; exit 2; }
skopeo --version
umoci --version
case $(umoci --version)/$(skopeo --version) in "umoci version 0.4.7"*"/skopeo version 1.9.3") ;; *) echo "this is for umoci 0.4.7 and skopeo 1.9.3" >&2; exit 2 ;; esac
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
cat >main.go <<'GO'
package main

import (
	"context"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
)

func main() {
	layer, err := os.Open("layer.tar")
	if err != nil {
		panic(err)
	}
	if _, err := archive.Apply(context.Background(), "containerd", layer); err != nil {
		panic(err)
	}
}
GO
go mod init example.com/root >/dev/null 2>&1
go get github.com/containerd/containerd/v2/pkg/archive@v2.4.2 >/dev/null 2>&1
go build -o apply .
tree=$(mktemp -d -p .)
echo text >"$tree/file"
tar -C "$tree" -cf layer.tar .
tar -tvf layer.tar
mkdir -m 755 containerd
./apply
umoci init --layout layout >log 2>&1
umoci new --image layout:1 >>log 2>&1
umoci raw add-layer --image layout:1 layer.tar >>log 2>&1
umoci unpack --image layout:1 bundle >>log 2>&1
cat >inside.sh <<'INSIDE'
mount -t tmpfs tmpfs /var/lib
exec skopeo --insecure-policy copy -q oci:layout:1 "containers-storage:[vfs@$PWD/root+$PWD/run]example.com/app:1"
INSIDE
unshare --mount bash inside.sh >>log 2>&1
containerd=$(stat -c %a containerd) umoci=$(stat -c %a bundle/rootfs) storage=$(stat -c %a root/vfs/dir/*)
echo "mode of / by containerd: $containerd, by umoci: $umoci, by containers/storage: $storage"
[ "$containerd $umoci $storage" = "755 700 700" ] || { echo "this has changed" >&2; exit 1; }
