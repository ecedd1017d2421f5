"""Reading tar headers: the rules of Go's archive/tar, and what other tools write."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import InvalidDataError, UnsupportedLayerError
from soci_cli.ztoc import FileMetadata
from tests.support.layers import (
    END,
    GNU,
    V7,
    base256,
    file,
    header,
    long_name,
    octal,
    pax,
    pax_record,
    scan,
    scan_one,
)
from tests.support.scale import examples

STAR_TRAILER = b"tar\0"


def pax_file(*records: tuple[bytes, bytes], **fields: object) -> bytes:
    """A file with an extended header before it."""
    return pax(records) + file(b"name", **fields)  # type: ignore[arg-type]


def refused(archive: bytes) -> None:
    with pytest.raises(InvalidDataError):
        scan(archive)


# Plain headers.


def test_ustar_header() -> None:
    entry = scan_one(
        file(
            b"dir/name",
            b"hello",
            mode=0o4755,
            uid=1000,
            gid=1001,
            uname=b"user",
            gname=b"group",
        )
        + END
    )
    assert entry == FileMetadata(
        name=b"dir/name",
        type=b"reg",
        uncompressed_offset=512,
        uncompressed_size=5,
        mode=0o4755,
        uid=1000,
        gid=1001,
        uname=b"user",
        gname=b"group",
        mod_time=b"2023-11-14T22:13:20Z",
    )


def test_v7_header_has_no_names_nor_devices() -> None:
    entry = scan_one(
        header(b"n", magic=V7, uname=b"u", gname=b"g", major=1, minor=2, prefix=b"p", link=b"l")
        + END
    )
    assert (entry.name, entry.linkname) == (b"n", b"l")
    assert (entry.uname, entry.gname, entry.devmajor, entry.devminor) == (b"", b"", 0, 0)


@pytest.mark.parametrize(
    "magic", [b"ustar 00", b"ustarx00", b"USTAR\x0000", b"ustar  x", b"\0ustar\x000"]
)
def test_other_magic_is_v7(magic: bytes) -> None:
    assert scan_one(header(b"n", magic=magic, uname=b"u", prefix=b"p") + END).uname == b""


@pytest.mark.parametrize("magic", [b"ustar\x0000", b"ustar\0\0\0", b"ustar\0zz"])
def test_any_version_is_ustar(magic: bytes) -> None:
    entry = scan_one(header(b"n", magic=magic, uname=b"u", prefix=b"p") + END)
    assert (entry.name, entry.uname) == (b"p/n", b"u")


def test_fields_without_a_nul() -> None:
    entry = scan_one(
        header(b"n" * 100, link=b"l" * 100, uname=b"u" * 32, gname=b"g" * 32, prefix=b"p" * 155)
        + END
    )
    assert entry.name == b"p" * 155 + b"/" + b"n" * 100
    assert entry.linkname == b"l" * 100
    assert (entry.uname, entry.gname) == (b"u" * 32, b"g" * 32)


def test_text_after_a_nul_does_not_count() -> None:
    entry = scan_one(
        header(b"n\0x", link=b"l\0x", uname=b"u\0x", gname=b"\0x", prefix=b"p\0x") + END
    )
    assert (entry.name, entry.linkname) == (b"p/n", b"l")
    assert (entry.uname, entry.gname) == (b"u", b"")


def test_empty_name_with_a_prefix() -> None:
    assert scan_one(header(b"", prefix=b"p") + END).name == b"p/"
    assert scan_one(header(b"") + END).name == b""


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (b"0", b"reg"),
        (b"\0", b"reg"),
        (b"1", b"hardlink"),
        (b"2", b"symlink"),
        (b"3", b"char"),
        (b"4", b"block"),
        (b"5", b"dir"),
        (b"6", b"fifo"),
    ],
)
def test_types(type_: bytes, expected: bytes) -> None:
    entry = scan_one(header(b"n", type_=type_, major=8, minor=1) + END)
    assert (entry.type, entry.devmajor, entry.devminor) == (expected, 8, 1)


@pytest.mark.parametrize(
    "type_", [b"7", b"8", b"A", b"D", b"M", b"N", b"V", b"I", b"X", b" ", b"\xff"]
)
def test_unknown_types_are_refused(type_: bytes) -> None:
    with pytest.raises(InvalidDataError, match="type"):
        scan(header(b"n", type_=type_) + END)


@pytest.mark.parametrize(
    ("name", "expected"),
    [(b"d/", b"dir"), (b"d//", b"dir"), (b"d", b"reg"), (b"/", b"dir"), (b"", b"reg")],
)
def test_type_nul_goes_by_the_name(name: bytes, expected: bytes) -> None:
    for magic in (V7, GNU, b"ustar\x0000"):
        assert scan_one(header(name, type_=b"\0", magic=magic) + END).type == expected
    assert scan_one(pax([(b"path", name)]) + header(b"", type_=b"\0") + END).type == expected
    assert scan_one(header(b"d/", type_=b"0") + END).type == b"reg"


def test_type_nul_directory_has_no_data() -> None:
    entries, _ = scan(header(b"d/", type_=b"\0", size=600) + file(b"f", b"x") + END)
    assert [(e.name, e.uncompressed_offset, e.uncompressed_size) for e in entries] == [
        (b"d/", 512, 600),
        (b"f", 1024, 1),
    ]


@pytest.mark.parametrize("type_", [b"1", b"2", b"3", b"4", b"5", b"6"])
@pytest.mark.parametrize("size", [600, 2**33, base256(2**63 - 1, 12), base256(-1, 12)])
def test_entries_that_never_have_data(type_: bytes, size: int | bytes) -> None:
    entries, _ = scan(header(b"n", type_=type_, size=size) + file(b"f", b"x") + END)
    assert entries[0].uncompressed_size in (600, 2**33, 2**63 - 1, -1)
    assert (entries[1].name, entries[1].uncompressed_offset) == (b"f", 1024)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 5000])
def test_data_is_padded_to_blocks(size: int) -> None:
    entries, end = scan(file(b"a", b"x" * size) + file(b"b", b"y") + END)
    assert [e.uncompressed_offset for e in entries] == [512, 1024 + -(-size // 512) * 512]
    assert end == 2048 + 1024 + -(-size // 512) * 512 - 512


# STAR and old GNU.


def star_prefix(prefix: bytes, atime: bytes = octal(1, 12), ctime: bytes = octal(2, 12)) -> bytes:
    return prefix.ljust(131, b"\0") + atime + ctime + bytes(8) + STAR_TRAILER


def test_star_has_a_shorter_prefix() -> None:
    assert scan_one(header(b"n", prefix=star_prefix(b"p" * 131)) + END).name == b"p" * 131 + b"/n"
    assert scan_one(header(b"n", prefix=star_prefix(b"")) + END).name == b"n"
    plain = star_prefix(b"p" * 131)[:163] + b"tar "
    assert scan_one(header(b"n", prefix=plain) + END).name.startswith(b"p" * 131 + b"0")


def test_star_with_bad_times_is_refused() -> None:
    refused(header(b"n", prefix=star_prefix(b"p", atime=b"x" * 12)) + END)
    refused(header(b"n", prefix=star_prefix(b"p", ctime=b"x" * 12)) + END)
    refused(header(b"n", prefix=star_prefix(b"", ctime=b"x" * 12)) + END)


def test_gnu_has_no_prefix() -> None:
    times = octal(1, 12) + octal(2, 12)
    assert scan_one(header(b"n", magic=GNU, prefix=times) + END).name == b"n"
    times = base256(-5, 12) + base256(2**40, 12)
    assert scan_one(header(b"n", magic=GNU, prefix=times) + END).name == b"n"


def test_gnu_with_a_prefix_for_times() -> None:
    assert scan_one(header(b"n", magic=GNU, prefix=b"some/folder") + END).name == b"some/folder/n"
    assert scan_one(header(b"n", magic=GNU, prefix=b"p" * 155) + END).name == b"p" * 155 + b"/n"
    # The first twelve bytes may be a number by chance; the next tell.
    prefix = b"12345670123 not a time"
    assert scan_one(header(b"n", magic=GNU, prefix=prefix) + END).name == prefix + b"/n"


def test_gnu_prefix_that_is_not_ascii_does_not_count() -> None:
    assert scan_one(header(b"n", magic=GNU, prefix="dossiér".encode()) + END).name == b"n"


def test_gnu_with_only_a_bad_ctime() -> None:
    assert scan_one(header(b"n", magic=GNU, prefix=bytes(12) + b"x" * 12) + END).name == b"n"


# Numbers.


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"0000644\0", 0o644),
        (b"000644 \0", 0o644),
        (b"   644 \0", 0o644),
        (b"\0\x00644\0\0\0", 0o644),
        (b" \0 644 \0", 0o644),
        (b"644\0junk", 0o644),
        (b"77777777", 0o77777777),
        (bytes(8), 0),
        (b" " * 8, 0),
        (b"0" * 8, 0),
        (base256(0, 8), 0),
        (base256(2**55, 8), 2**55),
        (base256(2**62 - 1, 8), 2**62 - 1),
        (base256(-1, 8), -1),
        (base256(-(2**55), 8), -(2**55)),
        (b"\x80" + b"\0" * 6 + b"\7", 7),
        (b"\xc0" + b"\0" * 7, -(2**62)),
    ],
)
def test_numbers(field: bytes, expected: int) -> None:
    assert scan_one(header(b"n", mode=field) + END).mode == expected
    assert scan_one(header(b"n", major=field, minor=field) + END).devminor == expected
    assert scan_one(header(b"n", uid=field) + END).uid == expected & 0xFFFFFFFF
    assert scan_one(header(b"n", gid=field) + END).gid == expected & 0xFFFFFFFF


@pytest.mark.parametrize(
    "field",
    [
        b"0000648\0",
        b"-000644\0",
        b"+000644\0",
        b"0x00644\0",
        b"0o00644\0",
        b"6 44   \0",
        b"6_44   \0",
        b"abc",
    ],
)
@pytest.mark.parametrize("where", ["mode", "uid", "gid", "size", "mtime", "major", "minor"])
def test_numbers_that_are_not_octal(where: str, field: bytes) -> None:
    width = 12 if where in ("size", "mtime") else 8
    refused(header(b"n", **{where: field.ljust(width, b"\0")}) + END)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (b"00000000005\0", 5),
        (b"          5 ", 5),
        (b"00000000005 ", 5),
        (b"5\0junk\0junk\0", 5),
        (b"000000000005", 5),
        (base256(5, 12), 5),
        (bytes(12), 0),
    ],
)
def test_sizes(field: bytes, expected: int) -> None:
    entry = scan_one(
        header(b"n", size=field) + (b"x" * expected).ljust(-(-expected // 512) * 512) + END
    )
    assert entry.uncompressed_size == expected


@pytest.mark.parametrize(
    "field",
    [
        b"0000000000\xb2\0",
        b"00000000008\0",
        b"00000000009 ",
        b"+0000000005\0",
        b"0000000_005\0",
        base256(-1, 12),
        base256(-(2**63), 12),
    ],
)
def test_sizes_that_are_refused(field: bytes) -> None:
    refused(header(b"n", size=field) + bytes(1024) + END)


@pytest.mark.parametrize("value", [2**63, 2**64, 2**90, -(2**63) - 1, -(2**90)])
def test_base256_overflow(value: int) -> None:
    refused(header(b"n", mtime=base256(value, 12)) + END)
    refused(header(b"n", type_=b"5", size=base256(value, 12)) + END)


def test_base256_at_its_limits() -> None:
    for value in (2**63 - 1, -(2**63)):
        assert (
            scan_one(header(b"n", type_=b"5", size=base256(value, 12)) + END).uncompressed_size
            == value
        )


def test_owners_are_cut_to_32_bits() -> None:
    entry = scan_one(header(b"n", uid=base256(2**32 + 5, 8), gid=base256(-2, 8)) + END)
    assert (entry.uid, entry.gid) == (5, 2**32 - 2)


# Checksums.


def test_signed_checksums() -> None:
    name = b"caf\xc3\xa9\xff"
    block = header(name)
    signed = sum(b - 256 if b > 127 else b for b in block[:148] + b" " * 8 + block[156:])
    assert scan_one(header(name, checksum=b"%06o\0 " % signed) + END).name == name


@pytest.mark.parametrize(
    "form", [b"%06o\0 ", b"%07o\0", b" %05o \0", b"%5o\0\0\0", b"\0%06o ", b"%o\0xy"]
)
def test_checksums_in_any_form(form: bytes) -> None:
    value = sum(header()[:148] + b" " * 8 + header()[156:])
    checksum = (form % value).ljust(8, b"\0")
    assert scan_one(header(checksum=checksum) + END).name == b"file"


@pytest.mark.parametrize("checksum", [bytes(8), b" " * 8, b"999999\0 ", b"-01234\0 ", b"zzzzzzzz"])
def test_bad_checksums(checksum: bytes) -> None:
    refused(header(checksum=checksum) + END)


@examples(200)
@given(st.integers(0, 511).filter(lambda at: not 148 <= at < 156), st.integers(1, 255))
def test_any_changed_byte_breaks_the_checksum(at: int, change: int) -> None:
    # A sound header comes first, so that what was learned from it cannot help.
    block = bytearray(header(b"name", uname=b"u", prefix=b"prefix"))
    sound = bytes(block)
    block[at] ^= change
    refused(sound + bytes(block) + END)


# Times.


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (0, b"1970-01-01T00:00:00Z"),
        (1_700_000_000, b"2023-11-14T22:13:20Z"),
        (951_782_400, b"2000-02-29T00:00:00Z"),
        (8**11 - 1, b"2242-03-16T12:56:31Z"),
        (base256(-1, 12), b"1969-12-31T23:59:59Z"),
        (base256(-86_400, 12), b"1969-12-31T00:00:00Z"),
        (base256(253_402_300_799, 12), b"9999-12-31T23:59:59Z"),
        (base256(253_402_300_800, 12), b""),
        (base256(-62_167_219_200, 12), b"0000-01-01T00:00:00Z"),
        (base256(-62_167_219_201, 12), b""),
        (base256(-62_135_596_800, 12), b"0001-01-01T00:00:00Z"),
        (base256(2**63 - 1, 12), b""),
        (base256(-(2**63), 12), b""),
        (b"\0" * 12, b"1970-01-01T00:00:00Z"),
    ],
)
def test_header_times(field: int | bytes, expected: bytes) -> None:
    assert scan_one(header(mtime=field) + END).mod_time == expected


@examples(300)
@given(st.integers(-62_135_596_800, 253_402_300_799))
def test_header_times_agree_with_datetime(seconds: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
    expected = moment.isoformat().replace("+00:00", "Z").encode()
    assert scan_one(header(mtime=base256(seconds, 12)) + END).mod_time == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"0", b"1970-01-01T00:00:00Z"),
        (b"1700000000", b"2023-11-14T22:13:20Z"),
        (b"1700000000.", b"2023-11-14T22:13:20Z"),
        (b"1700000000.5", b"2023-11-14T22:13:20.5Z"),
        (b"1700000000.123456789", b"2023-11-14T22:13:20.123456789Z"),
        (b"1700000000.1234567899999", b"2023-11-14T22:13:20.123456789Z"),
        (b"1700000000.000000000999", b"2023-11-14T22:13:20Z"),
        (b"1700000000.050", b"2023-11-14T22:13:20.05Z"),
        (b"1700000000.000000001", b"2023-11-14T22:13:20.000000001Z"),
        (b"+1700000000.5", b"2023-11-14T22:13:20.5Z"),
        (b"-1", b"1969-12-31T23:59:59Z"),
        (b"-1.0", b"1969-12-31T23:59:59Z"),
        (b"-1.5", b"1969-12-31T23:59:58.5Z"),
        (b"-0.5", b"1969-12-31T23:59:59.5Z"),
        (b"-0.000000001", b"1969-12-31T23:59:59.999999999Z"),
        (b"-0.0000000001", b"1970-01-01T00:00:00Z"),
        (b"-0", b"1970-01-01T00:00:00Z"),
        (b"00000000000000000000000001", b"1970-01-01T00:00:01Z"),
        (b"253402300799.999999999", b"9999-12-31T23:59:59.999999999Z"),
        (b"253402300800", b""),
        (b"253402300800.5", b""),
        (b"-62167219200", b"0000-01-01T00:00:00Z"),
        (b"-62167219200.5", b""),
        (b"9223372036854775807", b""),
        (b"-9223372036854775808.9", b""),
    ],
)
def test_pax_times(value: bytes, expected: bytes) -> None:
    entry = scan_one(pax_file((b"mtime", value)) + END)
    assert entry.mod_time == expected
    assert entry.xattrs == ((b"mtime", value),)
    # The same beside other records.
    assert scan_one(pax_file((b"a", b"b"), (b"mtime", value)) + END).mod_time == expected


@pytest.mark.parametrize(
    "value",
    [
        b"x", b".", b".5", b"-", b"-.5", b"1.x", b"1.-5", b"1. 5", b" 1", b"1 ", b"1e9", b"1_0",
        b"--1", b"1.5.5", b"\xb2", b"9223372036854775808", b"-9223372036854775809", b"1.5\0",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", [b"mtime", b"atime", b"ctime"])
def test_malformed_pax_times(key: bytes, value: bytes) -> None:
    refused(pax_file((key, value)) + END)


# PAX records.


def test_pax_overrides() -> None:
    records = {
        b"path": b"other/\xff\xfe" + b"n" * 300,
        b"linkpath": b"target" * 40,
        b"uid": b"4000000000",
        b"gid": b"-1",
        b"uname": b"u" * 50,
        b"gname": b"g" * 50,
        b"mtime": b"1.25",
        b"atime": b"1",
        b"ctime": b"2",
        b"comment": b"a=b=c\0",
        b"SCHILY.xattr.user.a": b"\0\1=\n",
    }
    entry = scan_one(
        pax(list(records.items()))
        + header(b"n", type_=b"2", link=b"l", uid=1, gid=2, uname=b"u", gname=b"g")
        + END
    )
    assert entry == FileMetadata(
        name=records[b"path"],
        type=b"symlink",
        uncompressed_offset=512 + 1024 + 512,
        uncompressed_size=0,
        linkname=records[b"linkpath"],
        mode=0o644,
        uid=4_000_000_000,
        gid=2**32 - 1,
        uname=b"u" * 50,
        gname=b"g" * 50,
        mod_time=b"1970-01-01T00:00:01.25Z",
        xattrs=tuple(sorted(records.items())),
    )


def test_pax_size_overrides() -> None:
    archive = pax([(b"size", b"600")]) + header(b"n") + bytes(1024) + file(b"b") + END
    entries, _ = scan(archive)
    assert [(e.name, e.uncompressed_size) for e in entries] == [(b"n", 600), (b"b", 0)]
    assert entries[1].uncompressed_offset == 1024 + 512 + 1024 + 512


def test_empty_values_keep_the_header_s() -> None:
    keys = [
        b"path",
        b"linkpath",
        b"size",
        b"uid",
        b"gid",
        b"uname",
        b"gname",
        b"mtime",
        b"atime",
        b"ctime",
    ]
    entry = scan_one(
        pax([(key, b"") for key in keys])
        + file(b"n", b"hello", link=b"l", uid=1, gid=2, uname=b"u", gname=b"g")
        + END
    )
    assert (entry.name, entry.linkname, entry.uncompressed_size) == (b"n", b"l", 5)
    assert (entry.uid, entry.gid, entry.uname, entry.gname) == (1, 2, b"u", b"g")
    assert entry.mod_time == b"2023-11-14T22:13:20Z"
    assert entry.xattrs == tuple((key, b"") for key in sorted(keys))


def test_the_last_record_of_a_key_counts() -> None:
    entry = scan_one(pax([(b"path", b"first"), (b"path", b"last")]) + file(b"n") + END)
    assert (entry.name, entry.xattrs) == (b"last", ((b"path", b"last"),))


def test_an_extended_header_counts_once() -> None:
    entries, _ = scan(pax([(b"path", b"p")]) + file(b"a") + file(b"b") + END)
    assert [(e.name, e.xattrs) for e in entries] == [(b"p", ((b"path", b"p"),)), (b"b", ())]


def test_the_last_of_two_extended_headers_counts() -> None:
    entry = scan_one(
        pax([(b"path", b"p"), (b"uid", b"1")]) + pax([(b"gid", b"2")]) + file(b"n") + END
    )
    assert (entry.name, entry.uid, entry.gid) == (b"n", 0, 2)


def test_equal_extended_headers() -> None:
    # Writers give them one name and one owner; sizes and checksums can be equal too.
    archive = b"".join(
        pax([(b"path", b"p%d" % i)]) + file(b"n", b"x" * i) + header(b"d%d/" % i, type_=b"5")
        for i in range(5)
    )
    entries, _ = scan(archive + END)
    assert [e.name for e in entries] == [
        name for i in range(5) for name in (b"p%d" % i, b"d%d/" % i)
    ]


def test_an_empty_extended_header() -> None:
    assert scan_one(pax(b"") + file(b"n") + END).xattrs == ()


def test_extended_header_at_the_end() -> None:
    entries, end = scan(pax([(b"path", b"p")]) + END)
    assert (entries, end) == ([], 2048)
    entries, end = scan(pax([(b"path", b"p")]))
    assert (entries, end) == ([], 1024)


@pytest.mark.parametrize(
    "payload",
    [
        b"x",
        b"\0" * 10,
        b" 9 a=b\n",
        b"6 a=b\nx",
        b"7 a=b\n",
        b"5 a=b\n",
        b"6 a=bx",
        b"6 a b\n",
        b"5 =b\n",
        b"4 =\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"06a=b\n",
        b"6_0 a=b\n",
        b"99999999999999999999 a=b\n",
        b"9223372036854775807 a=b\n",
        b"100 a=b\n",
        b"5 abcdefgh=1\n",
        b"10      =\n ",
        pax_record(b"a\0b", b"c"),
        pax_record(b"path", b"a\0b"),
        pax_record(b"linkpath", b"a\0b"),
        pax_record(b"uname", b"\0"),
        pax_record(b"gname", b"\0"),
        pax_record(b"uid", b"x"),
        pax_record(b"uid", b"1.0"),
        pax_record(b"gid", b"0x1"),
        pax_record(b"gid", b"9223372036854775808"),
        pax_record(b"size", b"1 "),
        pax_record(b"size", b"-1"),
        pax_record(b"size", b"9223372036854775808"),
        pax_record(b"a", b"b") + b"5 a=b\n",
    ],
)
def test_malformed_records(payload: bytes) -> None:
    refused(pax(payload) + file(b"n") + END)


def test_records_that_are_odd_but_sound() -> None:
    payload = b"+6 a=\n" + b"0008 b=\n" + pax_record(b"k", b"v\0=\n") + pax_record(b"a b", b"c")
    entry = scan_one(pax(payload) + file(b"n") + END)
    assert dict(entry.xattrs) == {b"a": b"", b"b": b"", b"k": b"v\0=\n", b"a b": b"c"}


@pytest.mark.parametrize("type_", [b"x", b"g", b"L", b"K"])
def test_large_payloads(type_: bytes) -> None:
    record = pax_record(b"comment", b"c" * ((1 << 20) - 20))
    payload = record if type_ in b"xg" else b"n" * (1 << 20)
    assert (1 << 20) - 10 < len(payload) <= 1 << 20
    scan(file(b"meta", payload, type_=type_) + file(b"n") + END)
    started = time.monotonic()
    with pytest.raises(InvalidDataError, match="1048577"):
        scan(header(b"meta", type_=type_, size=(1 << 20) + 1) + END)
    refused(header(b"meta", type_=type_, size=base256(2**62, 12)) + END)
    refused(header(b"meta", type_=type_, size=base256(-1, 12)) + END)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("type_", [b"x", b"g", b"L", b"K"])
def test_payload_that_is_cut_off(type_: bytes) -> None:
    payload = pax_record(b"path", b"p" * 1000)
    whole = file(b"meta", payload, type_=type_)
    for length in (100, 512, 513, 1024, 512 + len(payload) - 1):
        refused(whole[:length])
    # In the padding it may end.
    scan(whole[: 512 + len(payload)])
    scan(whole[: 512 + len(payload) + 3])


# Global headers.


def global_header(*records: tuple[bytes, bytes]) -> bytes:
    return pax(records, b"g")


def test_global_header_is_applied_to_all() -> None:
    archive = (
        file(b"before")
        + global_header((b"uid", b"7"), (b"uname", b"global"), (b"comment", b"commit"))
        + file(b"a")
        + file(b"b")
        + END
    )
    before, first, second = scan(archive)[0]
    assert (before.uid, before.uname, before.xattrs) == (0, b"", ())
    for entry in (first, second):
        assert (entry.uid, entry.uname) == (7, b"global")
        assert entry.xattrs == ((b"uid", b"7"), (b"uname", b"global"))


def test_local_records_override_global_ones() -> None:
    archive = (
        global_header((b"uid", b"7"), (b"gid", b"8"))
        + pax([(b"uid", b"9")])
        + file(b"a")
        + file(b"b")
        + END
    )
    first, second = scan(archive)[0]
    assert (first.uid, first.gid) == (9, 8)
    assert (second.uid, second.gid) == (7, 8)
    assert first.xattrs == ((b"gid", b"8"), (b"uid", b"9"))


def test_an_empty_local_value_withdraws_a_global_one() -> None:
    # POSIX: an empty value deletes what the header or a global record says; the header's is kept here.
    archive = global_header((b"uid", b"7")) + pax([(b"uid", b"")]) + file(b"a", uid=3) + END
    assert scan_one(archive).uid == 3


def test_an_empty_global_value_withdraws_it() -> None:
    archive = (
        global_header((b"uid", b"7"), (b"gid", b"8"))
        + file(b"a")
        + global_header((b"uid", b""))
        + file(b"b", uid=3)
        + END
    )
    first, second = scan(archive)[0]
    assert (first.uid, first.gid) == (7, 8)
    assert (second.uid, second.gid) == (3, 8)


def test_global_header_between_extended_header_and_file() -> None:
    archive = pax([(b"path", b"p")]) + global_header((b"uid", b"7")) + file(b"a") + END
    entry = scan_one(archive)
    assert (entry.name, entry.uid) == (b"p", 7)


def test_global_xattrs() -> None:
    archive = global_header((b"SCHILY.xattr.user.a", b"1"), (b"other", b"2")) + file(b"a") + END
    assert scan_one(archive).xattrs == ((b"SCHILY.xattr.user.a", b"1"),)


def test_global_header_with_bad_values_is_refused() -> None:
    refused(global_header((b"uid", b"x")) + file(b"a") + END)
    refused(pax(b"junk", b"g") + file(b"a") + END)


def test_global_records_that_each_file_would_repeat_are_limited() -> None:
    value = b"v" * 40_000
    scan(global_header((b"SCHILY.xattr.user.a", value)) * 10 + file(b"a") + END)
    many = b"".join(global_header((b"SCHILY.xattr.user.%d" % i, value)) for i in range(10))
    refused(many + file(b"a") + END)
    taken_back = b"".join(
        global_header((b"SCHILY.xattr.user.%d" % i, value))
        + global_header((b"SCHILY.xattr.user.%d" % i, b""))
        for i in range(10)
    )
    assert scan_one(taken_back + file(b"a") + END).xattrs == ()


def test_a_global_sparse_record_is_not_supported() -> None:
    records = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    with pytest.raises(UnsupportedLayerError, match="sparse"):
        scan(global_header(*records) + file(b"a") + END)


def test_many_global_records_cost_neither_time_nor_memory() -> None:
    payload = b"".join(pax_record(b"k%d" % i, b"v") for i in range(80_000))
    archive = pax(payload, b"g") + file(b"a") * 2000 + END
    started = time.monotonic()
    entries, _ = scan(archive)
    assert time.monotonic() - started < 3
    assert len(entries) == 2000
    assert entries[-1].xattrs == ()


# GNU long names.


def test_long_name_and_link() -> None:
    name, link = b"n" * 300, b"l" * 300
    for meta in (long_name(name) + long_name(link, b"K"), long_name(link, b"K") + long_name(name)):
        entry = scan_one(meta + header(b"short", type_=b"2", link=b"s", magic=GNU) + END)
        assert (entry.name, entry.linkname) == (name, link)
        assert entry.xattrs == ()


def test_long_name_counts_once() -> None:
    entries, _ = scan(long_name(b"n" * 200) + file(b"a") + file(b"b") + END)
    assert [e.name for e in entries] == [b"n" * 200, b"b"]


def test_long_name_ends_at_a_nul() -> None:
    assert scan_one(file(b"L", b"n\0junk", type_=b"L", magic=GNU) + file(b"a") + END).name == b"n"
    assert (
        scan_one(file(b"L", b"no-nul", type_=b"L", magic=GNU) + file(b"a") + END).name == b"no-nul"
    )


def test_an_empty_long_name_keeps_the_header_s() -> None:
    assert scan_one(file(b"L", b"", type_=b"L", magic=GNU) + file(b"a") + END).name == b"a"
    assert scan_one(file(b"L", b"\0", type_=b"L", magic=GNU) + file(b"a") + END).name == b"a"


def test_long_name_comes_before_pax() -> None:
    records = pax([(b"path", b"p"), (b"linkpath", b"q"), (b"uid", b"7")])
    for meta in (
        records + long_name(b"long") + long_name(b"longlink", b"K"),
        long_name(b"long") + long_name(b"longlink", b"K") + records,
    ):
        entry = scan_one(meta + file(b"a") + END)
        assert (entry.name, entry.linkname, entry.uid) == (b"long", b"longlink", 7)


def test_the_last_of_two_long_names_counts() -> None:
    assert scan_one(long_name(b"first") + long_name(b"last") + file(b"a") + END).name == b"last"


def test_long_name_decides_the_type() -> None:
    entry = scan_one(long_name(b"folder/") + header(b"folder", type_=b"\0", magic=GNU) + END)
    assert (entry.name, entry.type) == (b"folder/", b"dir")


# Sparse files.


@pytest.mark.parametrize(
    "archive",
    [
        header(b"n", type_=b"S", magic=GNU),
        pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"n")])
        + file(b"x", b"1\n0\n512\n" + bytes(1024)),
        pax([(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"1"), (b"GNU.sparse.map", b"0,5")])
        + file(b"x", b"hello"),
        pax([(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"5")]) + file(b"x", b"hello"),
        pax([(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"5")]) + file(b"x", b"hello"),
        pax([(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"0")]) + file(b"x", b"hello"),
    ],
)
def test_sparse_files_are_not_supported(archive: bytes) -> None:
    with pytest.raises(UnsupportedLayerError, match="sparse"):
        scan(archive + END)


@pytest.mark.parametrize(
    "records",
    [
        [(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")],
        [(b"GNU.sparse.major", b"1")],
        [(b"GNU.sparse.size", b"5")],
        [(b"GNU.sparse.name", b"other")],
        [(b"GNU.sparse.map", b"")],
    ],
)
def test_records_that_make_no_sparse_file(records: list[tuple[bytes, bytes]]) -> None:
    entry = scan_one(pax(records) + file(b"n", b"hello") + END)
    assert (entry.name, entry.uncompressed_size) == (b"n", 5)


# The end of the archive.


def test_end_in_the_padding() -> None:
    for length in (512 + 5, 512 + 6, 1023, 1024):
        entries, end = scan(file(b"n", b"hello")[:length])
        assert (len(entries), end) == (1, length)


def test_end_in_data_or_header_is_refused() -> None:
    whole = file(b"n", b"x" * 600) + file(b"m", b"y") + END
    for length in (1, 511, 513, 512 + 599, 1536 + 1, 1536 + 511):
        refused(whole[:length])


def test_data_that_ends_with_the_archive() -> None:
    assert scan(file(b"n", b"x" * 512))[1] == 1024


def test_no_archive_at_all() -> None:
    assert scan(b"") == ([], 0)
    assert scan(END) == ([], 1024)
    assert scan(bytes(512)) == ([], 512)


def test_one_zero_block() -> None:
    entries, end = scan(file(b"n", b"x") + bytes(512))
    assert (len(entries), end) == (1, 1536)


def test_a_zero_block_cut_off_is_refused() -> None:
    refused(file(b"n", b"x") + bytes(100))
    refused(file(b"n", b"x") + bytes(512 + 100))


def test_a_zero_block_then_data_is_refused() -> None:
    refused(file(b"n") + bytes(512) + file(b"m") + END)
    refused(file(b"n") + bytes(512) + b"x" * 512)


def test_what_follows_the_end_does_not_count() -> None:
    entries, end = scan(file(b"n") + END + file(b"m") + b"junk")
    assert ([e.name for e in entries], end) == ([b"n"], 512 + 1024)


@examples(200)
@given(st.binary(max_size=2000))
def test_noise_is_refused(data: bytes) -> None:
    if not data.strip(b"\0"):
        return
    refused(b"\1" + data)


@examples(300)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_archives_raise_nothing_else(flips: list[tuple[int, int]]) -> None:
    archive = bytearray(
        pax([(b"path", b"p"), (b"mtime", b"1.5"), (b"size", b"5")])
        + file(b"n", b"hello")
        + long_name(b"long")
        + file(b"m", magic=GNU, prefix=octal(1, 12))
        + header(b"l", type_=b"2", link=b"t", prefix=star_prefix(b"p"))
        + END
    )
    for at, value in flips:
        archive[at % len(archive)] = value
    # Make the checksums right again, so that the fields are read.
    for at in range(0, len(archive), 512):
        block = archive[at : at + 512]
        if block[257:262] == b"ustar":
            total = sum(block[:148] + b" " * 8 + block[156:])
            archive[at + 148 : at + 156] = b"%06o\0 " % total
    try:
        scan(bytes(archive))
    except InvalidDataError as error:
        assert "\n" not in str(error)


# What other programs write, fed in pieces.


def utc(seconds: float) -> bytes:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=int(seconds))
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").encode()


TYPES = {
    tarfile.REGTYPE: b"reg",
    tarfile.DIRTYPE: b"dir",
    tarfile.SYMTYPE: b"symlink",
    tarfile.LNKTYPE: b"hardlink",
    tarfile.CHRTYPE: b"char",
    tarfile.BLKTYPE: b"block",
    tarfile.FIFOTYPE: b"fifo",
}


def check_against_tarfile(archive: bytes, cuts: list[int]) -> list[FileMetadata]:
    """Compares with what tarfile reads; times to the second."""
    entries, _ = scan(archive, cuts)
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as other:
        members = other.getmembers()
    assert len(entries) == len(members)
    for entry, member in zip(entries, members, strict=True):
        name = member.name.encode("utf-8", "surrogateescape")
        # tarfile drops a folder's trailing slash.
        assert entry.name.rstrip(b"/") == name.rstrip(b"/")
        assert entry.type == TYPES[b"0" if member.type == b"\0" else member.type]
        assert entry.linkname.decode("utf-8", "surrogateescape") == member.linkname
        assert entry.uncompressed_offset == member.offset_data
        assert entry.uncompressed_size == member.size
        assert (entry.mode, entry.uid, entry.gid) == (member.mode, member.uid, member.gid)
        assert (entry.uname.decode(), entry.gname.decode()) == (member.uname, member.gname)
        if member.mtime >= 0:
            assert entry.mod_time[:19] == utc(member.mtime)[:19]
        if entry.type in (b"char", b"block"):
            assert (entry.devmajor, entry.devminor) == (member.devmajor, member.devminor)
    return entries


letters = st.characters(codec="utf-8", exclude_characters="/\0")
parts = st.text(letters, min_size=1, max_size=60).filter(lambda part: part not in (".", ".."))
paths = st.lists(parts, min_size=1, max_size=6).map("/".join)
short_paths = st.lists(st.text("abcdef-_.", min_size=1, max_size=12), min_size=1, max_size=4).map(
    "/".join
)


@st.composite
def members(draw: st.DrawFn, long: bool) -> tuple[tarfile.TarInfo, bytes]:
    names = paths if long else short_paths
    info = tarfile.TarInfo(draw(names))
    info.type = draw(st.sampled_from([tarfile.REGTYPE] * 3 + list(TYPES)))
    data = draw(st.binary(max_size=1500)) if info.type == tarfile.REGTYPE else b""
    info.size = len(data)
    info.mode = draw(st.integers(0, 0o7777))
    largest = 2**32 - 1 if long else 0o7777777
    info.uid = draw(st.integers(0, largest))
    info.gid = draw(st.integers(0, largest))
    info.uname = draw(st.text("abc", max_size=20))
    info.gname = draw(st.text("abc", max_size=20))
    info.mtime = draw(st.integers(0, 2**35 if long else 8**11 - 1))
    if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = draw(names)
    if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor = draw(st.integers(0, 0o777777))
        info.devminor = draw(st.integers(0, 0o777777))
    return info, data


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@examples(60)
@given(data=st.data())
def test_archives_of_tarfile(format_: int, data: st.DataObject) -> None:
    long = format_ != tarfile.USTAR_FORMAT
    written = data.draw(st.lists(members(long), max_size=8))
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format_, encoding="utf-8") as archive:
        for info, content in written:
            archive.addfile(info, io.BytesIO(content))
    archive_bytes = target.getvalue()
    cuts = data.draw(st.lists(st.integers(0, len(archive_bytes)), max_size=30))
    entries = check_against_tarfile(archive_bytes, cuts)
    for entry, (info, content) in zip(entries, written, strict=True):
        start = entry.uncompressed_offset
        assert archive_bytes[start : start + len(content)] == content
        assert entry.mod_time == utc(info.mtime)


def test_fed_byte_by_byte() -> None:
    archive = (
        pax([(b"path", b"p" * 700)])
        + file(b"n", b"hello" * 300)
        + long_name(b"long" * 200)
        + file(b"m", b"x")
        + END
        + b"more"
    )
    whole = scan(archive)
    assert scan(archive, range(len(archive))) == whole
    for step in (7, 511, 512, 513, 1000):
        assert scan(archive, range(0, len(archive), step)) == whole


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with some of everything that an ordinary user can make."""
    root = tmp_path / "tree"
    deep = root / "folder" / ("d" * 90) / ("e" * 60)
    deep.mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    (root / "file").write_bytes(b"hello")
    (root / "block").write_bytes(b"x" * 512)
    (root / "big").write_bytes(b"y" * 100_001)
    (deep / "leaf").write_bytes(b"leaf")
    (root / "link").symlink_to("file")
    (root / "absolute").symlink_to("/etc/hosts")
    (root / "long-link").symlink_to("t" * 90)
    os.link(root / "file", root / "hard")
    os.mkfifo(root / "fifo")
    (root / "file").chmod(0o4711)
    for path in sorted(root.rglob("*")):
        os.utime(path, (1_600_000_000.25, 1_600_000_000.75), follow_symlinks=False)
    return root


