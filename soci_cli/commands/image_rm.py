"""`soci image rm`, also `soci rmi`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.output import human_size
from soci_cli.errors import NotFoundError
from soci_cli.oci import parse_reference


@click.command()
@click.option("--force", "-f", is_flag=True, help="It is no error when an image is not there.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@common_flags
@pass_app
def command(app: App, force: bool, names: tuple[str, ...]) -> None:
    """Remove images from the local store, and every blob that no other image needs."""
    references = [parse_reference(name) for name in names]
    missing: list[NotFoundError] = []
    for reference in references:
        try:
            sweep = app.store.remove(reference)
        except NotFoundError as error:
            missing.append(error)
            continue
        app.output.result(f"Untagged: {reference}")
        for digest in sweep.blobs:
            app.output.result(f"Deleted: {digest}")
        if sweep.skipped:
            app.output.note(f"unused blobs were kept: {sweep.skipped}")
        elif sweep.freed:
            app.output.detail(f"freed {human_size(sweep.freed)}")
    if missing and not force:
        raise NotFoundError("; ".join(str(error) for error in missing))
