#!/usr/bin/env bash
# estargz 0.19.1 (stargz-snapshotter). Converting a layer to eStargz gives other bytes, another digest and
# another diff ID on machines with another number of processors: by default the archive is cut into
# GOMAXPROCS pieces (at least) that are compressed side by side, and each piece begins a gzip member of its
# own. The table of contents has those offsets in it and is a file of the archive, so the uncompressed layer
# differs, too. A build is reproducible only with WithParallelism(N), which came with 0.19, or with
# WithMinChunkSize. Needs Go 1.25 or newer.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
cat >main.go <<'GO'
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func build(layer *io.SectionReader, options ...estargz.Option) string {
	blob, err := estargz.Build(layer, options...)
	if err != nil {
		panic(err)
	}
	defer blob.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, blob); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%x diff ID %s", hash.Sum(nil)[:6], blob.DiffID()[7:19])
}

func main() {
	layer, err := os.Open("layer.tar")
	if err != nil {
		panic(err)
	}
	info, err := layer.Stat()
	if err != nil {
		panic(err)
	}
	seen := map[string]bool{}
	for _, processors := range []int{1, 2, 4, 8} {
		runtime.GOMAXPROCS(processors)
		one := build(io.NewSectionReader(layer, 0, info.Size()))
		again := build(io.NewSectionReader(layer, 0, info.Size()))
		pinned := build(io.NewSectionReader(layer, 0, info.Size()), estargz.WithParallelism(4))
		fmt.Printf("GOMAXPROCS=%d: %s, built again %v; WithParallelism(4): %s\n", processors, one, one == again, pinned)
		seen[one] = true
		seen["pinned "+pinned] = true
	}
	if len(seen) != 5 {
		fmt.Println("this has changed")
		os.Exit(1)
	}
}
GO
go mod init example.com/processors >/dev/null 2>&1
go get github.com/containerd/stargz-snapshotter/estargz@v0.19.1 >/dev/null 2>&1
mkdir tree
for name in a b c d e f g h; do
    mkdir "tree/$name"
    echo "$name" >"tree/$name/file"
    ln -s file "tree/$name/link"
done
tar -cf layer.tar -C tree .
go run .