def gnu_tar(tree: Path, *options: str) -> bytes:
    return subprocess.run(
        ["tar", "--create", "--sort=name", *options, "--directory", str(tree), "."],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8"},
    ).stdout


needs_gnu_tar = pytest.mark.skipif(
    shutil.which("tar") is None
    or b"GNU"
    not in subprocess.run(["tar", "--version"], stdout=subprocess.PIPE, check=False).stdout,
    reason="needs GNU tar",
)


@needs_gnu_tar
@pytest.mark.parametrize("format_", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_archives_of_gnu_tar(format_: str, tree: Path) -> None:
    if format_ == "v7":
        # Its names have 100 bytes, and it knows no fifos.
        shutil.rmtree(tree / "folder")
        (tree / "fifo").unlink()
    elif format_ in ("gnu", "oldgnu", "pax"):
        (tree / ("n" * 200)).write_bytes(b"long")
        (tree / "longest-link").symlink_to("t" * 250)
        (tree / "ünïcode-名前").write_bytes(b"name")
        (tree / os.fsdecode(b"\xff\xfe")).write_bytes(b"not UTF-8")
    archive = gnu_tar(tree, f"--format={format_}")
    entries = check_against_tarfile(archive, list(range(0, len(archive), 777)))
    by_name = {entry.name: entry for entry in entries}
    assert by_name[b"./file"].mode == 0o4711
    assert by_name[b"./"].type == b"dir"
    assert by_name[b"./hard"].type == b"hardlink"
    assert by_name[b"./hard"].linkname == b"./file"
    start = by_name[b"./file"].uncompressed_offset
    assert archive[start : start + 5] == b"hello"
    fraction = b".75Z" if format_ == "pax" else b"Z"
    assert by_name[b"./empty"].mod_time == b"2020-09-13T12:26:40" + fraction
    if format_ == "pax":
        keys = {key for key, _ in by_name[b"./empty"].xattrs}
        assert keys == {b"mtime", b"atime", b"ctime"}
    if format_ in ("gnu", "oldgnu", "pax"):
        assert by_name[b"./longest-link"].linkname == b"t" * 250
        assert b"./\xff\xfe" in by_name
        assert "./ünïcode-名前".encode() in by_name


@needs_gnu_tar
@pytest.mark.parametrize("version", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_archives_of_gnu_tar(version: str, tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    source.mkdir()
    with (source / "file").open("wb") as target:
        target.truncate(10 << 20)
        target.seek(5 << 20)
        target.write(b"x")
    how = ["--format=gnu"] if version == "gnu" else ["--format=pax", f"--sparse-version={version}"]
    archive = gnu_tar(source, "--sparse", *how)
    if len(archive) > 5 << 20:
        pytest.skip("this file system does not tell where holes are")
    with pytest.raises(UnsupportedLayerError, match="sparse"):
        scan(archive)


@needs_gnu_tar
def test_multi_volume_and_incremental_archives_are_refused(tree: Path, tmp_path: Path) -> None:
    labelled = gnu_tar(tree, "--format=gnu", "--label=volume")
    refused(labelled)
    incremental = gnu_tar(tree, "--format=gnu", f"--listed-incremental={tmp_path / 'snapshot'}")
    refused(incremental)


def test_many_different_fields() -> None:
    # What is remembered of earlier headers stays bounded and never mixes up two of them.
    count = 20_000
    archive = b"".join(
        header(b"f%d" % i, uid=i & 0o777777, mtime=i, uname=b"u%d" % i) for i in range(count)
    )
    entries, _ = scan(archive + END)
    assert len(entries) == count
    for i in range(0, count, 997):
        assert entries[i].name == b"f%d" % i
        assert entries[i].uid == i & 0o777777
        assert entries[i].uname == b"u%d" % i
        assert entries[i].mod_time == utc(i)
