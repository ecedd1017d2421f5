#!/bin/sh
# Converts an image made from files of this machine and reads one file out of it. Run by `make demo`.
set -eu
cd "$(dirname "$0")/.."
rm -rf .demo
mkdir .demo

step() { printf '\n== %s\n' "$1"; }
run() {
    printf '$ %s\n' "$*"
    "$@"
}

step "An image with real layers, from files of this machine"
run python examples/make_image.py .demo/app

step "Make it lazily loadable: no root, no daemon, no temporary copy"
run soci image convert --soci oci:.demo/app oci:.demo/app-soci

step "What it holds now"
run soci image inspect oci:.demo/app-soci

step "Read one file out of the large layer through its zTOC"
eval "$(python - <<'PYTHON'
# The indexed layer, its zTOC, and a file from its middle.
from pathlib import Path
import shlex
from soci_cli import FileTree, decode_ztoc, inspect, open_source, parse_place

with open_source(parse_place("oci:.demo/app-soci"), Path(".demo")) as source:
    image = inspect(source)
layer = next(layer for layer in image.manifests[0].layers if layer.ztoc)
blobs = Path(".demo/app-soci/blobs/sha256")
ztoc = blobs / layer.ztoc.digest.partition(":")[2]
files = [f for f in decode_ztoc(ztoc.read_bytes()).files if f.has_data and f.uncompressed_size > 2000]
name = files[len(files) // 2].name.decode()
for key, value in (("layer", blobs / layer.digest.partition(":")[2]), ("ztoc", ztoc), ("name", name)):
    print(f"{key}={shlex.quote(str(value))}")
PYTHON
)"
run soci ztoc get-file -o .demo/file "$ztoc" "$layer" "$name"
if cmp -s .demo/file "/$name"; then
    echo "The same bytes as /$name on this machine."
else
    echo "The bytes differ from /$name!" >&2
    exit 1
fi
