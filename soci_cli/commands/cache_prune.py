"""`soci cache prune`."""

from __future__ import annotations

import os

import click

from soci_cli.commands.app import App
from soci_cli.commands.durations import parse_duration
from soci_cli.commands.flags import SIZE, all_owners_flag, common_flags, pass_app
from soci_cli.commands.image_reading import open_cache
from soci_cli.commands.output import human_size
from soci_cli.lazy.mounts.records import PERSON, Mounts, state_root


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
@all_owners_flag
@common_flags
@pass_app
def command(app: App, keep: int, older_than: str | None, all_owners: bool) -> None:
    """Remove what the cache holds, and print how many bytes that freed.

    What is in use stays readable to who uses it. All of it can be fetched again. What programs mounted for
    themselves, such as a snapshotter, keeps what is here of its layers, and what is mounted its metadata.

    \b
    soci cache prune --keep 2GiB
    """
    seconds = None if older_than is None else parse_duration(older_than)
    spared: set[str] = set()
    for _, record in Mounts(state_root(os.environ)).of(None):
        spared.add(record.metadata)
        if record.owner != PERSON and not all_owners:
            spared.update(record.layer_digests)
    freed = open_cache().prune(keep, seconds, spared)
    app.output.result(str(freed) if app.quiet else f"{human_size(freed)} freed")
