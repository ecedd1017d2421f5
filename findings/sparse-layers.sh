#!/usr/bin/env bash
# soci-snapshotter 0.16.1 (awslabs) and estargz 0.19.1 (stargz-snapshotter). A layer by GNU tar with
# --sparse in the POSIX format is indexed by the one and converted by the other without an error, and a
# sparse file of it has the right size and other bytes: both take the size from the header and so many bytes
# from the archive, beginning with the map of the holes. What eStargz has converted is wrong for eager
# pulls, too. Digests do not help, as they are made of those bytes. GNU tar, containerd and umoci read such
# layers. Databases, disk images and lastlog are sparse. Needs Go 1.26 or newer, GNU tar and zlib's static
# library (zlib1g-dev).
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
cat >main.go <<'GO'
package main

import (
	"io"
	"os"

	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/containerd/stargz-snapshotter/estargz"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	built, err := ztoc.NewBuilder("example").BuildZtoc("layer.tar.gz", 1<<20)
	check(err)
	for _, name := range []string{"plain", "sparse"} {
		content, err := built.ExtractFromTarGz("layer.tar.gz", name)
		check(err)
		check(os.WriteFile("soci/"+name, []byte(content), 0o644))
	}
	layer, err := os.Open("layer.tar")
	check(err)
	info, err := layer.Stat()
	check(err)
	blob, err := estargz.Build(io.NewSectionReader(layer, 0, info.Size()))
	check(err)
	out, err := os.Create("layer.esgz")
	check(err)
	_, err = io.Copy(out, blob)
	check(err)
}
GO
go mod init example.com/sparse >/dev/null 2>&1
go get github.com/awslabs/soci-snapshotter/ztoc@v0.16.1 github.com/containerd/stargz-snapshotter/estargz@v0.19.1 >/dev/null 2>&1
mkdir tree tar soci estargz
truncate -s 1M tree/sparse
echo end >>tree/sparse
head -c 2000000 /dev/urandom >tree/plain
tar --format=posix --sparse -cf layer.tar -C tree sparse plain
gzip -k layer.tar
go run .
tar -xf layer.tar -C tar
tar -xzf layer.esgz -C estargz
seen=
for by in tar soci estargz; do
    for name in plain sparse; do
        cmp -s "tree/$name" "$by/$name" && same=right || same=wrong
        echo "$by: $name has $(stat -c %s "$by/$name") bytes, $same"
        seen+="$same "
    done
done
[ "$seen" = "right right right wrong right wrong " ] || { echo "this has changed" >&2; exit 1; }
