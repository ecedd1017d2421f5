#!/usr/bin/env bash
# estargz 0.19.1 (stargz-snapshotter). An archive may have a name twice, as `tar -r` makes it; the later
# entry replaces the earlier. The conversion to eStargz drops the earlier one, also when a hard link between
# the two has given that file another name. What was a second name of the old file is then a link to the new
# one: read lazily it has the wrong content, without an error, and unpacking the converted layer fails,
# since the link now comes before its target. GNU tar and containerd unpack the layer that was converted,
# with the old file under its second name. Needs Go 1.25 or newer and GNU tar.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
cat >main.go <<'GO'
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	layer, err := os.Open("layer.tar")
	check(err)
	info, err := layer.Stat()
	check(err)
	blob, err := estargz.Build(io.NewSectionReader(layer, 0, info.Size()))
	check(err)
	out, err := os.Create("layer.esgz")
	check(err)
	size, err := io.Copy(out, blob)
	check(err)
	reader, err := estargz.Open(io.NewSectionReader(out, 0, size))
	check(err)
	file, err := reader.OpenFile("tool-1.0")
	check(err)
	content, err := io.ReadAll(file)
	check(err)
	fmt.Print(string(content))
}
GO
go mod init example.com/replaced >/dev/null 2>&1
go get github.com/containerd/stargz-snapshotter/estargz@v0.19.1 >/dev/null 2>&1
mkdir tree before after
echo old >tree/tool
ln tree/tool tree/tool-1.0
tar -cf layer.tar -C tree tool tool-1.0
rm tree/tool
echo new >tree/tool
tar -rf layer.tar -C tree tool
tar -tvf layer.tar
tar -xf layer.tar -C before
lazily=$(go run .)
status=0
tar -xzf layer.esgz -C after 2>err || status=$?
echo "tool-1.0 before: $(cat before/tool-1.0)"
echo "tool-1.0 in the eStargz layer, read lazily: $lazily"
echo "the eStargz layer unpacked: exit $status, $(head -1 err)"
[ "$(cat before/tool-1.0) $lazily $status" = "old new 2" ] || { echo "this has changed" >&2; exit 1; }
