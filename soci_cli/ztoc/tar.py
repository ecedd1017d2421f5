"""Reading the headers of a tar archive out of a stream of buffers, as Go's archive/tar reads them.

The reference implementation's zTOC says what Go's reader reports, so its rules decide what a header
means, with the GNU long names and PAX records before it (docs/formats.md, "What a file's metadata is").
Two rules go further: a PAX global header is
applied to the entries that follow, and an archive with a sparse file is refused, because its data can't
be found by an offset and a size.

`TarScanner` never copies file data: `feed` gets each piece of the uncompressed stream once and looks
only at the headers in it. What runs here runs once a file.
"""

from __future__ import annotations

from collections.abc import Callable

from soci_cli.errors import InvalidDataError, UnsupportedLayerError
from soci_cli.ztoc.tar_fields import (
    SPARSE_MAP,
    BadHeaderError,
    Header,
    HeaderReader,
    Records,
    text_of,
)

BLOCK = 512
MAX_SPECIAL_SIZE = 1 << 20
"""Bytes that a PAX header or a GNU long name may have, as in Go's archive/tar."""

_ZERO_BLOCK = bytes(BLOCK)

REGULAR = b"reg"
_TYPES = {
    ord("0"): REGULAR,
    ord("1"): b"hardlink",
    ord("2"): b"symlink",
    ord("3"): b"char",
    ord("4"): b"block",
    ord("5"): b"dir",
    ord("6"): b"fifo",
}
# Entries that have no data in the archive whatever their size says.
_HEADER_ONLY = frozenset(b"123456")
_META = frozenset(b"xgLK")

# PAX records that override what the header says (POSIX.1-2017, pax, "Extended Header Keywords").
_OVERRIDES = frozenset(b"path linkpath uname gname uid gid size mtime atime ctime".split())
_XATTR_PREFIXES = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")
# What a global header can say of the entries that follow, beside their xattrs.
_INHERITED = _OVERRIDES | {b"GNU.sparse.major", b"GNU.sparse.minor", SPARSE_MAP}
_MAX_GLOBAL_SIZE = 1 << 16  # each entry is charged with all of it

_PAX_HEADER = ord("x")
_PAX_MEMO_LIMIT = 256
_REGULAR = ord("0")
_DIRECTORY = ord("5")

_Texts = tuple[bytes, bytes, bytes, bytes]


