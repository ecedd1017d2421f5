"""Paths in an archive and in the tree that it unpacks to: cleaned, and followed through symbolic links."""

from __future__ import annotations

from typing import Protocol, TypeVar

from soci_cli.errors import NotFoundError
from soci_cli.text import brief

MAX_PATH = 4096
"""Bytes of a path, as Linux's PATH_MAX; nobody could name a longer one."""
MAX_LINKS = 40
"""Symbolic links that one path may lead through, as Linux's ELOOP has it."""

_F = TypeVar("_F")


def clean_path(name: bytes) -> bytes:
    """A name without leading slash, `.`, `..` and doubled slashes, as it counts from the root."""
    if b"/." not in name and b"//" not in name and name[:1] not in (b".", b"/"):
        return name.rstrip(b"/")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


class Walker(Protocol[_F]):
    """What `walk` asks of a tree."""

    def look(self, folder: _F, name: bytes) -> _F | None:
        """The file of a name in a folder; None where there is none, and in what is no folder."""

    def is_folder(self, file: _F) -> bool:
        """Whether it is a folder."""

    def link_of(self, file: _F) -> bytes | None:
        """Where a symbolic link leads; None for all else."""


def walk(tree: Walker[_F], root: _F, path: bytes, where: str, *, follow: bool = True) -> _F:
    """The file at a path from the root, symbolic links on the way followed as the kernel does in a chroot.

    With `follow` the last one is followed, too. `where` is what has the files, for messages. Raises
    NotFoundError.
    """
    parts = _parts(path, path)
    at: list[_F] = [root]
    names: list[bytes] = []
    links = 0
    while parts:
        part = parts.pop()
        if not part:
            continue
        if part in (b".", b"..") and tree.is_folder(at[-1]):
            if part == b"..":
                at, names = at[:-1] or [root], names[:-1]
            continue
        file = tree.look(at[-1], part)
        if file is None:
            there = b"/".join([*names, part, *reversed(parts)])
            if links and clean_path(there) != clean_path(path):
                raise NotFoundError(
                    f"{show(path)} leads to {show(there)}, which {where} does not have"
                )
            raise NotFoundError(f"{where} has no file {show(path)}")
        target = tree.link_of(file) if parts or follow else None
        if target is None:
            at.append(file)
            names.append(part)
            continue
        links += 1
        if links > MAX_LINKS:
            raise NotFoundError(f"{show(path)} leads through too many links")
        if target.startswith(b"/"):
            at, names = [root], []
        parts += _parts(target, path)
    return at[-1]


def _parts(target: bytes, path: bytes) -> list[bytes]:
    """The parts of a path or of a link's target, last to first."""
    if len(target) > MAX_PATH:
        raise NotFoundError(f"{show(path)} leads through a path that is too long")
    return target.split(b"/")[::-1]


def show(path: bytes) -> str:
    """A path from the root, as messages have it."""
    return brief(path if path.startswith(b"/") else b"/" + path)
