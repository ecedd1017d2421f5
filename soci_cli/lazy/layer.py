"""The files of one layer by path, straight from its zTOC: what nobody asks for is not decoded.

When the first file is asked for, all names are read once, only to sort the entries by their folders. A
folder's table of names is made when somebody looks into the folder.

The tables say what unpacking the archive from its first entry to its last would leave: a later entry of a
name replaces an earlier one, parents that are never named exist, and what cannot be unpacked safely (names
with `..` or NUL, files below something that is no folder) is not there.
"""

from __future__ import annotations

import stat
import threading
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from soci_cli.errors import InvalidDataError
from soci_cli.text import brief
from soci_cli.ztoc import Ztoc
from soci_cli.ztoc.model import OPAQUE_WHITEOUT, XATTR_PREFIX
from soci_cli.ztoc.reader import clean_path

IMPLIED = -1
"""In place of an entry: a folder that the archive has files in but never names."""

DIRECTORY = b"dir"
SYMLINK = b"symlink"
_REGULAR = b"reg"
_HARDLINK = b"hardlink"
_GLANCE = 8
_WHITEOUT = b".wh."
_META = b".wh..wh."  # what AUFS kept beside the files; only the opaque mark means anything
_DOT = ord(".")
_LINK_MODE = 0o777  # of symlinks, whatever the archive says: Linux knows no other
_MAX_LINKS = 40
_MAX_TYPE = 16
_MAX_PATH = 4096  # as Linux's PATH_MAX; nobody could name a longer one
_MAX_FOLDERS = 256 << 20  # a long name makes many folders that cost far more than the name
_FOLDER_COST = 300
_LARGE = 256  # names of a folder whose table is not dropped: it would take long to make again
_KEPT = 32768  # names in the tables of other folders
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1  # as Linux numbers devices
_EPOCH = date(1970, 1, 1).toordinal()
_NO_NAMES: Mapping[bytes, int] = {}
_NO_WHITEOUTS: frozenset[bytes] = frozenset()
_NONE_EARLIER: Mapping[bytes, list[int]] = {}
_OVERLAY = (b"trusted.overlay.", b"user.overlay.")
FORMATS: Mapping[str, int] = {
    "reg": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}
"""The types of `Node` as `st_mode` has them."""

_TYPES = {kind.encode(): kind for kind in FORMATS}


@dataclass(frozen=True, slots=True)
class Node:
    """What is known of a file, as `lstat` would say it.

    `type` is "reg", "dir", "symlink", "char", "block" or "fifo", `mode` the twelve permission bits,
    `size` the bytes of a regular file or of a symlink's target, and `offset` where the bytes begin in the
    layer's archive. `xattrs` have their full names.
    """

    type: str
    mode: int
    uid: int = 0
    gid: int = 0
    uname: bytes = b""
    gname: bytes = b""
    size: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    devmajor: int = 0
    devminor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    offset: int = 0


IMPLIED_DIRECTORY = Node("dir", 0o755)


class Attributes(NamedTuple):
    """What `stat` says of a file, as in its `Node`; `rdev` numbers are clamped to what Linux has."""

    type: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    devmajor: int
    devminor: int


IMPLIED_ATTRIBUTES = Attributes("dir", 0o755, 0, 0, 0, 0, 0, 0)


class _Table(NamedTuple):
    """What is in a folder at the end. `earlier` are replaced entries by name, in order."""

    names: dict[bytes, int]
    whiteouts: frozenset[bytes]
    opaque: bool
    earlier: Mapping[bytes, list[int]]


