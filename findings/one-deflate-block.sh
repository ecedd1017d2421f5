#!/usr/bin/env bash
# python-isal 1.9.1 at level 0 and zlib-ng 1.1.0 at level 1, the fastest ones that compress. Both write the
# whole of what they are given as one DEFLATE block, however large; zlib and the other levels begin a new
# one often. A gzip file can be entered only between two blocks, so no index of whatever kind (zran,
# indexed_gzip, SOCI) helps with such a file: to read its last byte it is inflated from the first one.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check isal==1.9.1 zlib-ng==1.1.0 indexed-gzip==1.10.3
"$dir/venv/bin/python" - <<'PYTHON'
import gzip
import io
import random

import indexed_gzip
from isal import igzip
from zlib_ng import gzip_ng

random.seed(1)
words = [bytes(random.choices(b"abcdefghijklmnop", k=6)) for _ in range(3000)]
text = b" ".join(random.choices(words, k=1_500_000))


def points(compressed):
    with indexed_gzip.IndexedGzipFile(fileobj=io.BytesIO(compressed), spacing=1 << 20) as file:
        file.build_full_index()
        return [offset for offset, _ in file.seek_points() if offset < len(text)]


print(f"places to enter in {len(text)} bytes, one a MiB asked for:")
seen = {}
for name, library in (("zlib", gzip), ("isal", igzip), ("zlib-ng", gzip_ng)):
    for level in (0, 1, 2):
        compressed = library.compress(text, level)
        assert gzip.decompress(compressed) == text
        seen[name, level] = len(points(compressed))
        print(f"  {name:8} level {level}: {seen[name, level]:3} in {len(compressed)} bytes")
one = {how for how, count in seen.items() if count == 1}
assert one == {("isal", 0), ("zlib-ng", 1)}, "this has changed"
assert all(count >= 9 for how, count in seen.items() if how not in one), "this has changed"
PYTHON
