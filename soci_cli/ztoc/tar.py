"""Reading the headers of a tar archive out of a stream of buffers, as Go's archive/tar reads them.

The reference implementation's zTOC says what Go's reader reports, so its rules decide what a header
means: formats V7, ustar, STAR, GNU and PAX; GNU long names; base-256 numbers; PAX records that override
fields (docs/formats.md, "What a file's metadata is"). Two rules go further: a PAX global header is
applied to the entries that follow, and an archive with a sparse file is refused, because its data can't
be found by an offset and a size.

`TarScanner` never copies file data: `feed` gets each piece of the uncompressed stream once and looks
only at the headers in it. What runs here runs once a file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeVar
from zlib import adler32 as _adler32

from soci_cli.errors import InvalidDataError, UnsupportedLayerError
from soci_cli.ztoc.toc_writer import TocWriter

BLOCK = 512
MAX_SPECIAL_SIZE = 1 << 20
"""Bytes that a PAX header or a GNU long name may have, as in Go's archive/tar."""

_ZERO_BLOCK = bytes(BLOCK)
_INT64_MAX = (1 << 63) - 1
_MEMO_LIMIT = 16384

# name, mode + uid + gid, size, mtime, checksum, type flag, link name, magic + version,
# user name + group name + device numbers, prefix and rest (POSIX.1-2017, pax, "ustar Interchange").
_HEADER = struct.Struct("100s24s12s12s8s1s100s8s80s167s")