class LayerFiles:
    """The files of the layer that `ztoc` is of. Several threads may use it.

    Paths are bytes without slashes at either end; the root is b"". An entry is a number. Everything
    raises InvalidDataError where the zTOC is not valid.
    """

    def __init__(self, ztoc: Ztoc) -> None:
        """Reads no names yet."""
        self.ztoc = ztoc
        self._files = ztoc.files
        self._max_cost = _MAX_FOLDERS + 4 * ztoc.size
        self._mutex = threading.RLock()
        self._folders: _Folders | None = None
        self._broken = ""  # why there are none
        self._tables: dict[bytes, _Table] = {}
        self._small = 0  # names in tables that may be dropped
        self._links: dict[int, int] | None = None

    def names(self, path: bytes) -> Mapping[bytes, int]:
        """What is in a folder, by name, hard links as their own entries; empty for all else."""
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

    def look(self, folder: bytes, name: bytes, path: bytes) -> tuple[int, bool] | None:
        """The entry of a name in a folder, hard links followed, and whether it is a folder itself.

        `path` is both together. None when it is not there.
        """
        table = self._tables.get(folder) or self._table(folder)
        entry = table.names.get(name) if table else None
        if entry is None:
            return None
        kind = DIRECTORY if entry == IMPLIED else self._files.type_of(entry)
        if kind != _HARDLINK:
            return entry, kind == DIRECTORY
        target = self._follow(entry)
        return None if target is None else (target, False)

    def listing(self, folder: bytes) -> list[tuple[bytes, int, bool]]:
        """As `look` for all names in a folder, in the order of the archive: each with what that says."""
        found = []
        type_of = self._files.type_of
        for name, entry in sorted(self.names(folder).items(), key=itemgetter(1)):
            kind = DIRECTORY if entry == IMPLIED else type_of(entry)
            if kind != _HARDLINK:
                found.append((name, entry, kind == DIRECTORY))
                continue
            target = self._follow(entry)
            if target is not None:
                found.append((name, target, False))
        return found

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
            is_root = _placed(self._files.name_of(entry)) == b""
            if is_root and self._files.type_of(entry) == DIRECTORY:
                found = entry
        return found

    def type_of(self, entry: int) -> bytes:
        """The type that the zTOC gives, without decoding the rest."""
        return self._files.type_of(entry)[:_MAX_TYPE]

    def name(self, entry: int) -> bytes:
        """The name of an entry as the archive has it."""
        return b"" if entry == IMPLIED else self._files.name_of(entry)

    def attributes(self, entry: int) -> Attributes:
        """What is needed of an entry most often, for less work than `node`."""
        if entry == IMPLIED:
            return IMPLIED_ATTRIBUTES
        files = self._files
        found = files.fields(entry)
        _, type_, _, _, linkname, mode, uid, gid, _, _, mod_time, major, minor, _ = found
        kind = files.string(type_)
        size = 0
        if kind == _REGULAR:
            _, size = files.extent(found)
        elif kind == SYMLINK:
            size, mode = files.string_size(linkname), _LINK_MODE
        return Attributes(
            _TYPES.get(kind) or kind.decode("ascii", "replace"),
            mode & 0o7777,
            uid,
            gid,
            size,
            _nanoseconds(files.string(mod_time)),
            major and min(max(major, 0), _MAX_MAJOR),
            minor and min(max(minor, 0), _MAX_MINOR),
        )

    def xattrs(self, entry: int) -> tuple[tuple[bytes, bytes], ...]:
        """The extended attributes of an entry, without those that would steer overlayfs."""
        if entry == IMPLIED:
            return ()
        records = self._files.xattrs(self._files.fields(entry).xattrs)
        return tuple(one for one in _xattrs(records) if not one[0].startswith(_OVERLAY))

    def may_need_xattrs(self) -> bool:
        """Whether an entry may have extended attributes, or a folder be opaque; quick where none is."""
        contains = self._files.contains
        if contains(XATTR_PREFIX):
            return True
        return contains(_WHITEOUT) and (contains(OPAQUE_WHITEOUT) or self._replaces_folders())

    def _replaces_folders(self) -> bool:
        """Whether a folder is beside a whiteout of its name, and so hides what is below."""
        hiding = (clean_path(name) for name in self._files.names() if _WHITEOUT in name)
        for path in {name.rpartition(b"/")[0] for name in hiding}:
            for name in self.whiteouts(path):
                found = self.look(path, name, path + b"/" + name if path else name)
                if found is not None and found[1]:
                    return True
        return False

    def linkname(self, entry: int) -> bytes:
        """What a symlink leads to."""
        return self.node(entry).linkname

    def node(self, entry: int) -> Node:
        """All about an entry, which is no hard link."""
        if entry == IMPLIED:
            return IMPLIED_DIRECTORY
        files = self._files
        found = files.fields(entry)
        kind = files.string(found.type)
        linkname = files.string(found.linkname)
        if b"\0" in linkname:
            name = brief(files.string(found.name))
            raise InvalidDataError(f"{name} is a link to a name with a NUL in it")
        offset, size = files.extent(found) if kind == _REGULAR else (0, 0)
        return Node(
            _TYPES.get(kind) or kind.decode("ascii", "replace"),
            _LINK_MODE if kind == SYMLINK else found.mode & 0o7777,
            found.uid,
            found.gid,
            files.string(found.uname),
            files.string(found.gname),
            len(linkname) if kind == SYMLINK else size,
            _nanoseconds(files.string(found.mod_time)),
            linkname,
            found.devmajor,
            found.devminor,
            _xattrs(files.xattrs(found.xattrs)) if found.xattrs else (),
            offset,
        )

    def link_count(self, entry: int) -> int:
        """How many names of this layer an entry has."""
        if self._links is None:
            with self._mutex:
                if self._links is None:
                    self._links = self._count_links()
        return self._links.get(entry, 0) + 1

    def _sorted(self) -> _Folders:
        """The entries by folder, which takes a moment the first time."""
        if self._folders is None:
            with self._mutex:
                if self._broken:
                    raise InvalidDataError(self._broken)
                if self._folders is None:
                    try:
                        self._folders = _Folders(self._files.names(), self.type_of, self._max_cost)
                    except InvalidDataError as error:
                        self._broken = str(error)
                        raise
        return self._folders

    def _table(self, path: bytes) -> _Table | None:
        """The table of a folder, made now if need be; None where no entry has it as its folder."""
        folders = self._sorted()
        if path not in folders.entries:
            return None
        with self._mutex:
            table = self._tables.get(path)
            if table is None:
                for folder in folders.unknown_above(path):
                    self._make(folder)
                table = self._make(path)
            return table

    def _make(self, path: bytes) -> _Table:
        """Makes and keeps a table; what its entries are to the folders below is known from then on."""
        folders = self._sorted()
        chain = folders.switches_above(path)
        since = _since(chain, len(self._files))
        names: dict[bytes, int] = {}
        earlier: dict[bytes, list[int]] = {}
        hidden: list[bytes] = []
        opaque = False
        below: dict[bytes, int] = {}
        for number in folders.entries[path][1:]:
            if number < 0:
                base = folders.paths[-number].rpartition(b"/")[2]
                below[base] = -number
                if since == _ALWAYS:
                    names.setdefault(base, IMPLIED)
                continue
            base = _base(self._files.name_of(number))
            if since is None or number <= since:
                if not base.startswith(_WHITEOUT) and _since(chain, number) is not None:
                    earlier.setdefault(base, []).append(number)
            elif base.startswith(_WHITEOUT):
                if base == OPAQUE_WHITEOUT:
                    opaque = True
                else:
                    hidden.append(base.removeprefix(_WHITEOUT))
            else:
                old = names.get(base, IMPLIED)
                if old != IMPLIED:
                    earlier.setdefault(base, []).append(old)
                names[base] = number
        for base, folder in below.items():
            if since is not None and since != _ALWAYS and folders.last_of(folder) > since:
                names.setdefault(base, IMPLIED)
            entries = [*earlier.get(base, ()), names.get(base, IMPLIED)]
            folders.know(folder, [one for one in entries if one != IMPLIED])
        whiteouts = frozenset(hidden) if hidden else _NO_WHITEOUTS
        table = _Table(names, whiteouts, opaque, earlier or _NONE_EARLIER)
        self._keep(path, table)
        return table

    def _keep(self, path: bytes, table: _Table) -> None:
        count = len(table.names)
        self._tables[path] = table
        if count > _LARGE:
            return
        self._small += count + 1
        if self._small > _KEPT:
            for old, one in list(self._tables.items()):
                if len(one.names) <= _LARGE and old != path:
                    del self._tables[old]
                    self._small -= len(one.names) + 1
                    if self._small <= _KEPT // 2:
                        break

    def _follow(self, entry: int) -> int | None:
        """The entry that a hard link, or a chain of them, stands for; None when that is not there."""
        for _ in range(_MAX_LINKS):
            if self._files.type_of(entry) != _HARDLINK:
                return entry
            target = self._target(entry)
            if target is None:
                return None
            entry = target
        return None

    def _target(self, entry: int) -> int | None:
        """What a hard link names: the file of that name when the link was made, or a later one."""
        name = self._files.string(self._files.fields(entry).linkname)
        if b".." in name.split(b"/") or b"\0" in name:
            return None
        parent, _, base = clean_path(name).rpartition(b"/")
        table = self._table(parent)
        if table is None:
            return None
        current = table.names.get(base)
        if current == IMPLIED:
            return None
        earlier = table.earlier.get(base, [])
        before = bisect_left(earlier, entry)
        found = current
        if before and (current is None or current >= entry):
            found = earlier[before - 1]
        if found is None or found == entry or self._files.type_of(found) == DIRECTORY:
            return None
        return found

    def _count_links(self) -> dict[int, int]:
        links: dict[int, int] = {}
        for entry in range(len(self._files)):
            if self._files.type_of(entry) != _HARDLINK:
                continue
            path = _placed(self.name(entry)) or b""
            parent, _, base = path.rpartition(b"/")
            if self.names(parent).get(base) == entry:
                target = self._follow(entry)
                if target is not None:
                    links[target] = links.get(target, 0) + 1
        for target in links:
            # Its own name may be that of something else by now.
            parent, _, base = (_placed(self.name(target)) or b"").rpartition(b"/")
            if self.names(parent).get(base) != target:
                links[target] -= 1
        return links


