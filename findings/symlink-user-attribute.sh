#!/usr/bin/env bash
# containerd 2.4.2, umoci 0.4.7 and skopeo 1.9.3 with containers/storage (the latter two of Debian 12).
# Linux has no user.* attributes on symbolic links (EPERM), other systems have, and their archives name
# them. containerd leaves such an attribute out and unpacks the layer. containers/storage, where podman and
# buildah keep images, fails for the whole image ("lsetxattr ...: operation not permitted"), and so does
# umoci as root. The same image starts on one kind of node and cannot be pulled on the other. Needs root,
# skopeo, umoci, Go 1.25 or newer.
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
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
)

func main() {
	layer, err := os.Open("layer.tar")
	if err != nil {
		panic(err)
	}
	_, err = archive.Apply(context.Background(), "containerd", layer)
	fmt.Println("error:", err)
}
GO
go mod init example.com/attribute >/dev/null 2>&1
go get github.com/containerd/containerd/v2/pkg/archive@v2.4.2 >/dev/null 2>&1
go build -o apply .
python3 - <<'PYTHON'
import io
import tarfile

with tarfile.open("layer.tar", "w", format=tarfile.PAX_FORMAT) as layer:
    file, link = tarfile.TarInfo("file"), tarfile.TarInfo("link")
    file.size = 5
    link.type, link.linkname = tarfile.SYMTYPE, "file"
    link.pax_headers = {"SCHILY.xattr.user.note": "text"}
    layer.addfile(file, io.BytesIO(b"text\n"))
    layer.addfile(link)
PYTHON
mkdir containerd
umoci init --layout layout >log 2>&1
umoci new --image layout:1 >>log 2>&1
umoci raw add-layer --image layout:1 layer.tar >>log 2>&1
containerd=$(./apply 2>>log)
status=0 storage=0
umoci unpack --image layout:1 bundle >umoci.log 2>&1 || status=$?
cat >inside.sh <<'INSIDE'
mount -t tmpfs tmpfs /var/lib
skopeo --insecure-policy copy -q oci:layout:1 "containers-storage:[vfs@$PWD/root+$PWD/run]example.com/app:1"
INSIDE
unshare --mount bash inside.sh >storage.log 2>&1 || storage=$?
echo "containerd: $containerd, cat link: $(cat containerd/link)"
echo "umoci unpack: exit $status $(grep -o 'link: operation not permitted' umoci.log)"
echo "skopeo copy to containers/storage: exit $storage $(grep -o 'lsetxattr.*permitted' storage.log | head -1)"
[ "$containerd, $status $storage" = "error: <nil>, 1 1" ] && grep -q 'lsetxattr /link: operation not permitted' storage.log || {
    echo "this has changed" >&2
    exit 1
}
