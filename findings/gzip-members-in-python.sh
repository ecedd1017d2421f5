#!/usr/bin/env bash
# deflate 0.9.0 (libdeflate) and rapidgzip 0.16.2 (Python). Of gzip data in several members, as bgzip and
# eStargz write it, deflate.gzip_decompress() gives the first member and no error, also when it is told the
# right size (zeros follow). Of data padded with zeros, which gzip(1) takes without a word, it gives nothing
# and no error, as it looks for the size in the last four bytes; rapidgzip raises ValueError in the place of
# the end. zlib-ng, isal and indexed_gzip read both.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check deflate==0.9.0 rapidgzip==0.16.2 \
    indexed-gzip==1.10.3 isal==1.9.1 zlib-ng==1.1.0
"$dir/venv/bin/python" - <<'PYTHON'
import gzip
import io

import deflate
import indexed_gzip
import rapidgzip
from isal import igzip
from zlib_ng import gzip_ng


def read(opened):
    with opened as file:
        return file.read()


ways = {
    "gzip": gzip.decompress,
    "deflate": deflate.gzip_decompress,
    "deflate, told the size": lambda data: deflate.gzip_decompress(data, 2000),
    "rapidgzip": lambda data: read(rapidgzip.open(io.BytesIO(data))),
    "indexed_gzip": lambda data: read(indexed_gzip.IndexedGzipFile(fileobj=io.BytesIO(data))),
    "isal": igzip.decompress,
    "zlib-ng": gzip_ng.decompress,
}
one = gzip.compress(b"A" * 1000)
inputs = {"two members": one + gzip.compress(b"B" * 1000), "padded": one + bytes(512)}
seen = {}
for name, way in ways.items():
    for what, data in inputs.items():
        try:
            seen[name, what] = len(bytes(way(data)).rstrip(b"\0"))
        except Exception as error:
            seen[name, what] = type(error).__name__
    print(f"{name:23} 2 x 1000 bytes: {seen[name, 'two members']}, 1000 bytes and padding: {seen[name, 'padded']}")
wrong = {way: result for way, result in seen.items() if result != {"two members": 2000, "padded": 1000}[way[1]]}
assert wrong == {
    ("deflate", "two members"): 1000,
    ("deflate", "padded"): 0,
    ("deflate, told the size", "two members"): 1000,
    ("rapidgzip", "padded"): "ValueError",
}, "this has changed"
PYTHON