_ALWAYS = -1  # in place of an entry: from the beginning
_UNKNOWN, _KNOWN = 0, 1


class _Switches(NamedTuple):
    """What a path that is a folder for some entries is itself: its own entries, in order.

    `kinds` tells which of them are folders, `firsts` where the run of equal kinds begins that each is in.
    """

    entries: list[int]
    kinds: list[bool]
    firsts: list[int]


class _Folders:
    """The entries of a layer by folder, in the order of the archive.

    A folder's array begins with whether its own entries are known; `-n` among the entries stands for the
    folder `paths[n]`, where that first has something in it.
    """

    def __init__(
        self, names: Iterable[bytes], type_of: Callable[[int], bytes], max_cost: int
    ) -> None:
        self.root = IMPLIED
        self.paths = [b""]
        self.entries = {b"": array("i", (_KNOWN,))}
        self._type_of = type_of
        self._cost_left = max_cost
        self._switches: dict[bytes, _Switches] = {}
        self._last: array[int] | None = None
        folders = self.entries
        nowhere = deque[int](maxlen=0).append
        known: dict[bytes, Callable[[int], None]] = {}  # by odd names of folders
        last: bytes | None = None
        append = nowhere
        for entry, name in enumerate(names):
            parent, _, base = name.rpartition(b"/")
            if not base:
                parent, _, base = parent.rpartition(b"/")
            if not base or base[0] == _DOT or b"\0" in base or len(name) > _MAX_PATH:
                path = _placed(name)
                if path:
                    self._folder(path.rpartition(b"/")[0]).append(entry)
                elif path is not None and type_of(entry) == DIRECTORY:
                    self.root = entry
                continue
            if parent != last:
                last = parent
                if parent in folders:
                    append = folders[parent].append
                elif parent in known:
                    append = known[parent]
                else:
                    above, _, base = parent.rpartition(b"/")
                    if (
                        base
                        and base[0] != _DOT
                        and b"\0" not in base
                        and above in folders
                        and (above or base == parent)
                    ):
                        append = self._add(folders[above], parent).append
                    else:
                        path = _placed(parent + b"/x")
                        append = nowhere if path is None else self._folder(path[:-2]).append
                        known[parent] = append
            append(entry)

    def _folder(self, path: bytes) -> array[int]:
        """The entries in a folder, which is made with its parents. InvalidDataError for too many."""
        found = self.entries.get(path)
        if found is not None:
            return found
        missing = []
        while path not in self.entries:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        found = self.entries[path]
        for path in reversed(missing):
            found = self._add(found, path)
        return found

    def _add(self, above: array[int], path: bytes) -> array[int]:
        self._cost_left -= len(path) + _FOLDER_COST
        if self._cost_left < 0:
            raise InvalidDataError("the names of the layer's files make too many folders")
        above.append(-len(self.paths))
        self.paths.append(path)
        made = self.entries[path] = array("i", (_UNKNOWN,))
        return made

    # A name can be a folder for some entries, and a file for others. Few layers have any such name.

    def unknown_above(self, path: bytes) -> list[bytes]:
        """The folders above one whose own tables must be made before its, in that order."""
        found = []
        while self.entries[path][0] == _UNKNOWN:
            path = path.rpartition(b"/")[0]
            found.append(path)
        return found[::-1]

    def know(self, number: int, entries: list[int]) -> None:
        """Takes all entries of folder `number` itself, in order; none that had no place when it came."""
        path = self.paths[number]
        self.entries[path][0] = _KNOWN
        kinds = [self._type_of(entry) == DIRECTORY for entry in entries]
        if not all(kinds):
            firsts: list[int] = []
            for at, kind in enumerate(kinds):
                firsts.append(firsts[-1] if at and kinds[at - 1] == kind else at)
            self._switches[path] = _Switches(entries, kinds, firsts)

    def switches_above(self, path: bytes) -> list[_Switches]:
        """Those of a folder and of the folders above it, topmost first."""
        found = []
        while self._switches and path:
            if path in self._switches:
                found.append(self._switches[path])
            path = path.rpartition(b"/")[0]
        return found[::-1]

    def last_of(self, number: int) -> int:
        """The last entry in folder `number` or below it."""
        if self._last is None:
            last = array("i", bytes(4 * len(self.paths)))
            # A folder has a greater number than those above it.
            for one in reversed(range(len(self.paths))):
                inside = self.entries[self.paths[one]][1:]
                last[one] = max((n if n >= 0 else last[-n] for n in inside), default=-1)
            self._last = last
        return self._last[number]


