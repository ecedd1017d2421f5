"""The fields of tar headers and of PAX records, read as Go's archive/tar reads them.

Formats V7, ustar, STAR, GNU and PAX; base-256 numbers (docs/formats.md, "What a file's metadata is"). What
runs here runs once a file, so a field that many files share is parsed once.
"""

from __future__ import annotations

import struct
from typing import TypeVar
from zlib import adler32 as _adler32

from soci_cli.ztoc import sparse as sparse_files

_INT64_MAX = (1 << 63) - 1
_MEMO_LIMIT = 16384

# name, mode + uid + gid, size, mtime, checksum, type flag, link name, magic + version,
# user name + group name + device numbers, prefix and rest (POSIX.1-2017, pax, "ustar Interchange").
_HEADER = struct.Struct("100s24s12s12s8s1s100s8s80s167s")
_SPARSE_PAIR = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_BAD_RECORD = "a record of an extended header is malformed"

Records = dict[bytes, bytes]
"""The records of a PAX header, by keyword."""
Header = tuple[int, int, bytes, bytes, bytes, bytes, bytes, int, int, int, int, int]
"""Type flag, size, name, link, user and group name, modification time, mode, uid, gid, device numbers.

Times are those of the zTOC, RFC 3339, empty where they cannot be; uid and gid have 32 bits, as there.
"""
_K = TypeVar("_K")
_V = TypeVar("_V")


class BadHeaderError(Exception):
    """A header that breaks its format."""


