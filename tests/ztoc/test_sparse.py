"""Sparse files in archives, of all four forms."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import InvalidDataError, UnsupportedLayerError
from soci_cli.ztoc import Compression, FileTree, LayerReader, Ztoc, decode_ztoc
from soci_cli.ztoc.codec import read_head
from soci_cli.ztoc.model import HOLES
from tests.support.layers import (
    END,
    GNU,
    base256,
    build,
    entries_of,
    file,
    header,
    octal,
    padded,
    pax,
    reader_of,
    refused,
    scan,
    tar_ztoc,
)
from tests.support.scale import examples

Pieces = list[tuple[int, bytes]]
FORMS = ["old", "0.0", "0.1", "1.0"]
PIECES: Pieces = [
    (0, b"begin"),
    (5, b"next"),
    (4096, b"A" * 512),
    (9000, b""),
    (100_000, b"z" * 700),
]


def number(value: int) -> bytes:
    return octal(value, 12) if value < 1 << 33 else base256(value, 12)


def old_entries(pieces: Pieces, count: int) -> bytes:
    numbers = b"".join(number(offset) + number(len(data)) for offset, data in pieces)
    return numbers.ljust(24 * count, b"\0")


def sparse_file(form: str, name: bytes, size: int, pieces: Pieces) -> bytes:
    """The entry of a sparse file; see the module `soci_cli.ztoc.sparse`."""
    data = b"".join(data for _, data in pieces)
    numbers = [one for offset, data in pieces for one in (offset, len(data))]
    if form == "old":
        first, rest = pieces[:4], pieces[4:]
        tail = bytes(41) + old_entries(first, 4) + bytes([bool(rest)]) + number(size)
        blocks = [header(name, size=len(data), type_=b"S", magic=GNU, prefix=tail)]
        while rest:
            part, rest = rest[:21], rest[21:]
            blocks.append((old_entries(part, 21) + bytes([bool(rest)])).ljust(512, b"\0"))
        return b"".join(blocks) + padded(data)
    text = b",".join(b"%d" % one for one in numbers)
    records = [(b"GNU.sparse.numblocks", b"%d" % len(pieces)), (b"GNU.sparse.size", b"%d" % size)]
    if form == "0.0":
        keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
        records += [(keys[at % 2], b"%d" % one) for at, one in enumerate(numbers)]
        records += [] if pieces else [(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"0")]
        return pax(records) + file(name, data)
    if form == "0.1":
        version = [(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"1")]
        records += [*version, (b"GNU.sparse.name", name), (b"GNU.sparse.map", text)]
        return pax(records) + file(b"./GNUSparseFile.0/n", data)
    records = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.realsize", b"%d" % size),
    ]
    lines = b"".join(b"%d\n" % one for one in [len(pieces), *numbers])
    return pax(records) + file(b"GNUSparseFile.0/n", padded(lines) + data)


def content_of(size: int, pieces: Pieces) -> bytes:
    data = bytearray(size)
    for offset, piece in pieces:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


def read(ztoc: Ztoc, archive: bytes, name: bytes) -> bytes:
    return b"".join(LayerReader(ztoc, reader_of(archive)).read_file(FileTree(ztoc).find(name)))


def plain(archive: bytes) -> Ztoc:
    return decode_ztoc(build(archive, compression=Compression.UNCOMPRESSED).data)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "size, pieces",
    [
        (123_456, PIECES),
        (100_700, PIECES),
        (3 << 20, []),
        (0, []),
        (5000, [(0, bytes(range(250)) * 20)]),
        (1 << 20, [(at * 1000, b"%d" % at) for at in range(1000)]),
        (1 << 40, [(0, b"x"), (1 << 39, b"far")]),
    ],
    ids=["pieces", "data-at-the-end", "hole", "empty", "whole", "many", "huge"],
)
def test_each_form(form: str, size: int, pieces: Pieces) -> None:
    archive = file(b"a", b"1") + sparse_file(form, b"d/hole", size, pieces) + file(b"b", b"2") + END
    ztoc = plain(archive)
    assert read(ztoc, archive, b"a") == b"1"
    assert read(ztoc, archive, b"b") == b"2"
    entry = FileTree(ztoc).find(b"d/hole")
    assert (entry.name, entry.type, entry.uncompressed_size) == (b"d/hole", b"reg", size)
    assert not any(len(data) > 0 and not archive[entry.uncompressed_offset :].startswith(data[:1])
                   for _, data in pieces[:1])  # fmt: skip
    if size < 1 << 30:
        assert read(ztoc, archive, b"d/hole") == content_of(size, pieces)
    ztoc.files.check()
    # The stored bytes, for whoever looks for spans.
    number = [one.name for one in ztoc.files].index(b"d/hole")
    stored = ztoc.files.stored(ztoc.files.fields(number))
    assert stored == (entry.uncompressed_offset, sum(len(data) for _, data in pieces))


@examples(100)
@given(
    st.sampled_from(FORMS),
    st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=30)), max_size=60),
    st.integers(0, 50),
    st.lists(st.integers(0, 8000), max_size=20),
    st.integers(0, 2000),
    st.integers(0, 2000),
)
def test_any_map(
    form: str, gaps: Pieces, end: int, cuts: list[int], offset: int, length: int
) -> None:
    pieces: Pieces = []
    position = 0
    for gap, data in gaps:
        pieces.append((position + gap, data))
        position += gap + len(data)
    size = position + end
    archive = sparse_file(form, b"n", size, pieces) + file(b"b", b"2") + END
    # However the stream is cut.
    entries, _ = scan(archive, cuts)
    ztoc = plain(archive)
    assert entries == entries_of(ztoc)
    content = content_of(size, pieces)
    assert read(ztoc, archive, b"n") == content
    found = ztoc.files.sparse_map(ztoc.files.fields(0))
    assert found is not None
    offset = min(offset, size)
    length = min(length, size - offset)
    begin, until = found.before(offset), found.before(offset + length)
    data = b"".join(data for _, data in pieces)[begin:until]
    assert found.spread(offset, length, data) == content[offset : offset + length]


@pytest.mark.parametrize(
    "records, data",
    [
        ([(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"5")], b"hell"),
        ([(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"5")], b"hello!"),
        ([(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"4")], b"hello"),
        ([(b"GNU.sparse.map", b"2,3,1,2"), (b"GNU.sparse.size", b"9")], b"hello"),
        ([(b"GNU.sparse.map", b"0,5,9"), (b"GNU.sparse.size", b"9")], b"hello"),
        ([(b"GNU.sparse.map", b"-1,5"), (b"GNU.sparse.size", b"9")], b"hello"),
        ([(b"GNU.sparse.map", b"0,x"), (b"GNU.sparse.size", b"9")], b""),
        ([(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"-9")], b"hello"),
        ([(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.numblocks", b"2")], b"hello"),
        ([(b"GNU.sparse.numbytes", b"5"), (b"GNU.sparse.offset", b"0")], b"hello"),
        ([(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.offset", b"5")], b"hello"),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], b"2\n0\n1\n"),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], padded(b"-1\n")),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], padded(b"x\n")),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], b"1" * 2048),
        ([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], padded(b"1\n0\n5\n") + b"hi"),
        ([(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"0")], b"hello"),
    ],
)
def test_maps_that_do_not_fit_are_refused(records: list[tuple[bytes, bytes]], data: bytes) -> None:
    refused(pax(records) + file(b"x", data) + END)


def test_other_maps_that_are_refused() -> None:
    whole = sparse_file("old", b"n", 10, [(0, b"hello")])
    refused(header(b"n", size=5, type_=b"S") + padded(b"hello") + END)  # not GNU's header
    refused(whole[:515])
    refused(sparse_file("1.0", b"n", 10, [(0, b"hello")])[:1600])
    records = [(b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.size", b"5")]
    refused(pax(records) + header(b"d", type_=b"5") + END)
    many = b"%d\n" % (1 << 21) + b"0\n0\n" * (1 << 21)
    version = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
    refused(pax(version) + file(b"x", padded(many)) + END)


# What of it is in a zTOC.


def test_a_ztoc_with_sparse_files_is_refused_by_who_cannot_read_it() -> None:
    archive = sparse_file("1.0", b"n", 123_456, PIECES) + END
    data = build(archive, compression=Compression.UNCOMPRESSED).data
    ztoc = decode_ztoc(data)
    # The algorithm that readers without sparse files see is one that none has.
    assert ztoc.compression == Compression.UNCOMPRESSED
    assert data.count(bytes([Compression.UNCOMPRESSED | HOLES])) > 0
    head = read_head(data)
    assert (head.compressed_archive_size, head.files) == (len(archive), 1)
    (entry,) = ztoc.files
    records = dict(entry.xattrs)
    assert records[b"GNU.sparse.map"] == b"0,5,5,4,4096,512,100000,700"
    assert records[b"GNU.sparse.name"] == b"n"
    assert list(records) == sorted(records)
    # Without such files nothing is added.
    other = build(file(b"n") + END, compression=Compression.UNCOMPRESSED).data
    assert decode_ztoc(other).files.has_all_maps is False


def test_ztocs_of_other_tools() -> None:
    """They have the maps of PAX 0.0 and 0.1, but not those of 1.0."""
    archive = sparse_file("0.1", b"one", 123_456, PIECES)
    at = len(archive)
    archive += sparse_file("1.0", b"two", 123_456, PIECES) + file(b"after", b"it") + END
    one, two, after = plain(archive).files
    theirs = replace(two, xattrs=tuple(x for x in two.xattrs if x[0] != b"GNU.sparse.map"))
    digests = plain(archive).span_digests
    assert at < two.uncompressed_offset
    ztoc = decode_ztoc(
        tar_ztoc([one, theirs, after], size=len(archive), span_size=4 << 20, digests=digests)
    )
    assert read(ztoc, archive, b"one") == content_of(123_456, PIECES)
    assert read(ztoc, archive, b"after") == b"it"
    with pytest.raises(UnsupportedLayerError, match=r"a sparse file, whose map the zTOC does not"):
        read(ztoc, archive, b"two")
    assert ztoc.files.stored(ztoc.files.fields(1)) == (two.uncompressed_offset, 123_456)
    lying = replace(one, xattrs=((b"GNU.sparse.map", b"5,3,0,3"),))
    with pytest.raises(InvalidDataError, match="does not fit"):
        read(decode_ztoc(tar_ztoc([lying], size=len(archive))), archive, b"one")
    far = replace(one, uncompressed_offset=len(archive) - 10)
    with pytest.raises(InvalidDataError, match="outside"):
        decode_ztoc(tar_ztoc([far], size=len(archive))).files.sparse_map(
            decode_ztoc(tar_ztoc([far], size=len(archive))).files.fields(0)
        )