def _since(switches: Iterable[_Switches], until: int) -> int | None:
    """The entry after which what is in a folder is still there when entry `until` comes.

    `switches` are those of the folder and above, topmost first. None when there is no such folder then.
    """
    since = _ALWAYS
    for one in switches:
        at = bisect_left(one.entries, until) - 1
        if at < 0 or one.entries[at] <= since:
            continue  # nothing, or something that went together with what is above it
        if not one.kinds[at]:
            return None
        first = one.firsts[at]
        if first and one.entries[first - 1] > since:
            since = one.entries[first]
    return since


def _placed(name: bytes) -> bytes | None:
    """The path of an entry, b"" for the root; None when it has no place."""
    if len(name) > _MAX_PATH or b"\0" in name or (b".." in name and b".." in name.split(b"/")):
        return None
    path = clean_path(name)
    if _WHITEOUT in path:
        parent, _, base = path.rpartition(b"/")
        if any(part.startswith(_WHITEOUT) for part in parent.split(b"/")):
            return None
        if base.startswith(_WHITEOUT) and base != OPAQUE_WHITEOUT:
            hidden = base.removeprefix(_WHITEOUT)
            if base.startswith(_META) or hidden in (b"", b".", b".."):
                return None
    return path


def _base(name: bytes) -> bytes:
    """The last part of the path of an entry that has a place."""
    base = name.rpartition(b"/")[2]
    return base if base and base[0] != _DOT else clean_path(name).rpartition(b"/")[2]


