"""`soci mounts`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.durations import ago
from soci_cli.commands.flags import all_owners_flag, common_flags, format_flag, pass_app
from soci_cli.commands.image_reading import open_cache
from soci_cli.commands.output import columns
from soci_cli.commands.status import report
from soci_cli.errors import NotFoundError
from soci_cli.kernel.points import resolve
from soci_cli.lazy.mounts.records import PERSON, Mount, MountRecord, Mounts, state_root
from soci_cli.lazy.mounts.unmounting import is_being_taken_over
from soci_cli.processes.folder import Folder
from soci_cli.text import printable

_TITLES = ["IMAGE", "FOLDER", "PLATFORM", "LAYERS", "STATE", "MODE", "MOUNTED", "ENGINE"]


@click.command()
@click.option(
    "--restart",
    "restarts",
    is_flag=True,
    help="Let new servers, of this version of soci, take over without unmounting anything.",
)
@format_flag
@all_owners_flag
@click.option(
    "--engines",
    is_flag=True,
    help="Show instead what can serve mounts here, and why: EROFS is tried once a boot, by doing it.",
)
# What is below the folder of a mount whose server crashed cannot be read.
@click.argument("folders", metavar="[DIR]...", nargs=-1, type=click.Path(path_type=Path))
@common_flags
@pass_app
def command(
    app: App,
    restarts: bool,
    format_: str,
    all_owners: bool,
    engines: bool,
    folders: tuple[Path, ...],
) -> int:
    """List the images that you mounted, the oldest first, or those at DIR; with --quiet their folders only.

    A mount whose server crashed gives errors to whoever reads it; soci umount takes it away. With --format
    json each mount is an object on a line of its own.

    \b
    soci mounts --format json
    soci mounts --restart
    """
    if engines:
        _show_engines(app, format_)
        return 0
    status, chosen = _chosen(app, None if all_owners else PERSON, folders)
    if restarts:
        return max(status, _restart(app, chosen, format_))
    rows = [_TITLES]
    for folder, record in chosen:
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
    return status


def _chosen(app: App, owner: str | None, folders: Sequence[Path]) -> tuple[int, list[Mount]]:
    """The exit status so far, and the mounts that are meant."""
    mounts = Mounts(state_root(os.environ)).of(owner)
    if not folders:
        return 0, mounts
    status, targets = 0, [str(resolve(folder)) for folder in folders]
    for target in targets:
        if not any(record.target == target for _, record in mounts):
            error = NotFoundError(f"{target} has no image that you mounted; see soci mounts")
            report(app, str(error))
            status = error.exit_code
    return status, [one for one in mounts if one[1].target in targets]


def _restart(app: App, mounts: list[Mount], format_: str) -> int:
    """Replaces servers, and shows which mounts they serve."""
    from soci_cli.lazy.mounts.restarting import restart

    done = restart(state_root(os.environ), mounts)
    errors = {str(one.error): one.error for one in done if one.error is not None}
    for text in errors:
        report(app, text)
    for one in done:
        target = one.record.target
        if one.error is not None:
            continue
        if format_ == "json":
            facts = {"folder": target, "pid": one.record.pid, "pid_before": one.before}
            app.output.json({"image": one.record.image, **facts}, indent=None)
        elif app.quiet:
            app.output.result(target)
        else:
            app.output.result(
                f"{printable(target)}: process {one.record.pid} serves it, for {one.before}"
            )
    return max((error.exit_code for error in errors.values()), default=0)


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
        "restarts": record.restarts,
        "owner": record.owner,
        "pid": record.pid if record.served else None,
        "started": _time(record).isoformat(),
        "log": str(folder.log),
    }


def _state(folder: Folder, record: MountRecord) -> str:
    if not record.served:
        return "complete"
    if not folder.is_alive():
        return "crashed"
    if is_being_taken_over((folder, record)):
        return "restarting"
    return "serving" if record.kind else "starting"


def _time(record: MountRecord) -> datetime:
    try:
        return datetime.fromtimestamp(record.started, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, timezone.utc)
