"""Read one file of a converted image through a zTOC, fetching only the spans that hold it.

    python examples/read_one_file.py oci:app:1.0-soci usr/lib/python3.11/json/__init__.py > out

PLACE may be docker://IMAGE, or an image that was pulled lazily: then the spans come from its registry. The
content goes to stdout, and the bytes that were fetched of the layer to stderr. Of several platforms
the first is taken. Layers are tried from the topmost down; one without a zTOC is passed over, and whiteouts
are not looked at.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from soci_cli import (
    FileTree,
    LayerReader,
    NotFoundError,
    SociError,
    decode_ztoc,
    inspect,
    open_source,
    parse_place,
)
from soci_cli.index.inspect import LayerFacts
from soci_cli.oci import Descriptor
from soci_cli.targets import Source, read_blob

STORE = Path(os.environ.get("SOCI_ROOT") or Path.home() / ".local/share/soci")
MAX_ZTOC = 1 << 30


def read_from_layer(source: Source, layer: LayerFacts, path: bytes) -> bool:
    """Writes the file to stdout if this layer has it; says whether it has."""
    if layer.ztoc is None:
        return False
    blob = Descriptor(layer.media_type, layer.digest, layer.size)
    described = Descriptor("application/octet-stream", layer.ztoc.digest, layer.ztoc.size)
    ztoc = decode_ztoc(read_blob(source, described, MAX_ZTOC))
    try:
        entry = FileTree(ztoc).find(path)
    except NotFoundError:
        return False

    def read_at(offset: int, length: int) -> bytes:
        with source.fetch(blob, offset, length) as stream:
            return stream.read()

    reader = LayerReader(ztoc, read_at, f"layer {layer.digest}")
    for piece in reader.read_file(entry):
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    print(
        f"{entry.uncompressed_size} bytes of file, {reader.fetched} bytes fetched of a layer of "
        f"{layer.size} ({reader.fetched / layer.size:.1%})",
        file=sys.stderr,
    )
    return True


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: read_one_file.py PLACE PATH", file=sys.stderr)
        return 2
    path = os.fsencode(arguments[1])
    try:
        with open_source(parse_place(arguments[0]), STORE) as source:
            images = [m for m in inspect(source).manifests if m.kind == "image"]
            for layer in reversed(images[0].layers if images else ()):
                if read_from_layer(source, layer, path):
                    return 0
        raise NotFoundError(f"no indexed layer of {arguments[0]} has {arguments[1]}")
    except SociError as error:
        print(f"read_one_file.py: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
