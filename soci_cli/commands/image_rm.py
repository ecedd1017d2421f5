"""`soci image rm`, also `soci rmi`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.output import human_size
from soci_cli.errors import NotFoundError


@click.command()
@click.option("--force", "-f", is_flag=True, help="It is no error when an image is not there.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@common_flags
@pass_app
def command(app: App, force: bool, names: tuple[str, ...]) -> None:
    """Remove images from the local store, and every blob that no other image needs.

    With --address or --namespace, from containerd.
    """
    images = app.images
    for name in names:
        images.check(name)
    missing: list[NotFoundError] = []
    for name in names:
        try:
            full, sweep = images.remove(name)
        except NotFoundError as error:
            missing.append(error)
            continue
        app.output.result(f"Untagged: {full}")
        for digest in sweep.blobs:
            app.output.result(f"Deleted: {digest}")
        if sweep.skipped:
            app.output.note(f"unused blobs were kept: {sweep.skipped}")
        elif sweep.freed:
            app.output.detail(f"freed {human_size(sweep.freed)}")
    if missing and not force:
        raise NotFoundError("; ".join(str(error) for error in missing))
