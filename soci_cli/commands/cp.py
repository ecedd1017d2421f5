"""`soci cp`."""

from __future__ import annotations

import os
import sys

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.image_reading import image_flags, reading
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import UsageError
from soci_cli.lazy.extract import extract, write_tar

_TRANSPORTS = ("docker", "containerd", "oci", "oci-archive")


@click.command()
@image_flags
@click.argument("names", nargs=-1, metavar="IMAGE:PATH DEST | IMAGE PATH DEST")
@transfer_flags
@common_flags
@pass_app
def command(
    app: App,
    platform_name: str | None,
    soci_index_digest: str | None,
    names: tuple[str, ...],
    registry: RegistryFlags,
) -> None:
    """Copy the file or directory PATH of IMAGE to DEST.

    Of a layer that has a zTOC only the parts that are copied are fetched. A directory is copied with all
    that is in it; into an existing directory DEST it goes under its own name or, when PATH ends in /.,
    without it. A symbolic link is copied as one. With - for DEST a tar archive goes to stdout.

    \b
    soci cp docker://example.com/app:1.0:/etc/ssl .
    soci cp docker://example.com/app:1.0 /usr/lib - | tar -t
    """
    image, path, destination = _split(names)
    contents = path.endswith("/.") or path == "."
    with (
        reading(app, image, platform_name, soci_index_digest, registry) as opened,
        app.output.progress() as observer,
    ):
        start = opened.find(os.fsencode(path), follow=False)
        if destination == "-":
            write_tar(opened, start, sys.stdout.buffer, observer, contents=contents)
            sys.stdout.buffer.flush()
        else:
            extract(opened, start, destination, observer, contents=contents)


def _split(names: tuple[str, ...]) -> tuple[str, str, str]:
    """Image, path and destination. IMAGE:PATH is split at its last colon before a slash."""
    if len(names) == 3:
        return names
    if len(names) != 2:
        raise UsageError("give IMAGE:PATH and DEST, or IMAGE, PATH and DEST")
    image, colon, path = names[0].rpartition(":/")
    if not colon or image in _TRANSPORTS:
        raise UsageError(
            f"{names[0]} names no file of an image; write IMAGE:/PATH, or IMAGE and PATH apart"
        )
    return image, f"/{path}", names[1]
