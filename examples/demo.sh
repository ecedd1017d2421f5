#!/bin/sh
# Makes an image in a registry lazily loadable, pulls it without its layers, reads a file of it, and mounts it.
# Run by `make demo`. The registry is one of ours, on a free port of this machine, and ends with the script.
set -eu
cd "$(dirname "$0")/.."
rm -rf .demo
mkdir .demo
SOCI_ROOT="$PWD/.demo/store" SOCI_CACHE="$PWD/.demo/cache" SOCI_STATE="$PWD/.demo/state"
SOCI_CONFIG=/dev/null DOCKER_CONFIG="$PWD/.demo"
export SOCI_ROOT SOCI_CACHE SOCI_STATE SOCI_CONFIG DOCKER_CONFIG

step() { printf '\n== %s\n' "$1"; }
run() {
    printf '$ %s\n' "$*"
    "$@"
}

step "A registry, and an image with real layers from files of this machine in it"
soci registry serve --quiet --addr 127.0.0.1:0 .demo/registry >.demo/serve.out &
registry=$!
trap 'soci umount --quiet --force .demo/mnt 2>/dev/null || :; kill $registry 2>/dev/null || :' EXIT
trap 'exit 130' INT TERM
tries=0
until grep -q '^serving' .demo/serve.out 2>/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "the registry does not start" >&2; exit 1; }
    sleep 0.1
done
host=$(sed -n 's,^serving .* at http://,,p' .demo/serve.out)
run python examples/make_image.py .demo/app
run soci image load -i .demo/app --name "$host/app:1"
run soci push --snapshotter overlayfs "$host/app:1"
run soci rmi "$host/app:1" >/dev/null

step "Make it lazily loadable, in the registry: no root, no daemon, nothing on disk, no layer uploaded"
run soci image convert --soci "docker://$host/app:1" "docker://$host/app:1-soci"

step "What it holds now"
run soci image inspect "docker://$host/app:1-soci"

step "Pull it lazily: indexed layers stay in the registry"
run soci pull "$host/app:1-soci"
du -sh .demo/store | sed 's,\t.*, in the local store,'

step "Read one file of it: only the spans that hold it are fetched"
name=$(python - "docker://$host/app:1-soci" <<'PYTHON'
# A file from the middle of the indexed layer.
import sys
from pathlib import Path
from soci_cli import decode_ztoc, inspect, open_source, parse_place, read_blob
from soci_cli.oci import Descriptor

with open_source(parse_place(sys.argv[1]), Path(".demo")) as source:
    ztoc = next(layer.ztoc for layer in inspect(source).manifests[0].layers if layer.ztoc)
    data = read_blob(source, Descriptor("application/octet-stream", ztoc.digest, ztoc.size), 1 << 30)
files = [f for f in decode_ztoc(data).files if f.has_data and f.uncompressed_size > 2000]
print(files[len(files) // 2].name.decode())
PYTHON
)
printf '$ python examples/read_one_file.py %s %s > .demo/file\n' "$host/app:1-soci" "$name"
python examples/read_one_file.py "$host/app:1-soci" "$name" >.demo/file
if cmp -s .demo/file "/$name"; then
    echo "The same bytes as /$name on this machine."
else
    echo "The bytes differ from /$name!" >&2
    exit 1
fi

step "Mount all of it: what is read is fetched, and nothing else"
mkdir .demo/mnt
printf '$ soci mount docker://%s .demo/mnt\n' "$host/app:1-soci"
if ! soci mount "docker://$host/app:1-soci" .demo/mnt; then
    echo "This machine lets nobody mount; docs/lazy.md says what that needs."
    exit 0
fi
printf '$ find .demo/mnt -type f | wc -l\n'
find .demo/mnt -type f | wc -l
printf '$ cat .demo/mnt/%s > .demo/file\n' "$name"
cat ".demo/mnt/$name" >.demo/file
cmp .demo/file "/$name"
run soci stats .demo/mnt
run soci umount .demo/mnt
