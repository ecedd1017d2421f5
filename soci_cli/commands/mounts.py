"""`soci mounts`."""

from __future__ import annotations

import dataclasses
import os
from datetime import datetime, timezone

import click

from soci_cli.commands.app import App
from soci_cli.commands.durations import ago
from soci_cli.commands.flags import all_owners_flag, common_flags, format_flag, pass_app
from soci_cli.commands.image_reading import open_cache
from soci_cli.commands.output import columns
from soci_cli.lazy.mounts.records import PERSON, MountRecord, Mounts, state_root
from soci_cli.processes.folder import Folder
from soci_cli.text import printable

_TITLES = ["IMAGE", "FOLDER", "PLATFORM", "LAYERS", "STATE", "MODE", "MOUNTED", "ENGINE"]


@click.command()
@format_flag
@all_owners_flag
@click.option(
    "--engines",
    is_flag=True,
    help="Show instead what can serve mounts here, and why: EROFS is tried once a boot, by doing it.",
)
@common_flags
@pass_app
def command(app: App, format_: str, all_owners: bool, engines: bool) -> None:
    """List the images that you mounted, the oldest first; with --quiet their folders only.

    A mount whose server crashed gives errors to whoever reads it; soci umount takes it away. With --format
    json each mount is an object on a line of its own.

    \b
    soci mounts --format json
    """
    if engines:
        _show_engines(app, format_)
        return
    rows = [_TITLES]
    for folder, record in Mounts(state_root(os.environ)).of(None if all_owners else PERSON):
        if format_ == "json":
            app.output.json(_facts(folder, record), indent=None)
        elif app.quiet:
            app.output.result(record.target)
        else:
            rows.append(
                [
                    printable(record.image),
                    printable(record.target),
                    printable(record.platform) or "-",
                    f"{record.indexed} of {record.layers} lazy",
                    _state(folder, record),
                    "rw" if record.writable else "ro",
                    ago(_time(record)),
                    printable(": ".join(filter(None, (record.engine, record.reason)))) or "-",
                ]
            )
    if format_ == "text" and not app.quiet:
        for line in columns(rows):
            app.output.result(line)


def _show_engines(app: App, format_: str) -> None:
    """What this process can have, as a mount made now would find it."""
    from soci_cli.lazy.mounts.engines import Available, available

    found = available(state_root(os.environ).absolute(), open_cache().root, os.environ)
    if format_ == "json":
        for one in found:
            app.output.json(dataclasses.asdict(one), indent=None)
        return

    def row(one: Available) -> list[str]:
        return [one.engine, "yes" if one.available else "no", printable(one.reason)]

    if app.quiet:
        lines = [one.engine for one in found if one.available]
    else:
        lines = columns([["ENGINE", "HERE", "WHY"], *map(row, found)])
    for line in lines:
        app.output.result(line)


def _facts(folder: Folder, record: MountRecord) -> dict[str, object]:
    return {
        "image": record.image,
        "digest": record.digest,
        "platform": record.platform,
        "folder": record.target,
        "state": _state(folder, record),
        "kind": record.kind,
        "engine": record.engine,
        "reason": record.reason,
        "rw": record.writable,
        "layers": record.layers,
        "lazy_layers": record.indexed,
        "owner": record.owner,
        "pid": record.pid,
        "started": _time(record).isoformat(),
        "log": str(folder.log),
    }


def _state(folder: Folder, record: MountRecord) -> str:
    if not folder.is_alive():
        return "crashed"
    return "serving" if record.kind else "starting"


def _time(record: MountRecord) -> datetime:
    try:
        return datetime.fromtimestamp(record.started, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, timezone.utc)