_TYPES = {
    ord("0"): b"reg",
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
_SPARSE_OFFSET = b"GNU.sparse.offset"
_SPARSE_BYTES = b"GNU.sparse.numbytes"
_SPARSE_MAP = b"GNU.sparse.map"
_XATTR_PREFIXES = (b"SCHILY.xattr.", b"LIBARCHIVE.xattr.")
# What a global header can say of the entries that follow, beside their xattrs.
_INHERITED = _OVERRIDES | {b"GNU.sparse.major", b"GNU.sparse.minor", _SPARSE_MAP}
_MAX_GLOBAL_SIZE = 1 << 16  # each entry is charged with all of it

_PAX_HEADER = ord("x")
_PAX_MEMO_LIMIT = 256
_REGULAR = ord("0")
_DIRECTORY = ord("5")

_Records = dict[bytes, bytes]
_K = TypeVar("_K")
_V = TypeVar("_V")


class TarScanner:
    """Scans one archive. Feed it the stream, then call `finish`; the files go to `toc`.

    `archive_size` is then the position where Go's reader stops: after the second zero block, or at the
    end of the input. Raises InvalidDataError for what is not a tar archive and UnsupportedLayerError for
    sparse files.
    """

    def __init__(self, toc: TocWriter) -> None:
        self._add = toc.add
        self._position = 0  # of the next byte in the stream
        self._skip = 0  # bytes of data still to pass over
        self._pad = 0  # bytes of padding after them
        self._partial = bytearray()  # a header or payload that a buffer cut in two
        self._payload = 0  # size of the special payload being gathered; 0 for a header
        self._handler: Callable[[bytes], None] | None = None
        self._zero_blocks = 0
        self._ended = False
        self._pax: _Records | None = None
        self._global: _Records = {}
        self._global_size = 0
        self._long_name = b""
        self._long_link = b""
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._names: dict[bytes, tuple[bytes, bytes, int, int]] = {}
        self._times: dict[bytes, bytes] = {}
        self._days: dict[int, bytes] = {}
        self._checksums: dict[bytes, int] = {}
        self._pax_sizes: dict[bytes, int] = {}
        self.archive_size = 0

    def feed(self, buffer: bytearray, start: int, end: int) -> None:
        """Takes the next bytes of the stream: buffer[start:end]."""
        if self._ended:
            return
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
            if handler:
                self._handler = None
                handler(block)
            else:
                self._header(block)
                if self._ended:
                    return
        self._position = base + end

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
            raise self._bad("a zero block is followed by something else")
        if block[156] == _PAX_HEADER:
            # Many writers give all their PAX headers the same name and owner.
            known = self._pax_sizes.get(block)
            if known is not None:
                self._special(_PAX_HEADER, known)
                return
        name, owner, size_field, mtime, checksum, flag_byte, link, magic, names, prefix = (
            _HEADER.unpack(block)
        )
        # Adler-32's low half, begun at 0, is the plain sum of up to 257 bytes, and it runs in C.
        total = (_adler32(block[:256], 0) & 0xFFFF) + (_adler32(block[256:], 0) & 0xFFFF)
        if self._checksums.get(checksum) != total:
            self._check_sum(block, checksum, total)

        name = name.partition(b"\0")[0]
        link = link.partition(b"\0")[0]
        mode, uid, gid = self._owners.get(owner) or self._owner(owner)
        size = self._size(size_field)
        mod_time = self._times.get(mtime)
        if mod_time is None:
            mod_time = self._header_time(mtime)
        uname, gname, major, minor = b"", b"", 0, 0
        if magic[:6] == b"ustar\0" or magic == b"ustar  \0":
            uname, gname, major, minor = self._names.get(names) or self._name_fields(names)
            if prefix[0] or prefix[163]:
                text = self._prefix(magic, prefix)
                if text:
                    name = text + b"/" + name

        flag = flag_byte[0]
        if size < 0 and flag not in _HEADER_ONLY:
            raise self._bad("a size is negative")
        if flag in _META:
            if flag == _PAX_HEADER and len(self._pax_sizes) < _PAX_MEMO_LIMIT:
                self._pax_sizes[block] = size
            self._special(flag, size)
            return

        records: _Records | None = self._pax
        xattrs: list[tuple[bytes, bytes]] = []
        if records is not None or self._global:
            own = records or {}
            applied = self._applied_records(own) if self._global else own
            xattrs = sorted(applied.items()) if len(applied) > 1 else list(applied.items())
            records = {**self._global, **own} if self._global else own
            get = records.get
            if value := get(b"mtime"):
                mod_time = self._pax_time(value)
            if len(records) > 1 or b"mtime" not in records:
                if _is_sparse(records):
                    raise self._sparse(name)
                name = get(b"path") or name
                link = get(b"linkpath") or link
                uname = get(b"uname") or uname
                gname = get(b"gname") or gname
                if value := get(b"uid"):
                    uid = self._decimal(value) & 0xFFFFFFFF
                if value := get(b"gid"):
                    gid = self._decimal(value) & 0xFFFFFFFF
                if value := get(b"size"):
                    size = self._decimal(value)
                for key in (b"atime", b"ctime"):
                    if value := get(key):
                        self._pax_time(value)
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
            if flag == ord("S"):
                raise self._sparse(name)
            raise InvalidDataError(
                f"tar entry {_show(name)} has the type {chr(flag)!r}, which cannot be indexed"
            )
        if flag == _REGULAR:
            if size < 0:
                raise self._bad("a size is negative")
            self._skip = size
            self._pad = -size & 511
        self._add(
            name,
            type_,
            link,
            uname,
            gname,
            mod_time,
            (self._position, size, mode, uid, gid, major, minor),
            xattrs,
        )

    # Many files share an owner, names and times, and each such field is parsed once.

    def _owner(self, fields: bytes) -> tuple[int, int, int]:
        """Mode, uid and gid; the latter two as the zTOC holds them, in 32 bits."""
        number = self._number
        value = (
            number(fields[:8]),
            number(fields[8:16]) & 0xFFFFFFFF,
            number(fields[16:]) & 0xFFFFFFFF,
        )
        return _remember(self._owners, fields, value)

    def _name_fields(self, fields: bytes) -> tuple[bytes, bytes, int, int]:
        """User name, group name, major and minor device number."""
        value = (
            _text(fields[:32]),
            _text(fields[32:64]),
            self._number(fields[64:72]),
            self._number(fields[72:]),
        )
        return _remember(self._names, fields, value)

    def _header_time(self, field: bytes) -> bytes:
        return _remember(self._times, field, self._format_time(self._number(field)))

    def _size(self, field: bytes) -> int:
        digits = field[:11]
        # isdigit leaves out the signs, blanks and underscores that int() takes.
        if field[11] in b"\0 " and digits.isdigit() and b"8" not in digits and b"9" not in digits:
            return int(digits, 8)
        return self._number(field)

    def _check_sum(self, block: bytes, field: bytes, total: int) -> None:
        # The field itself counts as blanks. `expected` is then what the whole block must sum to.
        others = sum(field) - 8 * ord(" ")
        expected = self._octal(field) + others
        _remember(self._checksums, field, expected)
        if total == expected:
            return
        # Some old writers summed the bytes as signed.
        high = sum(1 for byte in block[:148] + block[156:] if byte >= 0x80)
        if total - 256 * high != expected:
            raise self._bad("a header's checksum is wrong")

    def _applied_records(self, own: _Records) -> _Records:
        # A global header's overrides count for the entry as if it had them; its comments do not.
        inherited = {
            key: value
            for key, value in self._global.items()
            if key in _OVERRIDES or key.startswith(_XATTR_PREFIXES)
        }
        return {**inherited, **own}

    def _prefix(self, magic: bytes, field: bytes) -> bytes:
        """What stands before the name, from the last 167 bytes of a ustar, STAR or GNU header."""
        if magic[:6] == b"ustar\0":
            if field[163:167] == b"tar\0":
                # STAR keeps times after a shorter prefix.
                self._number(field[131:143])
                self._number(field[143:155])
                return _text(field[:131])
            return _text(field[:155])
        # GNU has times there. Old Go wrote a prefix instead: where the times make no sense, take it.
        try:
            if field[0]:
                self._number(field[:12])
            if field[12]:
                self._number(field[12:24])
        except InvalidDataError:
            prefix = _text(field[:155])
            return prefix if prefix.isascii() else b""
        return b""

    def _special(self, flag: int, size: int) -> None:
        if size > MAX_SPECIAL_SIZE:
            raise self._bad(f"an extended header has {size} bytes")
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
        self._pax = self._parse_pax(payload)

    def _global_header(self, payload: bytes) -> None:
        self._after_payload()
        for key, value in self._parse_pax(payload).items():
            old = self._global.pop(key, None)
            if old is not None:
                self._global_size -= len(key) + len(old)
            # An empty value takes the record back.
            if value and (key in _INHERITED or key.startswith(_XATTR_PREFIXES)):
                self._global[key] = value
                self._global_size += len(key) + len(value)
        if self._global_size > _MAX_GLOBAL_SIZE:
            raise self._bad("its global headers hold too much")

    def _gnu_long_name(self, payload: bytes) -> None:
        self._after_payload()
        self._long_name = _text(payload)

    def _gnu_long_link(self, payload: bytes) -> None:
        self._after_payload()
        self._long_link = _text(payload)

    def _parse_pax(self, payload: bytes) -> _Records:
        records: _Records = {}
        sparse: list[bytes] = []
        position = 0
        while position < len(payload):
            space = payload.find(b" ", position)
            if space < 0:
                raise self._bad_pax()
            length = self._decimal(payload[position:space])
            end = position + length
            if length < 5 or end > len(payload) or end <= space + 1 or payload[end - 1] != 0x0A:
                raise self._bad_pax()
            key, equals, value = payload[space + 1 : end - 1].partition(b"=")
            if not equals or not key:
                raise self._bad_pax()
            if b"\0" in (value if key in (b"path", b"linkpath", b"uname", b"gname") else key):
                raise self._bad_pax()
            if key in (_SPARSE_OFFSET, _SPARSE_BYTES):
                sparse.append(value)
            else:
                records[key] = value
            position = end
        if sparse:
            records[_SPARSE_MAP] = b",".join(sparse)
        return records

    def _number(self, field: bytes) -> int:
        """A numeric field: octal text, or base-256 where the first bit is set."""
        return self._base256(field) if field[0] & 0x80 else self._octal(field)

    def _octal(self, field: bytes) -> int:
        digits = _text(field.strip(b" \0"))
        if not digits:
            return 0
        try:
            # isdigit leaves out the signs, blanks and underscores that int() takes.
            return int(digits if digits.isdigit() else b"", 8)
        except ValueError:
            raise self._bad("a number is not octal") from None

    def _base256(self, field: bytes) -> int:
        # Two's complement, big endian, the top bit being only the mark (GNU tar manual, "Extensions").
        width = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << width) - 1)
        if value >> (width - 1):
            value -= 1 << width
        if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
            raise self._bad("a number is too large")
        return value

    def _decimal(self, text: bytes) -> int:
        if text.isdigit() and len(text) < 19:
            return int(text)
        digits = text[1:] if text[:1] in (b"+", b"-") else text
        if not digits.isdigit() or len(digits) > 4096:
            raise self._bad("a decimal number in an extended header is malformed")
        value = int(text)
        if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
            raise self._bad("a decimal number in an extended header is too large")
        return value

    def _pax_time(self, text: bytes) -> bytes:
        whole, _, fraction = text.partition(b".")
        seconds = self._decimal(whole)
        if not fraction:
            return self._format_time(seconds)
        if not fraction.isdigit():
            raise self._bad("a time in an extended header is malformed")
        nanoseconds = int(fraction[:9].ljust(9, b"0"))
        if whole[:1] == b"-" and nanoseconds:
            seconds, nanoseconds = seconds - 1, 1_000_000_000 - nanoseconds
        formatted = self._format_time(seconds)
        if not nanoseconds or not formatted:
            return formatted
        return formatted[:-1] + b"." + (b"%09d" % nanoseconds).rstrip(b"0") + b"Z"

    def _format_time(self, seconds: int) -> bytes:
        """RFC 3339 in UTC; empty for a year outside 0 to 9999, which RFC 3339 cannot write."""
        day, rest = divmod(seconds, 86400)
        date = self._days.get(day)
        if date is None:
            date = _remember(self._days, day, _format_day(day))
        return date and date + b"T%02d:%02d:%02dZ" % (rest // 3600, rest // 60 % 60, rest % 60)

    def _bad(self, reason: str) -> InvalidDataError:
        return InvalidDataError(f"not a valid tar archive near byte {self._position}: {reason}")

    def _bad_pax(self) -> InvalidDataError:
        return self._bad("a record of an extended header is malformed")

    def _sparse(self, name: bytes) -> UnsupportedLayerError:
        return UnsupportedLayerError(
            f"tar entry {_show(name)} is a sparse file, which cannot be read by its offset and size"
        )


def _remember(memo: dict[_K, _V], key: _K, value: _V) -> _V:
    if len(memo) >= _MEMO_LIMIT:
        memo.clear()
    memo[key] = value
    return value


def _text(field: bytes) -> bytes:
    """A field up to its first NUL."""
    end = field.find(0)
    return field if end < 0 else field[:end]


def _show(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "replace"))


def _is_sparse(records: _Records) -> bool:
    # The conditions under which Go's reader takes an entry for a PAX sparse file.
    version = records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b"")
    if version in ((b"0", b"0"), (b"0", b"1"), (b"1", b"0")):
        return True
    return version == (b"", b"") and bool(records.get(_SPARSE_MAP))


def _format_day(day: int) -> bytes:
    """Days since 1970-01-01 as YYYY-MM-DD in the proleptic Gregorian calendar, years 0 to 9999."""
    if not -719528 <= day <= 2932896:
        return b""
    # Years that begin in March put the leap day last; day 0 is then 0000-03-01.
    era, of_era = divmod(day + 719468, 146097)
    year_of_era = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + 400 * era + (month <= 2)
    return b"%04d-%02d-%02d" % (year, month, of_year - (153 * shifted + 2) // 5 + 1)
