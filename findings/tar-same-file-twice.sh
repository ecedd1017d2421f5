#!/usr/bin/env bash
# GNU tar 1.34 and containerd 2.4.2. `find . | tar -cT -` (without --no-recursion) puts each file into the
# archive several times, since find names the directories and tar descends into them. GNU tar stores a file
# that it has stored before as a hard link, so the archive has hard links of files to themselves. GNU tar
# extracts that without a word. As a layer it is refused: containerd removes the file to make room for the
# link, and then the link has no target ("no such file or directory"). Needs Go 1.25 or newer, GNU tar and
# find.
set -euo pipefail
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
	_, err = archive.Apply(context.Background(), "containerd", layer, archive.WithNoSameOwner())
	fmt.Println("error:", err)
}
GO
go mod init example.com/twice >/dev/null 2>&1
go get github.com/containerd/containerd/v2/pkg/archive@v2.4.2 >/dev/null 2>&1
go build -o apply .
mkdir -p tree/etc gnu containerd
echo text >tree/etc/file
(cd tree && find . | tar -cf ../layer.tar -T -)
tar --version | head -1
tar -tvf layer.tar | grep file
tar -xf layer.tar -C gnu
echo "extracted by tar: $(cat gnu/etc/file)"
seen=$(./apply)
echo "applied by containerd: $seen"
[ "$(cat gnu/etc/file)" = text ] && [ "$seen" = "error: link containerd/etc/file containerd/etc/file: no such file or directory" ] || {
    echo "this has changed" >&2
    exit 1
}
