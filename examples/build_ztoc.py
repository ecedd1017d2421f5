"""Build the zTOC of a layer from a stream: stdin, or the body of an HTTP response.

    python examples/build_ztoc.py layer.ztoc < layer.tar.gz
    python examples/build_ztoc.py layer.ztoc https://example.com/layer.tar.gz

The stream is read once and never kept: no seeking, no temporary file.
"""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

from soci_cli import BuiltZtoc, SociError, build_ztoc


def build(url: str | None) -> BuiltZtoc:
    """The zTOC of the gzip layer at a URL, or on stdin without one."""
    if url is None:
        with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
            return build_ztoc(stream)
    with urllib.request.urlopen(url) as response:
        return build_ztoc(response)


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print("usage: build_ztoc.py OUT [URL]", file=sys.stderr)
        return 2
    try:
        built = build(arguments[1] if len(arguments) == 2 else None)
    except (SociError, OSError) as error:
        print(f"build_ztoc.py: {error}", file=sys.stderr)
        return 1
    Path(arguments[0]).write_bytes(built.data)
    print(f"{built.digest}  {len(built.data)} bytes")
    print(f"layer: {built.layer_size} bytes, {built.uncompressed_size} uncompressed")
    print(f"{built.spans} spans, {built.files} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
