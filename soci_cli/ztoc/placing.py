"""Where the entries of an archive come to lie, one after the other, as containerd unpacks it.

Nearly all lie where their names say. What an entry names below a symbolic link that came before it in the
layer lies where the link leads, and the link stays: the parent of each name is resolved within the root of
the layer, its last part is not (containerd, pkg/archive/tar.go and continuity's fs.RootPath). So it is with
the targets of hard links.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc.folders import DIRECTORY, FOLDER_COST, HARDLINK, SYMLINK, WHITEOUT, placed
from soci_cli.ztoc.paths import MAX_PATH, clean_path
from soci_cli.ztoc.toc import TableOfContents

_MAX_LINKS = 255  # as containerd
_STEPS = 16  # links that an entry may lead through on the average, beside
_MIN_STEPS = 1 << 20

NO_ENTRY = -1

_Tree: TypeAlias = "dict[bytes, int | _Tree]"
"""What is in a folder: other folders, or entries. A hard link is the entry that it was made of."""


@dataclass(frozen=True)
class Placed:
    """`paths` are those of entries that lie elsewhere than their names say; None where they lie nowhere.

    `links` is what hard links were made of, NO_ENTRY where there was nothing.
    """

    paths: dict[int, bytes | None] = field(default_factory=dict)
    links: dict[int, int] = field(default_factory=dict)


def place(files: TableOfContents, max_cost: int) -> Placed:
    """Unpacks a layer in mind. InvalidDataError when that takes more than `max_cost` bytes of memory."""
    return _Unpacking(files, max_cost).run()


class _Unpacking:
    """The tree as it is after each entry."""

    def __init__(self, files: TableOfContents, max_cost: int) -> None:
        self._files = files
        self._cost_left = max_cost
        self._steps_left = _MIN_STEPS + _STEPS * len(files)
        self._root: _Tree = {}
        self._found: dict[
            bytes, tuple[_Tree, bytes] | None
        ] = {}  # folders by name, as long as they stay
        self._result = Placed()

    def run(self) -> Placed:
        for entry, name in enumerate(self._files.names()):
            path = placed(name)
            if not path:
                continue
            above, _, base = path.rpartition(b"/")
            found = self._folder(above, self._make)
            if found is None:
                self._result.paths[entry] = None
                continue
            folder, where = found
            if where != above:
                self._result.paths[entry] = where + b"/" + base if where else base
            if not base.startswith(WHITEOUT):
                self._put(folder, base, entry)
        return self._result

    def _put(self, folder: _Tree, base: bytes, entry: int) -> None:
        kind = self._files.type_of(entry)
        old = folder.get(base)
        if kind == DIRECTORY:
            if isinstance(old, dict):
                return
            if old is not None:
                self._found.clear()
            folder[base] = self._charge(base)
            return
        if kind == HARDLINK:
            target = self._target(entry)
            self._result.links[entry] = target
            if target != NO_ENTRY:
                entry = target
        if old is not None or self._files.type_of(entry) == SYMLINK:
            self._found.clear()
        folder[base] = entry

    def _target(self, entry: int) -> int:
        """What a hard link is made of: a file of any kind but a folder."""
        name = self._files.string(self._files.fields(entry).linkname)
        if b"\0" in name:
            return NO_ENTRY
        above, _, base = clean_path(name).rpartition(b"/")
        found = self._folder(above, lambda folder, part: None)
        target = found[0].get(base) if found else None
        return target if isinstance(target, int) else NO_ENTRY

    def _make(self, folder: _Tree, part: bytes) -> _Tree | None:
        below = folder[part] = self._charge(part)
        return below

    def _charge(self, name: bytes) -> _Tree:
        self._cost_left -= len(name) + FOLDER_COST
        if self._cost_left < 0:
            raise InvalidDataError("the names of the layer's files make too many folders")
        return {}

    def _folder(
        self, path: bytes, missing: Callable[[_Tree, bytes], _Tree | None]
    ) -> tuple[_Tree, bytes] | None:
        """A folder and its path without links; None where something that is no folder is in the way.

        `missing` is asked for folders that are not there.
        """
        if path in self._found:
            return self._found[path]
        parts = path.split(b"/")[::-1] if path else []
        at: list[_Tree] = [self._root]
        done: list[bytes] = []
        links = 0
        while parts:
            part = parts.pop()
            child = at[-1].get(part)
            if child is None:
                child = missing(at[-1], part)
                if child is None:
                    return None
            if isinstance(child, dict):
                at.append(child)
                done.append(part)
                continue
            target = self._link(child)
            links += 1
            self._steps_left -= 1 + len(parts)
            if target is None or links > _MAX_LINKS:
                self._found[path] = None
                return None
            if self._steps_left < 0:
                raise InvalidDataError("the layer's files lie below too many symbolic links")
            # Dots in the target count from the folder that the link is in, by names alone.
            whole = clean_path(target if target.startswith(b"/") else b"/".join([*done, target]))
            if len(whole) > MAX_PATH:
                return None
            parts += whole.split(b"/")[::-1] if whole else []
            at, done = [self._root], []
        found = self._found[path] = at[-1], b"/".join(done)
        return found

    def _link(self, entry: int) -> bytes | None:
        """Where a symbolic link leads; None for another file."""
        if self._files.type_of(entry) != SYMLINK:
            return None
        target = self._files.string(self._files.fields(entry).linkname)
        return None if b"\0" in target or len(target) > MAX_PATH else target