def _xattrs(records: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(
        (key.removeprefix(XATTR_PREFIX), value)
        for key, value in records
        if key.startswith(XATTR_PREFIX) and len(key) > len(XATTR_PREFIX) and b"\0" not in key
    )


@lru_cache(maxsize=4096)
def _nanoseconds(text: bytes) -> int:
    """Nanoseconds since 1970 from RFC 3339 in UTC, as zTOCs have it; 0 for anything else."""
    seconds, _, fraction = text.removesuffix(b"Z").partition(b".")
    if len(seconds) != 19 or len(fraction) > 9 or not (seconds[:4] + fraction).isdigit():
        return 0
    try:
        whole = (
            _day(seconds[:10])
            + 3600 * int(seconds[11:13])
            + 60 * int(seconds[14:16])
            + int(seconds[17:19])
        )
    except ValueError:
        return 0
    return whole * 1_000_000_000 + (int(fraction.ljust(9, b"0")) if fraction else 0)


@lru_cache(maxsize=1024)
def _day(text: bytes) -> int:
    """Seconds since 1970 when a day begins. Python's dates begin with the year 1; the calendar repeats
    after 400 years. ValueError for what is no day."""
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
    if year:
        return (date(year, month, day).toordinal() - _EPOCH) * 86400
    return (date(400, month, day).toordinal() - _EPOCH - 146097) * 86400
