"""The files of one layer by path, straight from its zTOC: an entry is decoded when it is asked for.

When the first file is asked for, all names are read once, only to sort the entries by their folders
(`folders.py`). A folder's table of names is made when somebody looks into the folder.

The tables say what unpacking the archive from its first entry to its last would leave: a later entry of a
name replaces an earlier one, parents that are never named exist, names count from the root whatever `..`
they have, and entries that cannot be unpacked (names with NUL, files below something that is no folder) are
left out. Where entries may lie below symbolic links of the layer, `placing.py` tells where that is.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc.codec import Ztoc
from soci_cli.ztoc.entries import Entries
from soci_cli.ztoc.folders import (
    ALWAYS,
    DIRECTORY,
    FOLDER,
    HARDLINK,
    IMPLIED,
    LINKS,
    SYMLINK,
    WHITEOUT,
    Folders,
    base_of,
    placed,
    present_since,
)
from soci_cli.ztoc.model import OPAQUE_WHITEOUT
from soci_cli.ztoc.paths import clean_path
from soci_cli.ztoc.placing import NO_ENTRY, Placed, place

_GLANCE = 8
_MAX_LINKS = 40
_MAX_FOLDERS = 256 << 20  # a long name makes many folders that cost far more than the name
_LARGE = 256  # names of a folder whose table would take long to make again
_KEPT = 32768  # names in the tables of other folders
_KEPT_LARGE = 1 << 18
_NOWHERE = b"\0"  # in place of the name of an entry that has no place
_NO_NAMES: Mapping[bytes, int] = {}
_NO_WHITEOUTS: frozenset[bytes] = frozenset()
_NONE_EARLIER: Mapping[bytes, list[int]] = {}


class _Table(NamedTuple):
    """The content of a folder at the end. `earlier` are replaced entries by name, in order."""

    names: dict[bytes, int]
    whiteouts: frozenset[bytes]
    opaque: bool
    earlier: Mapping[bytes, list[int]]


class LayerFiles(Entries):
    """The files of the layer that `ztoc` is of. Several threads may use it.

    Paths are bytes without slashes at either end; the root is b"". `entry` is the number of an entry, or
    `FOLDER + n` for folder n of the layer where no entry names that: both follow from the zTOC alone.
    Everything raises InvalidDataError where the zTOC is not valid.
    """

    def __init__(self, ztoc: Ztoc) -> None:
        """Reads no names yet."""
        super().__init__(ztoc.files)
        self.ztoc = ztoc
        self._max_cost = _MAX_FOLDERS + 4 * ztoc.size
        self._mutex = threading.RLock()
        self._folders: Folders | None = None
        self._broken = ""  # why there are none
        self._moved: Mapping[
            int, bytes | None
        ] = {}  # where entries lie that lie below symbolic links
        self._placed: Placed | None = None
        self._tables: dict[bytes, _Table] = {}
        self._kept = [0, 0]  # names in small tables, and in large ones
        self._links: dict[int, int] | None = None

    def names(self, path: bytes) -> Mapping[bytes, int]:
        """The entries in a folder by name, hard links as their own entries; none in another file."""
        table = self._tables.get(path) or self._table(path)
        return table.names if table else _NO_NAMES

    def whiteouts(self, path: bytes) -> frozenset[bytes]:
        """The names that this layer hides in a folder of the layers below."""
        table = self._tables.get(path) or self._table(path)
        return table.whiteouts if table else _NO_WHITEOUTS

    def is_opaque(self, path: bytes) -> bool:
        """Whether this layer hides all that the layers below have in a folder."""
        table = self._tables.get(path) or self._table(path)
        return table is not None and table.opaque

    def look(self, folder: bytes, name: bytes) -> tuple[int, bool] | None:
        """The entry of a name in a folder, hard links followed, and whether it is a folder itself.

        None when it is not there.
        """
        table = self._tables.get(folder) or self._table(folder)
        entry = table.names.get(name) if table else None
        if entry is None:
            return None
        kind = DIRECTORY if entry < 0 else self._files.type_of(entry)
        if kind != HARDLINK:
            return entry, kind == DIRECTORY
        target = self.resolve(entry)
        return None if target is None else (target, False)

    def find(self, path: bytes) -> tuple[int, bool] | None:
        """As `look`, for a path."""
        folder, _, name = path.rpartition(b"/")
        return self.look(folder, name) if path else (IMPLIED, True)

    def listing(self, folder: bytes) -> list[tuple[bytes, int, bool]]:
        """As `look` for all names in a folder, in the order of the archive: each with what that says."""
        found = []
        type_of = self._files.type_of
        for name, entry in sorted(self.names(folder).items(), key=itemgetter(1)):
            kind = DIRECTORY if entry < 0 else type_of(entry)
            if kind != HARDLINK:
                found.append((name, entry, kind == DIRECTORY))
                continue
            target = self.resolve(entry)
            if target is not None:
                found.append((name, target, False))
        return found

    def path_of(self, entry: int) -> bytes:
        """The path of an entry that has a place, or of a folder. InvalidDataError where there is none."""
        if entry == IMPLIED:
            return b""
        paths = self._sorted().paths
        if entry >= 0:
            moved = self._moved.get(entry)
            return clean_path(self._files.name_of(entry)) if moved is None else moved
        if entry - FOLDER >= len(paths):
            raise InvalidDataError(f"the layer has no folder {entry - FOLDER}")
        return paths[entry - FOLDER]

    def is_directory(self, entry: int) -> bool:
        """Whether it is a folder."""
        return entry < 0 or self._files.type_of(entry) == DIRECTORY

    @property
    def root(self) -> int:
        """The entry of the root, or IMPLIED."""
        return self._sorted().root

    def root_at_a_glance(self) -> int:
        """As `root`, by the first and the last names only, so that it takes no time.

        Archives that name their root do so at their beginning; a few were made by appending.
        """
        if self._folders is not None:
            return self._folders.root
        count = len(self._files)
        found = IMPLIED
        for entry in (*range(min(count, _GLANCE)), *range(max(_GLANCE, count - _GLANCE), count)):
            is_root = placed(self._files.name_of(entry)) == b""
            if is_root and self._files.type_of(entry) == DIRECTORY:
                found = entry
        return found

    def link_count(self, entry: int) -> int:
        """How many names of this layer an entry has."""
        if self._links is None:
            with self._mutex:
                if self._links is None:
                    self._links = self._count_links()
        return self._links.get(entry, 0) + 1

    def _sorted(self) -> Folders:
        """The entries by folder, which takes a moment the first time."""
        if self._folders is None:
            with self._mutex:
                if self._broken:
                    raise InvalidDataError(self._broken)
                if self._folders is None:
                    try:
                        self._folders = self._sort()
                    except InvalidDataError as error:
                        self._broken = error.message
                        raise
        return self._folders

    @cached_property
    def _has_symlinks(self) -> bool:
        return self._files.contains(SYMLINK)

    def _sort(self) -> Folders:
        names = self._files.names
        folders = Folders(names(), self.type_of, self._max_cost)
        unsure = folders.unsure
        if not folders.is_crossed and not (
            unsure
            and self._has_symlinks
            and any(
                placed(self._files.name_of(entry)) in unsure
                for entry in range(len(self._files))
                if self.type_of(entry) in LINKS
            )
        ):
            return folders
        self._placed = place(self._files, self._max_cost)
        moved = self._moved = self._placed.paths
        if not moved:
            return folders
        return Folders(
            (moved.get(entry, name) or _NOWHERE for entry, name in enumerate(names())),
            self.type_of,
            self._max_cost,
        )

    def _table(self, path: bytes) -> _Table | None:
        """The table of a folder, made now if need be; None where no entry has it as its folder."""
        folders = self._sorted()
        number = folders.numbers.get(path)
        if number is None:
            return None
        with self._mutex:
            table = self._tables.get(path)
            if table is None:
                for above in folders.unknown_above(number):
                    self._make(folders, above)
                table = self._make(folders, number)
            return table

    def _make(self, folders: Folders, number: int) -> _Table:
        """Makes and keeps a table; what its entries are to the folders below is known from then on."""
        chain = folders.switches_above(number)
        if not chain:
            table = self._make_plain(folders, number)
            if table is not None:
                return table
        since = present_since(chain, len(self._files))
        names: dict[bytes, int] = {}
        earlier: dict[bytes, list[int]] = {}
        hidden: list[bytes] = []
        opaque = False
        below: dict[bytes, int] = {}
        for one in folders.inside(number):
            if one < 0:
                below[folders.paths[one - FOLDER].rpartition(b"/")[2]] = one
                continue
            base = base_of(self._files.name_of(one))
            if since is None or one <= since:
                if not base.startswith(WHITEOUT) and present_since(chain, one) is not None:
                    earlier.setdefault(base, []).append(one)
            elif base.startswith(WHITEOUT):
                if base == OPAQUE_WHITEOUT:
                    opaque = True
                else:
                    hidden.append(base.removeprefix(WHITEOUT))
            else:
                old = names.get(base)
                if old is not None:
                    earlier.setdefault(base, []).append(old)
                names[base] = one
        for base, folder in below.items():
            own = [*earlier.get(base, ()), names[base]] if base in names else earlier.get(base, ())
            folders.set_own_entries(folder - FOLDER, own)
            if since is not None and (since == ALWAYS or folders.last_of(folder - FOLDER) > since):
                names.setdefault(base, folder)
        whiteouts = frozenset(hidden) if hidden else _NO_WHITEOUTS
        table = _Table(names, whiteouts, opaque, earlier or _NONE_EARLIER)
        self._keep(folders.paths[number], table)
        return table

    def _make_plain(self, folders: Folders, number: int) -> _Table | None:
        """As `_make`, for less work, where no name comes twice and nothing is hidden; None elsewhere."""
        inside = folders.inside(number)
        entries = [one for one in inside if one >= 0]
        bases = [base_of(name) for name in map(self._files.name_of, entries)]
        names = dict(zip(bases, entries, strict=True))
        if len(names) < len(bases) or any(base.startswith(WHITEOUT) for base in bases):
            return None
        if len(entries) < len(inside):
            for folder in (one for one in inside if one < 0):
                base = folders.paths[folder - FOLDER].rpartition(b"/")[2]
                own = names.setdefault(base, folder)
                folders.set_own_entries(folder - FOLDER, [own] if own >= 0 else [])
        table = _Table(names, _NO_WHITEOUTS, False, _NONE_EARLIER)
        self._keep(folders.paths[number], table)
        return table

    def _keep(self, path: bytes, table: _Table) -> None:
        """Keeps a table, in place of others that are older."""
        is_large = len(table.names) > _LARGE
        limit = _KEPT_LARGE if is_large else _KEPT
        self._tables[path] = table
        self._kept[is_large] += len(table.names) + 1
        if self._kept[is_large] > limit:
            self._files.release()
            for old, one in list(self._tables.items()):
                if (len(one.names) > _LARGE) == is_large and old != path:
                    del self._tables[old]
                    self._kept[is_large] -= len(one.names) + 1
                    if self._kept[is_large] <= limit // 2:
                        break

    def resolve(self, entry: int) -> int | None:
        """The entry that a hard link, or a chain of them, stands for; None when that is not there."""
        for _ in range(_MAX_LINKS):
            if self._files.type_of(entry) != HARDLINK:
                return entry
            target = self._target(entry)
            if target is None:
                return None
            entry = target
        return None

    def _target(self, entry: int) -> int | None:
        """The entry that a hard link names: of the file when the link was made, or of a later one."""
        self._sorted()
        if self._placed is None:
            found = self._target_by_name(entry)
            if found is not None or not self._has_symlinks:
                return found
            # It may be named by way of a symbolic link.
            with self._mutex:
                self._placed = self._placed or place(self._files, self._max_cost)
        found = self._placed.links.get(entry, NO_ENTRY)
        return self._target_by_name(entry) if found == NO_ENTRY else found

    def _target_by_name(self, entry: int) -> int | None:
        name = self.target_of(entry)
        if b"\0" in name:
            return None
        parent, _, base = name.rpartition(b"/")
        table = self._table(parent)
        if table is None:
            return None
        current = table.names.get(base)
        if current is not None and current < 0:
            return None
        earlier = table.earlier.get(base, [])
        before = bisect_left(earlier, entry)
        found = current
        if before and (current is None or current >= entry):
            found = earlier[before - 1]
        if found is None or found == entry or self._files.type_of(found) == DIRECTORY:
            return None
        return found

    def target_of(self, entry: int) -> bytes:
        """The path that a hard link names."""
        return clean_path(self._files.string(self._files.fields(entry).linkname))

    def _count_links(self) -> dict[int, int]:
        links: dict[int, int] = {}
        if not self._files.contains(HARDLINK):
            return links
        self._sorted()  # which tells where entries below symbolic links lie
        for entry in range(len(self._files)):
            if self._files.type_of(entry) != HARDLINK:
                continue
            if self._is_named(entry):
                target = self.resolve(entry)
                if target is not None:
                    links[target] = links.get(target, 0) + 1
        for target in links:
            # Its own name may be that of something else by now.
            if not self._is_named(target):
                links[target] -= 1
        return links

    def _is_named(self, entry: int) -> bool:
        """Whether the name of an entry is still its own at the end."""
        parent, _, base = (placed(self.name(entry)) or b"").rpartition(b"/")
        if entry in self._moved:
            parent = (self._moved[entry] or b"").rpartition(b"/")[0]
        is_hidden = WHITEOUT in parent and any(
            part.startswith(WHITEOUT) for part in parent.split(b"/")
        )
        return not is_hidden and self.names(parent).get(base) == entry

    def lost_link(self, folder: bytes, name: bytes) -> bytes | None:
        """The path that a hard link in a folder names, where this layer has no file there: others may."""
        table = self._tables.get(folder) or self._table(folder)
        entry = table.names.get(name, IMPLIED) if table else IMPLIED
        if entry < 0 or self._files.type_of(entry) != HARDLINK or self.resolve(entry) is not None:
            return None
        return self.target_of(entry)

    def lost_links(self, folder: bytes) -> list[tuple[bytes, bytes]]:
        """The names in a folder of hard links as of `lost_link`, with what that says, in order."""
        found = []
        for name, entry in sorted(self.names(folder).items(), key=itemgetter(1)):
            target = self.lost_link(folder, name) if entry >= 0 else None
            if target is not None:
                found.append((name, target))
        return found
