"""`soci rebuild-db`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, containerd_flags, pass_app
from soci_cli.errors import SociError
from soci_cli.index.artifacts import CONTAINERD_CONTENT
from soci_cli.index.rebuild import rebuild


@click.command()
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App) -> None:
    """Find SOCI indexes and zTOCs in the local store and in containerd, and list them.

    Good after an image was pulled or loaded, after containerd has removed some, and when the local
    store's database was lost.
    """
    wanted = app.names_containerd or app.content_store == CONTAINERD_CONTENT
    client = None
    try:
        app.connect().version()
        client = app.connect()
    except SociError as error:
        if wanted:
            raise
        app.output.note(f"only the local store was looked into: {error}")
    with app.artifacts() as artifacts:
        result = rebuild(artifacts, client)
    app.output.note(
        f"{result.added} artifacts found, {result.removed} gone, {result.kept} listed before"
    )
