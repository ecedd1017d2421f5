"""`soci index rm`, also `soci index remove`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, containerd_flags, pass_app
from soci_cli.commands.listing import open_image
from soci_cli.errors import UsageError
from soci_cli.index.artifacts import INDEX
from soci_cli.oci import parse_digest


@click.command()
@click.option("--ref", metavar="REF", help="Remove the indexes of the image REF.")
@click.argument("digests", nargs=-1, metavar="[DIGEST]...")
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App, ref: str | None, digests: tuple[str, ...]) -> None:
    """Remove SOCI indexes, by digest or by the image that they were made for.

    What only they needed goes too: from the local store at once, from containerd with its next garbage
    collection; `soci rebuild-db` then takes it off the lists.
    """
    if digests and ref is not None:
        raise UsageError("give digests or --ref, not both")
    with app.artifacts() as artifacts:
        if ref is not None:
            with open_image(app, ref) as source:
                image = source.resolve().digest
            wanted = [one for one in artifacts.all(INDEX) if one.image_digest == image]
        else:
            named = {artifacts.find(parse_digest(digest), INDEX).digest for digest in digests}
            wanted = [one for one in artifacts.all(INDEX) if one.digest in named]
        if not wanted:
            return
        sweep = artifacts.remove(wanted)
    if sweep.skipped:
        app.output.note(f"unused blobs were kept: {sweep.skipped}")
