"""`soci ps`."""

from __future__ import annotations

import time

import click

from soci_cli.commands.app import App
from soci_cli.commands.containers import own_containers
from soci_cli.commands.flags import common_flags, format_flag, pass_app
from soci_cli.commands.output import columns
from soci_cli.run.containers import Container
from soci_cli.text import brief, printable

_COMMAND = 30


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@format_flag
@common_flags
@pass_app
def command(app: App, everything: bool, format_: str) -> None:
    """List containers that run, the newest first; with -q their ids only."""
    found = sorted(own_containers().all(), key=lambda one: -one[1].created)
    shown = [one for one in found if everything or one[0].is_alive()]
    if app.quiet:
        for folder, _ in shown:
            app.output.result(folder.name)
    elif format_ == "json":
        for one in shown:
            app.output.json(_fields(one), indent=None)
    else:
        header = ["CONTAINER", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAME"]
        for line in columns([header, *map(_row, shown)]):
            app.output.result(line)


def _row(container: Container) -> list[str]:
    folder, record = container
    words = brief(" ".join(map(printable, record.command)), _COMMAND)
    status = "running" if folder.is_alive() else f"exited ({record.exit_code})"
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created))
    return [folder.name, printable(record.image), words, created, status, record.name]


def _fields(container: Container) -> dict[str, object]:
    folder, record = container
    is_running = folder.is_alive()
    return {
        "id": folder.name,
        "name": record.name,
        "image": record.image,
        "digest": record.digest,
        "command": list(record.command),
        "created": record.created,
        "state": "running" if is_running else "exited",
        "exit_code": None if is_running else record.exit_code,
        "pid": record.pid if is_running else None,
        "labels": dict(record.labels),
    }
