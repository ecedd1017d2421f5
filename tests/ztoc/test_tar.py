"""Reading tar headers by the rules of Go's archive/tar: plain ones, the end."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import InvalidDataError
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
    refused,
    scan,
    scan_one,
)
from tests.support.scale import examples

STAR_TRAILER = b"tar\0"


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


# Sparse files: test_sparse.py.


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
