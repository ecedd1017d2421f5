#!/usr/bin/env bash
# soci-snapshotter 0.16.1 (awslabs). A layer by GNU tar with --sparse in the POSIX format is indexed without an
# error, and a sparse file is read from it with the right size and other bytes. The zTOC has the file's size and
# where its data begins in the archive; there lie a map of the holes and the parts between them, and whatever
# comes after. Digests do not help, as the spans are what they should be. Databases, disk images and lastlog are
# sparse. Needs Go 1.26 or newer, GNU tar and zlib's static library (zlib1g-dev).
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
cat >main.go <<'GO'
package main

import (
	"fmt"
	"os"

	"github.com/awslabs/soci-snapshotter/ztoc"
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
		check(os.WriteFile("read/"+name, []byte(content), 0o644))
		fmt.Printf("%s: %d bytes, error: %v\n", name, len(content), err)
	}
}
GO
go mod init example.com/sparse >/dev/null 2>&1
go get github.com/awslabs/soci-snapshotter/ztoc@v0.16.1 >/dev/null 2>&1
mkdir tree unpacked read
echo text >tree/plain
truncate -s 1M tree/sparse
echo end >>tree/sparse
tar --format=posix --sparse -czf layer.tar.gz -C tree sparse plain
tar -xzf layer.tar.gz -C unpacked
go run .
seen=
for name in plain sparse; do
    same="the same as tar's"
    cmp -s "unpacked/$name" "read/$name" || same="not tar's"
    echo "$name: $(stat -c %s "read/$name") bytes, $same"
    seen+="$(stat -c %s "read/$name") $same "
done
[ "$seen" = "5 the same as tar's 1048580 not tar's " ] || { echo "this has changed" >&2; exit 1; }
