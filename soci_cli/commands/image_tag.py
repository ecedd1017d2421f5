"""`soci image tag`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.oci import parse_reference


@click.command()
@click.argument("source")
@click.argument("new")
@common_flags
@pass_app
def command(app: App, source: str, new: str) -> None:
    """Give the image SOURCE of the local store the name NEW as well."""
    app.store.tag_image(parse_reference(source), parse_reference(new))
