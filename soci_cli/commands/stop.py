"""`soci stop`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.containers import for_each, own_containers
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.run.control import stop


@click.command()
@click.option(
    "-t",
    "--time",
    "seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=10.0,
    help="How long it has before it is killed; 10 by default.",
)
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)
@common_flags
@pass_app
def command(app: App, seconds: float, containers: tuple[str, ...]) -> int:
    """Ask containers to end, and end them after a while.

    CONTAINER is a name, an id, or the beginning of one.
    """
    return for_each(app, own_containers(), containers, lambda one: stop(one, seconds))
