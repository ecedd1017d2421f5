"""`soci ztoc get-file`."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.files import LayerRanges, read_ztoc, write_aside
from soci_cli.commands.flags import common_flags, containerd_flags, pass_app
from soci_cli.commands.output import human_size
from soci_cli.errors import UsageError
from soci_cli.index.artifacts import ZTOC
from soci_cli.oci.digest import is_digest
from soci_cli.ztoc import FileTree, LayerReader, decode_ztoc
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE

_PIECE = 1 << 20


@click.command()
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT",
    help="The file to write; stdout by default.",
)
@click.argument("names", nargs=-1, metavar="ZTOC LAYER PATH | DIGEST PATH")
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App, output: Path | None, names: tuple[str, ...]) -> None:
    """Read the file PATH out of LAYER through its zTOC.

    LAYER is a file, of which only the spans that hold PATH are read, or - for stdin, which is read up to
    them. With the DIGEST of a zTOC, as `soci ztoc ls` gives it, the layer is read in containerd or in the
    local store. Links are followed inside the layer. Every span's digest is checked.
    """
    with ExitStack() as stack:
        if len(names) == 2 and is_digest(names[0]):
            reader = _by_digest(app, names[0], stack)
        elif len(names) == 3:
            reader = _from_files(names[0], names[1], stack)
        else:
            raise UsageError("give ZTOC, LAYER and PATH, or the DIGEST of a zTOC and PATH")
        entry = FileTree(reader.ztoc).find(os.fsencode(names[-1]))
        if output is None:
            for piece in reader.read_file(entry):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        else:
            write_aside(output, reader.read_file(entry))
    if output is not None:
        app.output.note(
            f"read {human_size(reader.fetched)} of the layer's "
            f"{human_size(reader.ztoc.compressed_archive_size)} for a file of "
            f"{human_size(entry.uncompressed_size)}"
        )


def _from_files(ztoc: str, layer: str, stack: ExitStack) -> LayerReader:
    if ztoc == "-" and layer == "-":
        raise UsageError("only one of ZTOC and LAYER can be stdin")
    index = read_ztoc(ztoc)
    ranges = stack.enter_context(LayerRanges(layer))
    return LayerReader(index, ranges.read_at, layer if layer != "-" else "stdin")


def _by_digest(app: App, digest: str, stack: ExitStack) -> LayerReader:
    artifacts = stack.enter_context(app.artifacts())
    one = artifacts.find(digest, ZTOC)
    index = decode_ztoc(artifacts.read(one, MAX_ZTOC_SIZE))
    place, layer = artifacts.layer(one, index.compressed_archive_size)

    def read_at(offset: int, length: int) -> bytes:
        with place.fetch(layer, offset, length) as stream:
            return b"".join(iter(lambda: stream.read(_PIECE), b""))

    return LayerReader(index, read_at, f"layer {layer.digest}")
