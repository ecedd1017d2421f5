"""`soci stats`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import all_owners_flag, common_flags, format_flag, pass_app
from soci_cli.commands.image_reading import absolute_place
from soci_cli.commands.output import columns, count, human_size
from soci_cli.commands.status import report
from soci_cli.errors import NotFoundError, SociError, UsageError
from soci_cli.kernel.points import resolve
from soci_cli.lazy.mounts.records import PERSON, Hosts, Mount, MountRecord, Mounts, state_root
from soci_cli.lazy.mounts.request import StatisticsQuestion
from soci_cli.lazy.mounts.unmounting import ask_server
from soci_cli.processes.folder import Folder
from soci_cli.text import printable

_SOURCES = ("demand", "prefetch", "background", "cache")
_MOST_FILES = 10


@click.command()
@format_flag
@all_owners_flag
@click.argument("what", metavar="[DIR|IMAGE]", required=False)
@common_flags
@pass_app
def command(app: App, what: str | None, format_: str, all_owners: bool) -> int:
    """Show what was fetched for mounted images, and why: of the mount at DIR, of those of IMAGE, or of all.

    Spans come from somewhere once: fetched on demand, for a prefetch artifact or in the background, or
    found in the cache. The hit rate is how often a read found its span here. With --format json each mount
    is an object on a line of its own.

    \b
    soci stats /mnt/app
    """
    status = 0
    for number, (folder, record) in enumerate(_chosen(app, what, all_owners)):
        if not record.served:
            _show_complete(app, record, format_)
            continue
        try:
            if not folder.is_alive():
                raise NotFoundError(
                    f"the server of {record.target} crashed; {folder.log} may say why{_host_log(record)}, "
                    "and soci umount takes the mount away"
                )
            answer = _checked(ask_server((folder, record), StatisticsQuestion(folder.name)), record)
        except SociError as error:
            report(app, str(error.at(file=str(record.target))))
            status = error.exit_code
            continue
        if format_ == "json":
            facts = {"image": record.image, "folder": record.target}
            facts |= {"engine": record.engine, "reason": record.reason}
            app.output.json({**facts, **answer}, indent=None)
            continue
        if number:
            app.output.result("")
        for line in _lines(record, answer, folder):
            app.output.result(line)
    return status


def _show_complete(app: App, record: MountRecord, format_: str) -> None:
    """A mount that nobody serves."""
    if format_ == "json":
        facts = {"image": record.image, "folder": record.target, "engine": record.engine}
        app.output.json({**facts, "complete": True}, indent=None)
        return
    app.output.result(f"{printable(record.image)} at {printable(record.target)}")
    app.output.result("all of it is here: the kernel reads it, and no process serves it")


def _host_log(record: MountRecord) -> str:
    if not record.host:
        return ""
    return f", or {Hosts(state_root(os.environ)).folder(record.host).log}"


def _chosen(app: App, what: str | None, all_owners: bool) -> Sequence[Mount]:
    """The mounts that are meant. NotFoundError where a name is of none."""
    mounts = Mounts(state_root(os.environ)).of(None)
    if what is None:
        return [one for one in mounts if all_owners or one[1].owner == PERSON]
    target = str(resolve(Path(what)))
    found = [one for one in mounts if one[1].target == target]
    if not found:
        # An image's name, with or without the place that it has in docker's and containerd's commands.
        names = (_absolute_name(app, what), f"docker://{what}", f"containerd:{what}")
        found = [one for one in mounts if one[1].image in names]
    if not found:
        raise NotFoundError(f"{what} is no folder and no image that you mounted; see soci mounts")
    return found


def _absolute_name(app: App, text: str) -> str:
    """A place as mounts have it written down; what is none stays as it is."""
    try:
        return absolute_place(app.place(text)).text
    except UsageError:
        return text


def _checked(answer: Any, record: MountRecord) -> Mapping[str, Any]:
    """An answer that has what is shown of it; servers of another version may say something else."""
    try:
        for name in _SOURCES:
            for key in ("spans", "fetched", "uncompressed"):
                answer[name][key] + 0
        for layer in answer["layers"]:
            layer["size_here"] + layer["size"]
        for file in answer["files"]:
            file["layer"] + file["file"], file["spans"] + file["fetched"]
        answer["hits"] + answer["misses"] + answer["errors"] + answer["hit_rate"]
        printable("".join(answer["log_recent"]))
    except (LookupError, TypeError, AttributeError):
        raise NotFoundError(
            f"the server of {record.target} is of another version of soci and says something else"
        ) from None
    checked: Mapping[str, Any] = answer
    return checked


def _lines(record: MountRecord, answer: Mapping[str, Any], folder: Folder) -> list[str]:
    here = sum(layer["size_here"] for layer in answer["layers"])
    size = sum(layer["size"] for layer in answer["layers"])
    part = f"{here / size:.0%}" if size else "all"
    rows = [["SOURCE", "SPANS", "FETCHED", "UNPACKED"]]
    for name in _SOURCES:
        one = answer[name]
        fetched = human_size(one["fetched"]) if name != "cache" else "-"
        rows.append([name, str(one["spans"]), fetched, human_size(one["uncompressed"])])
    uses = answer["hits"] + answer["misses"]
    lines = [
        f"{printable(record.image)} at {printable(record.target)}",
        f"served by {': '.join(filter(None, (record.engine.upper(), printable(record.reason))))}",
        f"{human_size(here)} of {human_size(size)} are here, {part}",
        *columns(rows),
        f"hit rate {answer['hit_rate']:.1%} of {count(uses, 'use')} of spans",
    ]
    if answer["files"]:
        files = [["FILE", "SPANS", "FETCHED"]]
        for file in answer["files"][:_MOST_FILES]:
            name = printable(file["file"]) or "(several)"
            files.append([name, str(file["spans"]), human_size(file["fetched"])])
        lines += ["files that caused the most:", *columns(files)]
    if answer["errors"] or answer["log_recent"]:
        lines.append(f"{count(answer['errors'], 'error')}; the last lines of {folder.log}:")
        lines += [printable(line) for line in answer["log_recent"]]
    return lines
