from __future__ import annotations

import hashlib
import io

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import IntegrityError, InvalidDataError
from soci_cli.oci.digest import (
    VerifyingReader,
    algorithm_of,
    digest_of,
    encoded_of,
    new_hash,
    parse_digest,
)

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class OnlyRead:
    """A stream without readinto that gives little at a time."""

    def __init__(self, data: bytes, step: int = 3) -> None:
        self._stream = io.BytesIO(data)
        self._step = step

    def read(self, n: int, /) -> bytes:
        return self._stream.read(min(n, self._step))


def test_digest_of() -> None:
    assert digest_of(b"") == EMPTY
    assert parse_digest(EMPTY) == EMPTY
    assert algorithm_of(EMPTY) == "sha256"
    assert encoded_of(EMPTY) == EMPTY[7:]


def test_sha512() -> None:
    digest = "sha512:" + hashlib.sha512(b"x").hexdigest()
    assert parse_digest(digest) == digest
    hasher = new_hash(digest)
    hasher.update(b"x")
    assert hasher.hexdigest() == encoded_of(digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256",
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY + "\n",
        EMPTY.upper(),
        EMPTY.replace("sha256", "sha512"),
        "md5:" + "0" * 32,
        "sha256:" + "٠" * 64,
        "sha256:../../" + "0" * 58,
    ],
)
def test_bad_digests(text: str) -> None:
    for function in (parse_digest, algorithm_of, encoded_of, new_hash):
        with pytest.raises(InvalidDataError, match="not a digest"):
            function(text)


@given(st.text())
def test_parse_digest_only_refuses(text: str) -> None:
    with pytest.raises(InvalidDataError) as info:
        parse_digest(text)
    assert "\n" not in str(info.value)


@given(st.binary(max_size=200), st.integers(1, 50), st.integers(1, 50))
def test_reader_hands_out_what_was_promised(data: bytes, n: int, step: int) -> None:
    for stream in (io.BytesIO(data), OnlyRead(data, step)):
        reader = VerifyingReader(stream, digest_of(data), len(data), "blob")
        parts = []
        while part := reader.read(n):
            parts.append(part)
        assert b"".join(parts) == data
        assert reader.verified
        assert reader.read() == b""


@given(st.binary(max_size=200), st.integers(1, 50), st.integers(1, 50))
def test_readinto(data: bytes, n: int, step: int) -> None:
    for stream in (io.BytesIO(data), OnlyRead(data, step)):
        reader = VerifyingReader(stream, digest_of(data), len(data), "blob")
        out = bytearray()
        buffer = bytearray(n)
        while count := reader.readinto(buffer):
            out += buffer[:count]
        assert bytes(out) == data


def test_zero_length_reads_touch_nothing() -> None:
    reader = VerifyingReader(io.BytesIO(b"abc"), digest_of(b"abc"), 3, "blob")
    assert reader.read(0) == b""
    assert reader.readinto(bytearray()) == 0
    assert reader.read(None) == b"abc"
    assert reader.readable()


@given(st.binary(min_size=1, max_size=100), st.binary(min_size=1, max_size=5), st.integers(1, 120))
def test_too_long(data: bytes, extra: bytes, n: int) -> None:
    reader = VerifyingReader(io.BytesIO(data + extra), digest_of(data), len(data), "layer x of y")
    with pytest.raises(IntegrityError, match=r"^layer x of y: more than the promised"):
        while reader.read(n):
            pass
    with pytest.raises(IntegrityError, match="more than"):
        reader.read(1)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_too_short(data: bytes, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(data) - 1))
    reader = VerifyingReader(io.BytesIO(data[:cut]), digest_of(data), len(data), "blob")
    with pytest.raises(IntegrityError, match=f"ends after {cut} of {len(data)} bytes"):
        reader.finish()


@given(st.binary(min_size=1, max_size=100), st.data())
def test_wrong_bytes_are_never_handed_out_to_the_end(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    bad = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    reader = VerifyingReader(io.BytesIO(bad), digest_of(data), len(data), "blob")
    got = 0
    with pytest.raises(IntegrityError, match="has digest") as info:
        while part := reader.read(7):
            got += len(part)
    assert got < len(data)
    assert not reader.verified
    assert "\n" not in str(info.value)


def test_reader_that_stops_at_the_size_has_verified_bytes() -> None:
    reader = VerifyingReader(io.BytesIO(b"abcd"), digest_of(b"abc"), 3, "blob")
    assert reader.read(3) == b"abc"
    assert reader.verified
    with pytest.raises(IntegrityError, match="more than"):
        reader.finish()


def test_empty_blob_with_a_wrong_digest() -> None:
    reader = VerifyingReader(io.BytesIO(b""), digest_of(b"x"), 0, "blob")
    with pytest.raises(IntegrityError, match="has digest"):
        reader.read()


def test_bad_promise() -> None:
    with pytest.raises(InvalidDataError):
        VerifyingReader(io.BytesIO(b""), "sha256:x", 0, "blob")
