"""`soci cache ls`."""

from __future__ import annotations

from datetime import datetime, timezone

import click

from soci_cli.commands.app import App
from soci_cli.commands.durations import ago
from soci_cli.commands.flags import common_flags, format_flag, pass_app
from soci_cli.commands.image_reading import open_cache
from soci_cli.commands.output import columns, human_size
from soci_cli.lazy.eviction import LayerEntries
from soci_cli.text import printable

_TITLES = ["DIGEST", "KIND", "ENTRIES", "SIZE", "LAST USED"]


@click.command()
@format_flag
@common_flags
@pass_app
def command(app: App, format_: str) -> None:
    """List what the cache holds of each layer, the last used first; with --quiet the digests only.

    Kinds are spans, the unpacked parts of layers with a zTOC; devices, whole layers; and
    blobs, such as zTOCs.

    \b
    soci cache ls
    """
    cache = open_cache()
    entries = cache.entries()
    total = sum(one.size for one in entries)
    if format_ == "json":
        facts = {
            "folder": str(cache.root),
            "size": total,
            "limit": cache.limit,
            "entries": [_facts(one) for one in entries],
        }
        app.output.json(facts)
    elif app.quiet:
        for digest in dict.fromkeys(one.digest for one in entries):
            app.output.result(printable(digest))
    else:
        rows = [_TITLES, *(_row(one) for one in entries)]
        for line in columns(rows):
            app.output.result(line)
        app.output.result(
            f"{human_size(total)} of at most {human_size(cache.limit)} in {cache.root}"
        )


def _facts(one: LayerEntries) -> dict[str, object]:
    return {
        "digest": one.digest,
        "kind": one.kind,
        "entries": one.entries,
        "size": one.size,
        "last_used": _used(one).isoformat(),
    }


def _row(one: LayerEntries) -> list[str]:
    size = human_size(one.size)
    return [printable(one.digest), one.kind, str(one.entries), size, ago(_used(one))]


def _used(one: LayerEntries) -> datetime:
    return datetime.fromtimestamp(one.last_used, timezone.utc)
