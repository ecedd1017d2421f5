"""`soci ztoc get-file`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from soci_cli.commands.app import App, common_flags, pass_app
from soci_cli.commands.files import LayerRanges, read_ztoc, write_aside
from soci_cli.commands.output import human_size
from soci_cli.errors import UsageError
from soci_cli.ztoc import FileTree, LayerReader


@click.command()
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT",
    help="The file to write; stdout by default.",
)
@click.argument("ztoc")
@click.argument("layer")
@click.argument("path")
@common_flags
@pass_app
def command(app: App, output: Path | None, ztoc: str, layer: str, path: str) -> None:
    """Read the file PATH out of LAYER through its zTOC.

    LAYER is a file, of which only the spans that hold PATH are read, or - for stdin, which is read up to
    them. Links are followed inside the layer. Every span's digest is checked.
    """
    if ztoc == "-" and layer == "-":
        raise UsageError("only one of ZTOC and LAYER can be stdin")
    index = read_ztoc(ztoc)
    entry = FileTree(index).find(os.fsencode(path))
    with LayerRanges(layer) as ranges:
        reader = LayerReader(index, ranges.read_at, layer if layer != "-" else "stdin")
        if output is None:
            for piece in reader.read_file(entry):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        else:
            write_aside(output, reader.read_file(entry))
    if output is not None:
        app.output.note(
            f"read {human_size(reader.fetched)} of the layer's "
            f"{human_size(index.compressed_archive_size)} for a file of "
            f"{human_size(entry.uncompressed_size)}"
        )
