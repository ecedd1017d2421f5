"""Convert an image in one place into a lazily loadable one in another, and tell how it goes.

    python examples/convert_layout.py oci:app:1.0 oci:app:1.0-soci

The observer is what `soci image convert` draws its progress bars with. Here it prints a line where a
piece of work ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from soci_cli import ConvertOptions, SociError, convert, open_source, open_target, parse_place

STORE = Path.home() / ".local/share/soci"
"""The local store; only places without `oci:` or `oci-archive:` are in it."""


class Lines:
    """An `Observer`. Its methods may be called from several threads."""

    def start(self, name: str, total: int | None) -> Line:
        return Line(name)

    def note(self, message: str, kind: str = "") -> None:
        print(f"note: {message}")


class Line:
    """A `Task`: one blob that is read."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._read = 0

    def advance(self, amount: int) -> None:
        self._read += amount

    def finish(self, outcome: str) -> None:
        # In one piece, as other threads write lines too.
        sys.stdout.write(f"{self._name}: {self._read} bytes read, {outcome}\n")


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: convert_layout.py SRC DST", file=sys.stderr)
        return 2
    try:
        with (
            open_source(parse_place(arguments[0]), STORE) as source,
            open_target(parse_place(arguments[1]), STORE, source.names()) as target,
        ):
            result = convert(source, target, ConvertOptions(all_platforms=True), Lines())
    except SociError as error:
        print(f"convert_layout.py: {error}", file=sys.stderr)
        return error.exit_code
    for report in result.platforms:
        for layer in report.layers:
            print(f"layer {layer.layer.digest[:19]}: {layer.outcome} {layer.reason}".rstrip())
    print("changed" if result.changed else "nothing changed")
    print(result.descriptor.digest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
