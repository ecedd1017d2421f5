"""The entries of a layer sorted by the folder that they are in, and which of them are left at the end.

One pass over the names does it. Folders are numbered in the order in which the archive first has something
in them, so their numbers depend on the zTOC alone: 0 is the root, and a folder comes after the one that it
is in. For example:

    entry  name               type       folder  path     what is in it
    0      usr/               dir        0       ""       0, folder 1, folder 3, 4
    1      usr/bin/tool       reg        1       usr      folder 2
    2      etc/hosts          reg        2       usr/bin  1, 3
    3      usr/bin/tool       reg        3       etc      2
    4      etc                symlink

Entry 0 names folder 1; nothing names folder 2, which is there all the same, as unpacking would make it. Of
the two entries `usr/bin/tool` the later one counts. Entry 4 replaces folder 3 with all that was in it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc.model import OPAQUE_WHITEOUT
from soci_cli.ztoc.paths import MAX_PATH, clean_path

FOLDER = -(1 << 31)
"""`FOLDER + n`, which is negative, stands for folder n where else the number of an entry does."""
IMPLIED = FOLDER
"""In place of an entry: the root, when the archive does not name it."""
DIRECTORY = b"dir"
SYMLINK = b"symlink"
HARDLINK = b"hardlink"
LINKS = (SYMLINK, HARDLINK)
WHITEOUT = b".wh."
ALWAYS = -1
"""In place of an entry: what is in a folder is there from the beginning."""

_META = b".wh..wh."  # what AUFS kept beside the files; only the opaque mark means anything
_DOT = ord(".")
FOLDER_COST = 300
"""Bytes of memory that a folder takes, about, beside its path."""


class Switches(NamedTuple):
    """The own entries, in order, of a path that is a folder for some entries and not for others.

    `kinds` tells which of them are folders, `firsts` where the run of equal kinds begins that each is in.
    """

    entries: list[int]
    kinds: list[bool]
    firsts: list[int]


class Folders:
    """The folders of a layer. `paths` and `parents` are by number, `numbers` by path.

    `root` is the entry that names the root, or IMPLIED. With `is_crossed` a link has the name of a folder
    that has something in it, so that entries may lie elsewhere (`placing.py`); so it is, too, where a link
    has one of the paths in `unsure`. What is below a name that begins as a whiteout does, such as the hard
    links of AUFS, is in a folder that is in none.
    """

    def __init__(
        self, names: Iterable[bytes], type_of: Callable[[int], bytes], max_cost: int
    ) -> None:
        """Raises InvalidDataError when the folders would cost more than `max_cost` bytes of memory."""
        self.root = IMPLIED
        self.is_crossed = False
        self.unsure: set[bytes] = set()
        self.paths = [b""]
        self.parents = array("I", (0,))
        self.numbers = {b"": 0}
        self._type_of = type_of
        self._cost_left = max_cost
        self._sort(names)
        self._known = bytearray(len(self.paths))
        self._known[0] = 1
        self._switches: dict[int, Switches] = {}
        self._last: array[int] | None = None

    def inside(self, number: int) -> array[int]:
        """The entries in a folder, in order, and `FOLDER + n` for folder n where that first has some."""
        return self._inside[self._starts[number] : self._starts[number + 1]]

    def last_of(self, number: int) -> int:
        """The last entry in a folder or below it."""
        if self._last is None:
            last = array("i", bytes(4 * len(self.paths)))
            for one in reversed(range(len(self.paths))):
                inside = self.inside(one)
                last[one] = max((n if n >= 0 else last[n - FOLDER] for n in inside), default=-1)
            self._last = last
        return self._last[number]

    def _sort(self, names: Iterable[bytes]) -> None:
        numbers = self.numbers
        lists = self._lists = [array("i")]
        nowhere = deque[int](maxlen=0).append
        known: dict[bytes, tuple[Callable[[int], None], bytes]] = {}  # by odd names of folders
        last: bytes | None = None
        append = nowhere
        prefix: bytes | None = None  # of the paths in a folder whose name is odd
        before = b""
        # Runs once an entry.
        for entry, name in enumerate(names):
            parent, _, base = name.rpartition(b"/")
            if not base:
                name = name.rstrip(b"/")
                parent, _, base = name.rpartition(b"/")
            if not base or base[0] == _DOT or b"\0" in base or len(name) > MAX_PATH:
                path = placed(name)
                if path:
                    above = path.rpartition(b"/")[0]
                    if above not in numbers:
                        self._number(above, entry if before == parent else 0)
                    lists[numbers[above]].append(entry)
                    if path in numbers:
                        self._check(entry)
                elif path is not None and self._type_of(entry) == DIRECTORY:
                    self.root = entry
                before = name
                continue
            if parent != last:
                last = parent
                number = numbers.get(parent)
                prefix = None
                if number is not None:
                    append = lists[number].append
                elif parent in known:
                    append, prefix = known[parent]
                else:
                    path = placed(parent + b"/x")
                    if path is not None:
                        prefix = path[:-1]
                        append = lists[
                            self._number(path[:-2], entry if before == parent else 0)
                        ].append
                    else:
                        append = nowhere
                    if path == parent + b"/x":
                        prefix = None
                    else:
                        known[parent] = append, prefix or b""
            append(entry)
            if (name if prefix is None else prefix + base) in numbers:
                self._check(entry)
            before = name
        self._inside = array("i")
        self._starts = array("I", (0,))
        for one in lists:
            self._inside.extend(one)
            self._starts.append(len(self._inside))
        del self._lists

    def _check(self, entry: int) -> None:
        """Takes note of an entry in the place of a folder that has something in it."""
        if self._type_of(entry) in LINKS:
            self.is_crossed = True

    def _number(self, path: bytes, entry: int) -> int:
        """A folder, which is made with those above it. InvalidDataError for too many.

        `entry` comes right after the one that names the folder, if any does; else it is 0.
        """
        missing = []
        while path not in self.numbers:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        number = self.numbers[path]
        for path in reversed(missing):
            number = self._add(number, path)
        if missing and entry and self._type_of(entry - 1) == DIRECTORY:
            missing = missing[1:]
        self.unsure.update(missing)
        return number

    def _add(self, above: int, path: bytes) -> int:
        self._cost_left -= len(path) + FOLDER_COST
        if self._cost_left < 0:
            raise InvalidDataError("the names of the layer's files make too many folders")
        number = self.numbers[path] = len(self.paths)
        self.paths.append(path)
        self.parents.append(above)
        if not path.rpartition(b"/")[2].startswith(WHITEOUT):
            self._lists[above].append(FOLDER + number)
        self._lists.append(array("i"))
        return number

    # A name can be a folder for some entries and a file for others. Few layers have any such name.

    def unknown_above(self, number: int) -> list[int]:
        """The folders above one whose own tables must be made before its, in that order."""
        found = []
        while not self._known[number]:
            number = self.parents[number]
            found.append(number)
        return found[::-1]

    def set_own_entries(self, number: int, entries: Sequence[int]) -> None:
        """Takes the entries of a folder itself, in order, without those that could not be unpacked."""
        self._known[number] = 1
        kinds = [self._type_of(entry) == DIRECTORY for entry in entries]
        if not all(kinds):
            firsts: list[int] = []
            for at, kind in enumerate(kinds):
                firsts.append(firsts[-1] if at and kinds[at - 1] == kind else at)
            self._switches[number] = Switches(list(entries), kinds, firsts)

    def switches_above(self, number: int) -> list[Switches]:
        """Those of a folder and of the folders above it, topmost first."""
        found = []
        while self._switches and number:
            if number in self._switches:
                found.append(self._switches[number])
            number = self.parents[number]
        return found[::-1]


def present_since(switches: Iterable[Switches], until: int) -> int | None:
    """The entry after which the entries in a folder are still there when entry `until` comes.

    `switches` are those of the folder and above, topmost first. None when there is no such folder then.
    """
    since = ALWAYS
    for one in switches:
        at = bisect_left(one.entries, until) - 1
        if at < 0 or one.entries[at] <= since:
            continue  # nothing, or an entry that went together with a folder above it
        if not one.kinds[at]:
            return None
        first = one.firsts[at]
        if first and one.entries[first - 1] > since:
            since = one.entries[first]
    return since


def placed(name: bytes) -> bytes | None:
    """The path of an entry, b"" for the root; None when it has no place."""
    if len(name) > MAX_PATH or b"\0" in name:
        return None
    path = clean_path(name)
    base = path.rpartition(b"/")[2]
    if base.startswith(WHITEOUT) and base != OPAQUE_WHITEOUT:
        hidden = base.removeprefix(WHITEOUT)
        if base.startswith(_META) or hidden in (b"", b".", b".."):
            return None
    return path


def base_of(name: bytes) -> bytes:
    """The last part of the path of an entry that has a place."""
    base = name.rpartition(b"/")[2]
    return base if base and base[0] != _DOT else clean_path(name).rpartition(b"/")[2]
