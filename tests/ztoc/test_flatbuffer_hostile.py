"""Buffers that are damaged at random are read or refused, and nothing else."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.ztoc import decode_ztoc
from tests.support.layers import (
    entries_of,
)
from tests.support.scale import examples
from tests.ztoc.samples import VALID_GZIP, VALID_TAR, use_or_refuse


def test_the_valid_ones_are_valid() -> None:
    for data in (VALID_TAR, VALID_GZIP):
        entries_of(decode_ztoc(data))


valid = st.sampled_from([VALID_TAR, VALID_GZIP])
hostile = examples(1000)


@hostile
@given(
    valid, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_flipped_bytes(data: bytes, flips: list[tuple[int, int]]) -> None:
    buffer = bytearray(data)
    for at, value in flips:
        buffer[at % len(buffer)] = value
    use_or_refuse(bytes(buffer))


@hostile
@given(
    valid,
    st.integers(0, 10**6),
    st.sampled_from([0, 1, 4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, 0x10000])
    | st.integers(0, 0xFFFFFFFF),
)
def test_overwritten_words(data: bytes, at: int, word: int) -> None:
    # Offsets, counts and sizes are words; hit them squarely.
    buffer = bytearray(data)
    at = at % (len(buffer) // 4) * 4
    buffer[at : at + 4] = struct.pack("<I", word)
    use_or_refuse(bytes(buffer))


@hostile
@given(valid, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_spliced(data: bytes, start: int, end: int, to: int) -> None:
    start, end, to = (value % len(data) for value in (start, end, to))
    use_or_refuse(data[:to] + data[start:end] + data[to:])
    use_or_refuse(data[: min(start, end)] + data[max(start, end) :])
    use_or_refuse((data[:to] + data[start:end] + data[to:])[: len(data)])


@pytest.mark.parametrize("data", [VALID_TAR, VALID_GZIP], ids=["tar", "gzip"])
def test_truncated(data: bytes) -> None:
    for length in range(len(data)):
        use_or_refuse(data[:length])
        use_or_refuse(data[length:])


@examples(200)
@given(st.binary(max_size=200))
def test_noise(data: bytes) -> None:
    use_or_refuse(data)
