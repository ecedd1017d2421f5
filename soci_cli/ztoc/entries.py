"""What a zTOC says of one entry, decoded when it is asked for."""

from __future__ import annotations

from array import array

from soci_cli.errors import InvalidDataError
from soci_cli.text import brief
from soci_cli.ztoc.attributes import (
    IMPLIED_ATTRIBUTES,
    IMPLIED_DIRECTORY,
    MAX_MAJOR,
    MAX_MINOR,
    STEERING,
    TYPES,
    Attributes,
    Node,
    nanoseconds,
    xattrs_of,
)
from soci_cli.ztoc.folders import SYMLINK
from soci_cli.ztoc.sparse import SparseMap
from soci_cli.ztoc.toc import TableOfContents

_REGULAR = b"reg"
_LINK_MODE = 0o777  # of symlinks, whatever the archive says: Linux knows no other
_MAX_TYPE = 16


class Entries:
    """The entries of a zTOC by number. `FOLDER + n` stands for a folder that no entry names.

    Everything raises InvalidDataError where the zTOC is not valid.
    """

    def __init__(self, files: TableOfContents) -> None:
        self._files = files

    def __len__(self) -> int:
        """The number of entries in the zTOC."""
        return len(self._files)

    def contents(self) -> tuple[array[int], array[int]]:
        """Where contents of regular files begin in the archive, in order, and of which entries they are."""
        offsets, entries = array("q"), array("I")
        for entry, row in enumerate(self._files.rows()):
            if row[0] == _REGULAR and row[2]:
                offsets.append(row[1])
                entries.append(entry)
        return offsets, entries

    def type_of(self, entry: int) -> bytes:
        """The type that the zTOC gives, without decoding the rest."""
        return self._files.type_of(entry)[:_MAX_TYPE]

    def name(self, entry: int) -> bytes:
        """The name of an entry as the archive has it."""
        return b"" if entry < 0 else self._files.name_of(entry)

    def attributes(self, entry: int) -> Attributes:
        """The attributes that are needed most often, for less work than `node`."""
        if entry < 0:
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
            TYPES.get(kind) or kind.decode("ascii", "replace"),
            mode & 0o7777,
            uid,
            gid,
            size,
            nanoseconds(files.string(mod_time)),
            major and min(max(major, 0), MAX_MAJOR),
            minor and min(max(minor, 0), MAX_MINOR),
        )

    def xattrs(self, entry: int) -> tuple[tuple[bytes, bytes], ...]:
        """The extended attributes of an entry, without those that would steer overlayfs."""
        if entry < 0:
            return ()
        records = self._files.xattrs(self._files.fields(entry).xattrs)
        found = xattrs_of(records, self._files.type_of(entry)) if records else ()
        return tuple(one for one in found if not one[0].startswith(STEERING))

    def sparse_map(self, entry: int) -> SparseMap | None:
        """See `TableOfContents.sparse_map`, for a regular file."""
        return self._files.sparse_map(self._files.fields(entry))

    def stored(self, entry: int) -> tuple[int, int]:
        """See `TableOfContents.stored`."""
        return self._files.stored(self._files.fields(entry))

    def linkname(self, entry: int) -> bytes:
        """The target of a symlink."""
        return self.node(entry).linkname

    def node(self, entry: int) -> Node:
        """All about an entry, which is no hard link."""
        if entry < 0:
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
            TYPES.get(kind) or kind.decode("ascii", "replace"),
            _LINK_MODE if kind == SYMLINK else found.mode & 0o7777,
            found.uid,
            found.gid,
            files.string(found.uname),
            files.string(found.gname),
            len(linkname) if kind == SYMLINK else size,
            nanoseconds(files.string(found.mod_time)),
            linkname,
            found.devmajor,
            found.devminor,
            xattrs_of(files.xattrs(found.xattrs), kind) if found.xattrs else (),
            offset,
        )
