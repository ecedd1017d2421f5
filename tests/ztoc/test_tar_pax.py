"""Tar headers: extended and global PAX headers, and GNU's long names."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc import FileMetadata
from tests.support.layers import (
    END,
    GNU,
    base256,
    file,
    header,
    long_name,
    pax,
    pax_record,
    refused,
    scan,
    scan_one,
)

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


@pytest.mark.parametrize(
    "records",
    [
        [(b"uid", b"7"), (b"uname", b"global"), (b"comment", b"commit")],
        [(b"path", b"p"), (b"linkpath", b"l"), (b"size", b"0"), (b"mtime", b"5")],
        [(b"SCHILY.xattr.user.a", b"1"), (b"other", b"2")],
        [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.map", b"0,1")],
        [(b"uid", b"no number")],
        [(b"uid", b"")],
    ],
)
def test_global_records_are_passed_over(records: list[tuple[bytes, bytes]]) -> None:
    """As Go does it, and so containerd."""
    own = pax([(b"gid", b"9")]) + file(b"a", b"x")
    entries = scan(file(b"before") + own + file(b"b") + END)[0]
    there = scan(file(b"before") + global_header(*records) + own + file(b"b") + END)[0]
    moved = [
        replace(one, uncompressed_offset=one.uncompressed_offset + 1024 * (one.name != b"before"))
        for one in entries
    ]
    assert there == moved


def test_global_header_between_extended_header_and_file() -> None:
    archive = pax([(b"path", b"p")]) + global_header((b"uid", b"7")) + file(b"a") + END
    entry = scan_one(archive)
    assert (entry.name, entry.uid) == (b"p", 0)


def test_a_global_header_that_is_none_is_refused() -> None:
    refused(pax(b"junk", b"g") + file(b"a") + END)


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
