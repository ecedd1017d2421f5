#!/usr/bin/env bash
# zstd layers with large windows: containerd 2.4.2 and python-zstandard 0.25.0. A frame packed with a window
# of 256 MiB (zstd --long=28) or 512 MiB is unpacked by containerd without an option. python-zstandard
# refuses it, "Frame requires too much memory", as the zstd command does, since their limit is 128 MiB;
# max_window_size lifts it. It is the window that counts and not the data: here 1 MB. What runs on the node
# can so be unreadable for the scanner beside it. Needs Go 1.25 or newer.
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
go mod init example.com/window >/dev/null 2>&1
go get github.com/containerd/containerd/v2/pkg/archive/compression@v2.4.2 >/dev/null 2>&1
go build -o unpack .
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check zstandard==0.25.0
cat >zstd.py <<'PYTHON'
import sys

import zstandard

log = int(sys.argv[1])
parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log, enable_ldm=True)
compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
packed = compressor.compress(bytes(range(250)) * 4000) + compressor.flush()
with open("layer.zst", "wb") as layer:
    layer.write(packed)
window = zstandard.get_frame_parameters(packed).window_size >> 20
for limit in ({}, {"max_window_size": 1 << log}):
    try:
        size = len(zstandard.ZstdDecompressor(**limit).decompressobj().decompress(packed))
        print(f"window {window} MiB, python-zstandard {limit or ''}: {size} bytes")
    except zstandard.ZstdError as error:
        print(f"window {window} MiB, python-zstandard {limit or ''}: {error}")
PYTHON
for log in 27 28 29; do
    venv/bin/python zstd.py $log
    echo "containerd: $(./unpack layer.zst)"
done | tee seen
[ "$(grep -c 'containerd: 1000000 bytes, error: <nil>' seen)" = 3 ] && [ "$(grep -c 'Frame requires too much memory' seen)" = 2 ] || {
    echo "this has changed" >&2
    exit 1
}
