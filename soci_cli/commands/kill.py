"""`soci kill`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.containers import for_each, own_containers
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.run.control import parse_signal, send


@click.command()
@click.option("-s", "--signal", "name", metavar="SIGNAL", default="KILL", help="Default: KILL.")
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)
@common_flags
@pass_app
def command(app: App, name: str, containers: tuple[str, ...]) -> int:
    """Send a signal to the first process of containers."""
    number = parse_signal(name)
    return for_each(app, own_containers(), containers, lambda one: send(one, number))
