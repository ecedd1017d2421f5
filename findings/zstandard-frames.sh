#!/usr/bin/env bash
# python-zstandard 0.25.0. A zstd stream may have several frames (RFC 8878, 3.1), as layers by zstd:chunked
# have. Of the ways to decompress one, decompress(), read_to_iter() and decompressobj() end after the first
# frame without an error; stream_reader(), stream_writer() and copy_stream() read them all. A skippable frame
# in front makes read_to_iter() and decompressobj() end with nothing, again without an error.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check zstandard==0.25.0
"$dir/venv/bin/python" - <<'PYTHON'
import io
import struct

import zstandard

compressor, decompressor = zstandard.ZstdCompressor(), zstandard.ZstdDecompressor()
two = compressor.compress(b"A" * 1000) + compressor.compress(b"B" * 1000)
skippable = struct.pack("<II", 0x184D2A50, 4) + b"meta" + two


def copy_stream(data):
    out = io.BytesIO()
    decompressor.copy_stream(io.BytesIO(data), out)
    return out.getvalue()


def stream_writer(data):
    out = io.BytesIO()
    decompressor.stream_writer(out).write(data)
    return out.getvalue()


ways = {
    "decompress": decompressor.decompress,
    "read_to_iter": lambda data: b"".join(decompressor.read_to_iter(io.BytesIO(data))),
    "decompressobj": lambda data: decompressor.decompressobj().decompress(data),
    "stream_reader": lambda data: decompressor.stream_reader(io.BytesIO(data)).read(),
    "stream_writer": stream_writer,
    "copy_stream": copy_stream,
}


def length(way, data):
    try:
        return len(way(data))
    except zstandard.ZstdError as error:
        return f"ZstdError: {error}"


print("of 2000 bytes in two frames, and with a skippable frame in front:")
seen = {name: (length(way, two), length(way, skippable)) for name, way in ways.items()}
for name, (plain, skipped) in seen.items():
    print(f"  {name:14} {plain:>5}   {skipped}")
assert {name for name, (plain, _) in seen.items() if plain == 1000} == {
    "decompress", "read_to_iter", "decompressobj",
}, "this has changed"
assert {name for name, (_, skipped) in seen.items() if skipped == 0} == {
    "read_to_iter", "decompressobj",
}, "this has changed"
PYTHON