class HeaderReader:
    """Reads header blocks and PAX records. Everything raises BadHeaderError."""

    def __init__(self) -> None:
        self._owners: dict[bytes, tuple[int, int, int]] = {}
        self._names: dict[bytes, tuple[bytes, bytes, int, int]] = {}
        self._times: dict[bytes, bytes] = {}
        self._days: dict[int, bytes] = {}
        self._checksums: dict[bytes, int] = {}

    def read(self, block: bytes) -> Header:
        """The fields of a header block."""
        name, owner, size_field, mtime, checksum, flag, link, magic, names, prefix = _HEADER.unpack(
            block
        )
        # Adler-32's low half, begun at 0, is the plain sum of up to 257 bytes, and it runs in C.
        total = (_adler32(block[:256], 0) & 0xFFFF) + (_adler32(block[256:], 0) & 0xFFFF)
        if self._checksums.get(checksum) != total:
            self._check_sum(block, checksum, total)
        name = name.partition(b"\0")[0]
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
        link = link.partition(b"\0")[0]
        return flag[0], size, name, link, uname, gname, mod_time, mode, uid, gid, major, minor

    def _owner(self, fields: bytes) -> tuple[int, int, int]:
        """Mode, uid and gid; the latter two as the zTOC holds them, in 32 bits."""
        number = self.number
        value = (
            number(fields[:8]),
            number(fields[8:16]) & 0xFFFFFFFF,
            number(fields[16:]) & 0xFFFFFFFF,
        )
        return _remember(self._owners, fields, value)

    def _name_fields(self, fields: bytes) -> tuple[bytes, bytes, int, int]:
        """User name, group name, major and minor device number."""
        value = (
            text_of(fields[:32]),
            text_of(fields[32:64]),
            self.number(fields[64:72]),
            self.number(fields[72:]),
        )
        return _remember(self._names, fields, value)

    def _header_time(self, field: bytes) -> bytes:
        return _remember(self._times, field, self._format_time(self.number(field)))

    def _size(self, field: bytes) -> int:
        digits = field[:11]
        # isdigit leaves out the signs, blanks and underscores that int() takes.
        if field[11] in b"\0 " and digits.isdigit() and b"8" not in digits and b"9" not in digits:
            return int(digits, 8)
        return self.number(field)

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
            raise BadHeaderError("a header's checksum is wrong")

    def _prefix(self, magic: bytes, field: bytes) -> bytes:
        """What stands before the name, from the last 167 bytes of a ustar, STAR or GNU header."""
        if magic[:6] == b"ustar\0":
            if field[163:167] == b"tar\0":
                # STAR keeps times after a shorter prefix.
                self.number(field[131:143])
                self.number(field[143:155])
                return text_of(field[:131])
            return text_of(field[:155])
        # GNU has times there. Old Go wrote a prefix instead: where the times make no sense, take it.
        try:
            if field[0]:
                self.number(field[:12])
            if field[12]:
                self.number(field[12:24])
        except BadHeaderError:
            prefix = text_of(field[:155])
            return prefix if prefix.isascii() else b""
        return b""

    def records(self, payload: bytes) -> Records:
        """The records of a PAX header."""
        found: Records = {}
        sparse: list[bytes] = []
        position = 0
        while position < len(payload):
            space = payload.find(b" ", position)
            if space < 0:
                raise BadHeaderError(_BAD_RECORD)
            length = self.decimal(payload[position:space])
            end = position + length
            if length < 5 or end > len(payload) or end <= space + 1 or payload[end - 1] != 0x0A:
                raise BadHeaderError(_BAD_RECORD)
            key, equals, value = payload[space + 1 : end - 1].partition(b"=")
            if not equals or not key:
                raise BadHeaderError(_BAD_RECORD)
            if b"\0" in (value if key in (b"path", b"linkpath", b"uname", b"gname") else key):
                raise BadHeaderError(_BAD_RECORD)
            if key in _SPARSE_PAIR:  # of PAX 0.0, again and again
                if key != _SPARSE_PAIR[len(sparse) % 2] or b"," in value:
                    raise BadHeaderError(_BAD_RECORD)
                sparse.append(value)
            else:
                found[key] = value
            position = end
        if sparse:
            found[sparse_files.MAP] = b",".join(sparse)
        return found

    def number(self, field: bytes) -> int:
        """A numeric field: octal text, or base-256 where the first bit is set."""
        return self._base256(field) if field[0] & 0x80 else self._octal(field)

    def _octal(self, field: bytes) -> int:
        digits = text_of(field.strip(b" \0"))
        if not digits:
            return 0
        try:
            # isdigit leaves out the signs, blanks and underscores that int() takes.
            return int(digits if digits.isdigit() else b"", 8)
        except ValueError:
            raise BadHeaderError("a number is not octal") from None

    def _base256(self, field: bytes) -> int:
        # Two's complement, big endian, the top bit being only the mark (GNU tar manual, "Extensions").
        width = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << width) - 1)
        if value >> (width - 1):
            value -= 1 << width
        if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
            raise BadHeaderError("a number is too large")
        return value

    def decimal(self, text: bytes) -> int:
        """A number in a PAX record."""
        if text.isdigit() and len(text) < 19:
            return int(text)
        digits = text[1:] if text[:1] in (b"+", b"-") else text
        if not digits.isdigit() or len(digits) > 4096:
            raise BadHeaderError("a decimal number in an extended header is malformed")
        value = int(text)
        if not -_INT64_MAX - 1 <= value <= _INT64_MAX:
            raise BadHeaderError("a decimal number in an extended header is too large")
        return value

    def pax_time(self, text: bytes) -> bytes:
        """A time in a PAX record, as a zTOC has it: RFC 3339, empty where it cannot be."""
        whole, _, fraction = text.partition(b".")
        seconds = self.decimal(whole)
        if not fraction:
            return self._format_time(seconds)
        if not fraction.isdigit():
            raise BadHeaderError("a time in an extended header is malformed")
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


def _remember(memo: dict[_K, _V], key: _K, value: _V) -> _V:
    if len(memo) >= _MEMO_LIMIT:
        memo.clear()
    memo[key] = value
    return value


def text_of(field: bytes) -> bytes:
    """A field up to its first NUL."""
    end = field.find(0)
    return field if end < 0 else field[:end]


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
