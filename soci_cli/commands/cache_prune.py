"""`soci cache prune`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.durations import parse_duration
from soci_cli.commands.flags import SIZE, common_flags, pass_app
from soci_cli.commands.image_reading import open_cache
from soci_cli.commands.output import human_size


@click.command()
@click.option(
    "--keep",
    type=SIZE,
    default=0,
    metavar="SIZE",
    help="Keep this much of what was used last; nothing by default.",
)
@click.option(
    "--older-than",
    metavar="DURATION",
    help="Remove only what was not used for so long, such as 24h.",
)
@common_flags
@pass_app
def command(app: App, keep: int, older_than: str | None) -> None:
    """Remove what the cache holds, and print how many bytes that freed.

    What is in use stays readable to who uses it. All of it can be fetched again.

    \b
    soci cache prune --keep 2GiB
    """
    seconds = None if older_than is None else parse_duration(older_than)
    freed = open_cache().prune(keep, seconds)
    app.output.result(str(freed) if app.quiet else f"{human_size(freed)} freed")
