"""`soci cat`."""

from __future__ import annotations

import os
import sys

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.image_reading import image_flags, reading
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags


@click.command()
@image_flags
@click.argument("image")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@transfer_flags
@common_flags
@pass_app
def command(
    app: App,
    platform_name: str | None,
    soci_index_digest: str | None,
    image: str,
    paths: tuple[str, ...],
    registry: RegistryFlags,
) -> None:
    """Print files of IMAGE to stdout.

    Of a layer that has a zTOC only the parts that hold the files are fetched. Symbolic links are followed
    inside the image.

    \b
    soci cat docker://example.com/app:1.0 /etc/os-release
    """
    with reading(app, image, platform_name, soci_index_digest, registry) as opened:
        # All are looked for before the first is printed.
        contents = [opened.pieces(opened.find(os.fsencode(path))) for path in paths]
        for pieces in contents:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
