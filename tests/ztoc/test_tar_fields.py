"""Tar headers: numbers, checksums and times."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tests.support.layers import (
    END,
    base256,
    header,
    pax_file,
    refused,
    scan_one,
)
from tests.support.scale import examples

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
