#!/usr/bin/env bash
# containerd 2.4.2, pkg/archive/compression, as its diff service uses it. A gzip file padded with zeros, as
# tapes and block devices leave it and gzip(1) reads without a word, is a layer that unpacks on a node with
# unpigz (package pigz) on PATH and fails on one without: "gzip: invalid header". So it is with the same
# containerd and the same layer; nothing in its configuration says so. Needs Go 1.25 or newer, gzip and pigz.
set -euo pipefail
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
unpigz=$(command -v unpigz) || { echo "install pigz first" >&2; exit 2; }
cat >main.go <<'GO'
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
)

func main() {
	layer, err := os.Open(os.Args[1])
	if err != nil {
		panic(err)
	}
	stream, err := compression.DecompressStream(layer)
	if err != nil {
		panic(err)
	}
	size, err := io.Copy(io.Discard, stream)
	fmt.Printf("%d bytes, error: %v\n", size, err)
}
GO
go mod init example.com/padding >/dev/null 2>&1
go get github.com/containerd/containerd/v2/pkg/archive/compression@v2.4.2 >/dev/null 2>&1
go build -o unpack .
head -c 200000 /dev/urandom | gzip -n >layer.gz
head -c 512 /dev/zero >>layer.gz
echo "gzip(1):        $(gzip -dc layer.gz | wc -c) bytes"
mkdir with without
ln -s "$unpigz" with/unpigz
with=$(PATH=$dir/with ./unpack layer.gz)
without=$(PATH=$dir/without ./unpack layer.gz)
echo "unpigz on PATH: $with"
echo "without it:     $without"
[ "$with" = "200000 bytes, error: <nil>" ] && [ "$without" = "200000 bytes, error: gzip: invalid header" ] || {
    echo "this has changed" >&2
    exit 1
}
