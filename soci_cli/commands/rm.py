"""`soci rm`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.containers import for_each, own_containers
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.run.control import remove


@click.command()
@click.option("-f", "--force", is_flag=True, help="Remove containers that run, too.")
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)
@common_flags
@pass_app
def command(app: App, force: bool, containers: tuple[str, ...]) -> int:
    """Remove containers, with what they have written."""
    known = own_containers()
    return for_each(app, known, containers, lambda one: remove(known, one, force=force))