class TarScanner:
    """Scans one archive. Feed it the stream, then call `finish`; `add` is called as `TocWriter.add`.

    `archive_size` is then the position where Go's reader stops: after the second zero block, or at the
    end of the input. Raises InvalidDataError for what is not a tar archive and UnsupportedLayerError for
    sparse files.
    """

    def __init__(self, add: Callable[..., None]) -> None:
        self._add = add
        self._position = 0  # of the next byte in the stream
        self._skip = 0  # bytes of data still to pass over
        self._pad = 0  # bytes of padding after them
        self._partial = bytearray()  # a header or payload that a buffer cut in two
        self._payload = 0  # size of the special payload being gathered; 0 for a header
        self._handler: Callable[[bytes], None] | None = None
        self._zero_blocks = 0
        self._ended = False
        self._pax: Records | None = None
        self._global: Records = {}
        self._global_size = 0
        self._long_name = b""
        self._long_link = b""
        self._fields = HeaderReader()
        self._pax_sizes: dict[bytes, int] = {}
        self.archive_size = 0

    def feed(self, buffer: bytearray, start: int, end: int) -> int:
        """Takes the next bytes of the stream: buffer[start:end]. Where in these the archive ends."""
        if self._ended:
            return start
        position = start
        base = self._position - start
        while True:
            # Pass over file data and padding.
            if self._skip:
                skip = self._skip + self._pad
                if position + skip > end:
                    self._pass_over(end - position)
                    break
                position += skip
                self._skip = self._pad = 0
            elif self._pad:
                if position + self._pad > end:
                    self._pass_over(end - position)
                    break
                position += self._pad
                self._pad = 0
            # Gather a header block, or the payload of a special entry.
            handler = self._handler
            stop = position + (self._payload if handler else BLOCK)
            if self._partial:
                stop -= len(self._partial)
            if stop > end:
                self._partial += buffer[position:end]
                break
            block = bytes(buffer[position:stop])
            if self._partial:
                block = bytes(self._partial) + block
                self._partial.clear()
            position = stop
            self._position = base + position
            try:
                if handler:
                    self._handler = None
                    handler(block)
                else:
                    self._header(block)
            except BadHeaderError as error:
                where = f"near byte {self._position}"
                raise InvalidDataError(f"not a valid tar archive {where}: {error}") from None
            if self._ended:
                return position
        self._position = base + end
        return end

    def _pass_over(self, count: int) -> None:
        data = min(count, self._skip)
        self._skip -= data
        self._pad -= count - data

    def finish(self) -> None:
        """The stream ended. Raises InvalidDataError where the archive was cut off."""
        if self._ended:
            return
        # An end in the padding, or between entries, or after one zero block, ends the archive.
        if self._skip or self._partial or self._handler:
            raise InvalidDataError(
                f"the tar archive is cut off after {self._position} bytes, inside an entry"
            )
        self.archive_size = self._position

    def _header(self, block: bytes) -> None:
        if not block[0] and block == _ZERO_BLOCK:
            self._zero_blocks += 1
            if self._zero_blocks == 2:
                self._ended = True
                self.archive_size = self._position
            return
        if self._zero_blocks:
            raise BadHeaderError("a zero block is followed by something else")
        if block[156] == _PAX_HEADER:
            # Many writers give all their PAX headers the same name and owner.
            known = self._pax_sizes.get(block)
            if known is not None:
                self._special(_PAX_HEADER, known)
                return
        header = self._fields.read(block)
        flag, size = header[0], header[1]
        if size < 0 and flag not in _HEADER_ONLY:
            raise BadHeaderError("a size is negative")
        if flag in _META:
            if flag == _PAX_HEADER and len(self._pax_sizes) < _PAX_MEMO_LIMIT:
                self._pax_sizes[block] = size
            self._special(flag, size)
        else:
            self._file(header)

    def _file(self, header: Header) -> None:
        """Adds a file, as its header says and the special entries before that."""
        flag, size, name, link, uname, gname, mod_time, mode, uid, gid, major, minor = header
        xattrs: list[tuple[bytes, bytes]] = []
        if self._pax is not None or self._global:
            own = self._pax or {}
            applied = self._applied_records(own) if self._global else own
            xattrs = sorted(applied.items()) if len(applied) > 1 else list(applied.items())
            records = {**self._global, **own} if self._global else own
            if value := records.get(b"mtime"):
                mod_time = self._fields.pax_time(value)
            if len(records) > 1 or b"mtime" not in records:
                if _is_sparse(records):
                    raise _sparse(name)
                texts, numbers = self._overridden(
                    records, (name, link, uname, gname), (uid, gid, size)
                )
                name, link, uname, gname = texts
                uid, gid, size = numbers
            self._pax = None
        if self._long_name:
            name = self._long_name
        if self._long_link:
            link = self._long_link
        self._long_name = self._long_link = b""
        if not flag:
            flag = _DIRECTORY if name.endswith(b"/") else _REGULAR
        type_ = _TYPES.get(flag)
        if type_ is None:
            raise _unknown_type(flag, name)
        if flag == _REGULAR:
            if size < 0:
                raise BadHeaderError("a size is negative")
            self._skip = size
            self._pad = -size & 511
        place = self._position, size, mode, uid, gid, major, minor
        self._add(name, type_, link, uname, gname, mod_time, place, xattrs)

    def _overridden(
        self, records: Records, texts: _Texts, numbers: tuple[int, int, int]
    ) -> tuple[_Texts, tuple[int, int, int]]:
        """Name, link and names of owners, and uid, gid and size, with PAX records in their place."""
        get, decimal = records.get, self._fields.decimal
        name, link, uname, gname = texts
        uid, gid, size = numbers
        texts = (
            get(b"path") or name,
            get(b"linkpath") or link,
            get(b"uname") or uname,
            get(b"gname") or gname,
        )
        if value := get(b"uid"):
            uid = decimal(value) & 0xFFFFFFFF
        if value := get(b"gid"):
            gid = decimal(value) & 0xFFFFFFFF
        if value := get(b"size"):
            size = decimal(value)
        for key in (b"atime", b"ctime"):
            if value := get(key):
                self._fields.pax_time(value)
        return texts, (uid, gid, size)

    def _applied_records(self, own: Records) -> Records:
        # A global header's overrides count for the entry as if it had them; its comments do not.
        inherited = {
            key: value
            for key, value in self._global.items()
            if key in _OVERRIDES or key.startswith(_XATTR_PREFIXES)
        }
        return {**inherited, **own}

    def _special(self, flag: int, size: int) -> None:
        if size > MAX_SPECIAL_SIZE:
            raise BadHeaderError(f"an extended header has {size} bytes")
        self._payload = size
        if flag == _PAX_HEADER:
            handler = self._pax_header
        else:
            handler = {
                ord("g"): self._global_header,
                ord("L"): self._gnu_long_name,
                ord("K"): self._gnu_long_link,
            }[flag]
        if size:
            self._handler = handler
        else:
            handler(b"")

    def _after_payload(self) -> None:
        self._pad = -self._payload & 511

    def _pax_header(self, payload: bytes) -> None:
        self._after_payload()
        self._pax = self._fields.records(payload)

    def _global_header(self, payload: bytes) -> None:
        self._after_payload()
        for key, value in self._fields.records(payload).items():
            old = self._global.pop(key, None)
            if old is not None:
                self._global_size -= len(key) + len(old)
            # An empty value takes the record back.
            if value and (key in _INHERITED or key.startswith(_XATTR_PREFIXES)):
                self._global[key] = value
                self._global_size += len(key) + len(value)
        if self._global_size > _MAX_GLOBAL_SIZE:
            raise BadHeaderError("its global headers hold too much")

    def _gnu_long_name(self, payload: bytes) -> None:
        self._after_payload()
        self._long_name = text_of(payload)

    def _gnu_long_link(self, payload: bytes) -> None:
        self._after_payload()
        self._long_link = text_of(payload)


def _unknown_type(flag: int, name: bytes) -> InvalidDataError:
    if flag == ord("S"):
        return _sparse(name)
    return InvalidDataError(
        f"tar entry {_show(name)} has the type {chr(flag)!r}, which cannot be indexed"
    )


def _sparse(name: bytes) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"tar entry {_show(name)} is a sparse file, which cannot be read by its offset and size"
    )


def _show(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "replace"))


def _is_sparse(records: Records) -> bool:
    # The conditions under which Go's reader takes an entry for a PAX sparse file.
    version = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if version in ((b"0", b"0"), (b"0", b"1"), (b"1", b"0")):
        return True
    return version == (b"", b"") and bool(records.get(SPARSE_MAP))
