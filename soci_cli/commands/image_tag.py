"""`soci image tag`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app


@click.command()
@click.argument("source")
@click.argument("new")
@common_flags
@pass_app
def command(app: App, source: str, new: str) -> None:
    """Give the image SOURCE of the local store the name NEW as well.

    With --address or --namespace, of containerd.
    """
    app.images.tag(source, new)
