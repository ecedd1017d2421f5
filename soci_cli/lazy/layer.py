"""The files of one layer by path, straight from its zTOC: an entry is decoded when somebody asks for it.

Only names are read beforehand. The table says what unpacking the archive from its first entry to its last
would leave: a later entry of a name replaces an earlier one, parents that are never named exist, and what
cannot be unpacked safely (names with `..` or NUL, files below something that is no folder) is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc import FileMetadata, Ztoc, decode_ztoc
from soci_cli.ztoc.flatbuffer import Table
from soci_cli.ztoc.model import OPAQUE_WHITEOUT, XATTR_PREFIX
from soci_cli.ztoc.reader import clean_path, show_name

IMPLIED = -1
"""In place of an entry: a folder that the archive has files in but never names."""

DIRECTORY = b"dir"
SYMLINK = b"symlink"
_HARDLINK = b"hardlink"
_WHITEOUT = b".wh."
_META = b".wh..wh."  # what AUFS kept beside the files; only the opaque mark means anything
_MAX_LINKS = 40
_MAX_TYPE = 16
_MAX_PATH = 4096  # as Linux's PATH_MAX; nobody could name a longer one
_MAX_IMPLIED = 256 << 20  # a long name makes many folders that cost far more than the name
_FOLDER_COST = 300
_EPOCH = date(1970, 1, 1).toordinal()
_NO_NAMES: Mapping[bytes, int] = {}
_NO_WHITEOUTS: frozenset[bytes] = frozenset()


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


class LayerFiles:
    """The files of a layer, whose zTOC has the bytes `data`.

    Paths are bytes without slashes at either end; the root is b"". An entry is a number.
    """

    def __init__(self, data: bytes, ztoc: Ztoc | None = None) -> None:
        """Raises InvalidDataError for a zTOC that is not valid."""
        self._data = data
        self._files = (ztoc or decode_ztoc(data)).files
        contents = Table.root(data).table(4)
        self._start = contents.offsets(0)[0] if contents else 0
        self._names: dict[bytes, dict[bytes, int]] = {b"": {}}
        self._whiteouts: dict[bytes, set[bytes]] = {}
        self._opaque: set[bytes] = set()
        self._replaced: dict[bytes, list[int]] = {}  # earlier entries of a name, for hard links
        self._root = IMPLIED
        self._implied = 0
        self._links: dict[int, int] | None = None
        self._build()

    def names(self, path: bytes) -> Mapping[bytes, int]:
        """What is in a folder, by name, hard links as their own entries; empty for all else."""
        return self._names.get(path, _NO_NAMES)

    def whiteouts(self, path: bytes) -> frozenset[bytes] | set[bytes]:
        """The names that this layer hides in a folder of the layers below."""
        return self._whiteouts.get(path, _NO_WHITEOUTS)

    def is_opaque(self, path: bytes) -> bool:
        """Whether this layer hides all that the layers below have in a folder."""
        return path in self._opaque

    def look(self, folder: bytes, name: bytes, path: bytes) -> tuple[int, bool] | None:
        """The entry of a name in a folder, hard links followed, and whether it is a folder itself.

        `path` is both together. None when it is not there.
        """
        entry = self._names.get(folder, _NO_NAMES).get(name)
        if entry is None:
            return None
        if path in self._names:
            return entry, True
        kind = self.type_of(entry)
        if kind != _HARDLINK:
            return entry, kind == DIRECTORY
        target = self._follow(entry)
        return None if target is None else (target, False)

    @property
    def root(self) -> int:
        """The entry of the root, or IMPLIED."""
        return self._root

    def type_of(self, entry: int) -> bytes:
        """The type that the zTOC gives, without decoding the rest."""
        at = self._start + 4 * entry
        table = Table(self._data, at + int.from_bytes(self._data[at : at + 4], "little"))
        start, count = table.byte_range(1)
        return self._data[start : start + min(count, _MAX_TYPE)]

    def node(self, entry: int) -> Node:
        """All about an entry, which is no hard link."""
        return IMPLIED_DIRECTORY if entry == IMPLIED else _node(self._files[entry])

    def link_count(self, entry: int) -> int:
        """How many names of this layer an entry has."""
        if self._links is None:
            self._links = self._count_links()
        return self._links.get(entry, 0) + 1

    def _build(self) -> None:
        names = self._names
        last_parent, folder = b"", names[b""]
        for entry, name in enumerate(self._files.names()):
            if (
                len(name) > _MAX_PATH
                or b"\0" in name
                or (b".." in name and b".." in name.split(b"/"))
            ):
                continue
            path = clean_path(name)
            parent, _, base = path.rpartition(b"/")
            if _WHITEOUT in path and self._take_whiteout(parent, base):
                continue
            if not base:
                if self.type_of(entry) == DIRECTORY:
                    self._root = entry
                continue
            if parent != last_parent:
                found = names.get(parent) or self._make_folder(parent)
                if found is None:
                    continue
                last_parent, folder = parent, found
            if base in folder:
                self._replace(path, folder[base], entry)
            folder[base] = entry

    def _take_whiteout(self, parent: bytes, base: bytes) -> bool:
        """Takes a mark that hides something; False when the name only looks similar."""
        if any(part.startswith(_WHITEOUT) for part in parent.split(b"/")):
            return True
        if not base.startswith(_WHITEOUT):
            return False
        if base == OPAQUE_WHITEOUT:
            if self._make_folder(parent) is not None:
                self._opaque.add(parent)
        elif not base.startswith(_META):
            hidden = base.removeprefix(_WHITEOUT)
            if hidden not in (b"", b".", b"..") and self._make_folder(parent) is not None:
                self._whiteouts.setdefault(parent, set()).add(hidden)
        return True

    def _make_folder(self, path: bytes) -> dict[bytes, int] | None:
        """The names in a folder, which is made with its parents; None below something else."""
        missing = []
        while path not in self._names:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        names = self._names[path]
        while missing:
            path = missing.pop()
            base = path.rpartition(b"/")[2]
            entry = names.setdefault(base, IMPLIED)
            if entry == IMPLIED:
                self._implied += len(path) + _FOLDER_COST
                if self._implied > _MAX_IMPLIED:
                    raise InvalidDataError("the names of the layer's files make too many folders")
            elif self.type_of(entry) != DIRECTORY:
                return None
            names = self._names[path] = {}
        return names

    def _replace(self, path: bytes, old: int, new: int) -> None:
        """A second entry of a name: a folder stays what it is for another folder, and goes for a file."""
        if old != IMPLIED:
            self._replaced.setdefault(path, []).append(old)
        if path not in self._names or self.type_of(new) == DIRECTORY:
            return
        gone = [path]
        while gone:
            folder = gone.pop()
            self._whiteouts.pop(folder, None)
            self._opaque.discard(folder)
            for name, entry in self._names.pop(folder).items():
                below = folder + b"/" + name
                if below in self._names:
                    gone.append(below)
                elif entry != IMPLIED:
                    self._replaced.setdefault(below, []).append(entry)

    def _follow(self, entry: int) -> int | None:
        """The entry that a hard link, or a chain of them, stands for; None when that is not there."""
        for _ in range(_MAX_LINKS):
            if self.type_of(entry) != _HARDLINK:
                return entry
            target = self._target(entry)
            if target is None:
                return None
            entry = target
        return None

    def _target(self, entry: int) -> int | None:
        """What a hard link names: the file of that name when the link was made, or a later one."""
        name = self._files[entry].linkname
        if b".." in name.split(b"/") or b"\0" in name:
            return None
        path = clean_path(name)
        parent, _, base = path.rpartition(b"/")
        current = self.names(parent).get(base)
        if current == IMPLIED:
            return None
        candidates = [*self._replaced.get(path, ()), *([] if current is None else [current])]
        before = [one for one in candidates if one < entry]
        found = before[-1] if before else current
        if found is None or found == entry or self.type_of(found) == DIRECTORY:
            return None
        return found

    def _count_links(self) -> dict[int, int]:
        links: dict[int, int] = {}
        for folder in self._names.values():
            for entry in folder.values():
                if entry != IMPLIED and self.type_of(entry) == _HARDLINK:
                    target = self._follow(entry)
                    if target is not None:
                        links[target] = links.get(target, 0) + 1
        return links


def _node(entry: FileMetadata) -> Node:
    if b"\0" in entry.linkname:
        raise InvalidDataError(f"{show_name(entry.name)} is a link to a name with a NUL in it")
    kind = entry.type.decode("ascii", "replace")
    size = entry.uncompressed_size if entry.has_data else 0
    return Node(
        type=kind,
        mode=entry.mode & 0o7777,
        uid=entry.uid,
        gid=entry.gid,
        uname=entry.uname,
        gname=entry.gname,
        size=len(entry.linkname) if entry.type == SYMLINK else size,
        mtime_ns=_nanoseconds(entry.mod_time),
        linkname=entry.linkname,
        devmajor=entry.devmajor,
        devminor=entry.devminor,
        xattrs=tuple(
            (key.removeprefix(XATTR_PREFIX), value)
            for key, value in entry.xattrs
            if key.startswith(XATTR_PREFIX) and len(key) > len(XATTR_PREFIX) and b"\0" not in key
        ),
        offset=entry.uncompressed_offset if entry.has_data else 0,
    )


def _nanoseconds(text: bytes) -> int:
    """Nanoseconds since 1970 from RFC 3339 in UTC, as zTOCs have it; 0 for anything else."""
    seconds, _, fraction = text.removesuffix(b"Z").partition(b".")
    if not (seconds[:4] + fraction).isdigit() or len(fraction) > 9 or len(seconds) != 19:
        return 0
    return _seconds(seconds) * 1_000_000_000 + int(fraction.ljust(9, b"0"))


@lru_cache(maxsize=1024)
def _seconds(text: bytes) -> int:
    try:
        hours, minutes, seconds = (int(part) for part in text[11:].split(b":"))
        days = _days(int(text[:4]), int(text[5:7]), int(text[8:10]))
    except ValueError:
        return 0
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970. Python's dates begin with the year 1; the calendar repeats after 400 years."""
    if year:
        return date(year, month, day).toordinal() - _EPOCH
    return date(400, month, day).toordinal() - _EPOCH - 146097
