"""`soci ls`."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, format_flag, pass_app
from soci_cli.commands.image_reading import image_flags, reading
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.lazy import File, LazyImage
from soci_cli.text import printable
from soci_cli.ztoc import Node
from soci_cli.ztoc.attributes import FORMATS

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@click.command()
@click.option("-l", "long", is_flag=True, help="Show modes, owners, sizes and times too.")
@click.option("-R", "recursive", is_flag=True, help="List the directories below too.")
@format_flag
@image_flags
@click.argument("image")
@click.argument("path", default="/")
@transfer_flags
@common_flags
@pass_app
def command(
    app: App,
    long: bool,
    recursive: bool,
    format_: str,
    platform_name: str | None,
    soci_index_digest: str | None,
    image: str,
    path: str,
    registry: RegistryFlags,
) -> None:
    """List the files of IMAGE, in the directory PATH or in the root.

    The layers are shown over each other, as a container has them. No byte of a layer that has a zTOC is
    fetched. With --format json each file is an object on a line of its own.

    \b
    soci ls -l docker://example.com/app:1.0 /usr/bin
    """
    wanted = os.fsencode(path)
    with reading(app, image, platform_name, soci_index_digest, registry) as opened:
        # As for ls, a link that is named is shown by -l, and followed without.
        start = opened.find(wanted, follow=not long and format_ == "text")
        if format_ == "json":
            for file in _each(opened, start, recursive):
                app.output.json(describe(opened, file), indent=None)
            return
        out = sys.stdout
        if not start.is_directory:
            out.writelines(_block(opened, [start], [printable(wanted)], long))
            return
        title = printable(wanted)
        for number, (folder, files) in enumerate(_folders(opened, start, recursive)):
            if recursive:
                below = folder.path[len(start.path) :].lstrip(b"/")
                name = f"{title.rstrip('/')}/{printable(below)}" if below else title
                out.write(f"{chr(10) if number else ''}{name}:\n")
            out.writelines(_block(opened, files, [printable(file.name) for file in files], long))


def _folders(
    image: LazyImage, start: File, recursive: bool
) -> Iterator[tuple[File, Sequence[File]]]:
    """A folder and what is in it; with all folders below, each before those in it."""
    waiting = [start]
    while waiting:
        folder = waiting.pop()
        files = image.children(folder)
        yield folder, files
        if recursive:
            waiting += [file for file in reversed(files) if file.is_directory]


def _each(image: LazyImage, start: File, recursive: bool) -> Iterator[File]:
    if not start.is_directory:
        yield start
        return
    for _, files in _folders(image, start, recursive):
        yield from files


def _block(
    image: LazyImage, files: Sequence[File], names: Sequence[str], long: bool
) -> Iterator[str]:
    """The lines of one folder; with `long` in aligned columns."""
    if not long:
        yield from (f"{name}\n" for name in names)
        return
    rows = [_row(image, file) for file in files]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(6)]
    for row, name in zip(rows, names, strict=True):
        mode, links, owner, group, size, time = (
            cell.rjust(width) if column in (1, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row[:6], widths, strict=True))
        )
        yield f"{mode} {links} {owner} {group} {size} {time} {name}{row[6]}\n"


def _row(image: LazyImage, file: File) -> tuple[str, ...]:
    node = image.node(file)
    size = f"{node.devmajor}, {node.devminor}" if node.type in ("char", "block") else node.size
    return (
        _mode(node),
        str(image.link_count(file)),
        printable(node.uname) or str(node.uid),
        printable(node.gname) or str(node.gid),
        str(size),
        iso_time(node.mtime_ns),
        f" -> {printable(node.linkname)}" if node.type == "symlink" else "",
    )


def _mode(node: Node) -> str:
    kind = FORMATS.get(node.type)
    text = stat.filemode((kind or 0) | node.mode)
    return text if kind else f"?{text[1:]}"


def describe(image: LazyImage, file: File) -> dict[str, Any]:
    """A file for scripts. Names that are not UTF-8, and values, have their odd bytes as \\xNN."""
    node = image.node(file)
    layer = image.layers[file.layer]
    return {
        "path": "/" + _text(file.path),
        "type": node.type,
        "size": node.size,
        "mode": f"{node.mode:04o}",
        "uid": node.uid,
        "gid": node.gid,
        "uname": _text(node.uname),
        "gname": _text(node.gname),
        "mtime": iso_time(node.mtime_ns),
        "linkname": _text(node.linkname),
        "devmajor": node.devmajor,
        "devminor": node.devminor,
        "xattrs": {_text(name): _text(value) for name, value in node.xattrs},
        "layer": layer.descriptor.digest,
        "indexed": layer.indexed,
    }


def iso_time(nanoseconds: int) -> str:
    """A time as RFC 3339 in UTC, with up to nine decimals."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    try:
        text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    except OverflowError:
        text = "0000-01-01T00:00:00"  # Python knows no year 0
    year, rest = text.split("-", 1)
    decimals = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{year:0>4}-{rest}{decimals}Z"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
