"""Reading ranges of layers: right bytes, few requests, damage, and sources that ignore Range."""

from __future__ import annotations

import gzip
import io
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import IntegrityError, InvalidDataError
from soci_cli.lazy import Cache, Fetching, LayerSpans
from soci_cli.oci import Descriptor
from soci_cli.ztoc import FileMetadata, decode_ztoc
from tests.lazy.tools import LAYER, Place, fetching_at, spans_of
from tests.support.images import sha256
from tests.support.layers import (
    golden_layer,
    golden_ztoc,
    gz,
    gzip_ztoc,
    make_tar,
    mixed_data,
    scan,
    uncompressed,
)
from tests.support.scale import examples

WHOLE = make_tar([("a", mixed_data(700_000)), ("b", b"x" * 90_000), ("c", mixed_data(400_000, 2))])
PLAIN = WHOLE[: scan(WHOLE)[1]]
"""Without the padding after the end of the archive, which nobody reads."""
SMALL_SPAN = 1 << 16


@lru_cache
def layer(kind: str) -> bytes:
    """PLAIN in an archive, as a layer."""
    if kind == "members":
        return b"".join(gz(WHOLE[at : at + 300_000]) for at in range(0, len(WHOLE), 300_000))
    return {"plain": WHOLE, "gzip": gz(WHOLE), "stored": gz(WHOLE, 0)}[kind]


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[Fetching]:
    with fetching_at(tmp_path / "cache") as made:
        yield made


RANGES = st.lists(
    st.tuples(st.integers(0, len(PLAIN)), st.integers(0, 500_000)), min_size=1, max_size=6
)


@examples(60)
@given(
    kind=st.sampled_from(["plain", "gzip", "members", "stored"]),
    span_size=st.sampled_from([1 << 15, 1 << 16, 300_000, 1 << 22]),
    readahead=st.sampled_from([0, 1 << 17, 1 << 26]),
    ranges=RANGES,
    in_order=st.booleans(),
)
def test_any_ranges(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    span_size: int,
    readahead: int,
    ranges: list[tuple[int, int]],
    in_order: bool,
) -> None:
    root = tmp_path_factory.mktemp("ranges") / "cache"
    place = Place(layer(kind), ranges=not in_order)
    with fetching_at(root, readahead=readahead) as fetching:
        spans, _ = spans_of(layer(kind), fetching, place, span_size)
        for offset, length in ranges:
            length = min(length, len(PLAIN) - offset)
            assert spans.read(offset, length) == PLAIN[offset : offset + length]


def test_ranges_outside(fetching: Fetching) -> None:
    spans, place = spans_of(layer("gzip"), fetching)
    assert spans.read(10, 0) == b""
    for offset, length in ((-1, 5), (0, len(PLAIN) + 1), (len(PLAIN), 1)):
        with pytest.raises(InvalidDataError, match="there are no bytes"):
            spans.read(offset, length)
    assert not place.requests


def test_a_small_read_is_one_request_for_one_span(fetching: Fetching) -> None:
    spans, place = spans_of(layer("gzip"), fetching)
    assert spans.read(500_000, 100) == PLAIN[500_000:500_100]
    assert len(place.requests) == 1
    assert place.sent < len(layer("gzip")) // 8
    assert spans.read(500_100, 100) == PLAIN[500_100:500_200]
    assert len(place.requests) == 1


def test_neighbours_come_with_one_request(fetching: Fetching) -> None:
    spans, place = spans_of(layer("gzip"), fetching)
    assert spans.read(0, len(PLAIN)) == PLAIN
    assert len(place.requests) == 1


def test_a_small_gap_is_read_through(fetching: Fetching) -> None:
    spans, place = spans_of(layer("gzip"), fetching)
    spans.read(400_000, 10)
    assert spans.read(0, len(PLAIN)) == PLAIN
    assert len(place.requests) == 2


def test_large_gaps_and_large_reads_are_several_requests(tmp_path: Path) -> None:
    data = make_tar([("noise", zlib.compress(mixed_data(24 << 20), 1))])
    with fetching_at(tmp_path) as fetching:
        spans, place = spans_of(data, fetching, span_size=1 << 18)
        place.delay = 0.02
        size = scan(data)[1]
        assert spans.read(0, size) == data[:size]
        assert all(length <= 4 << 20 for _, length in place.requests)
        assert len(place.requests) < len(data) / (3 << 20)
        assert 2 <= place.busiest <= 4


def test_all_readers_of_a_span_cause_one_request(fetching: Fetching) -> None:
    spans, place = spans_of(layer("gzip"), fetching)
    place.delay = 0.05
    barrier = threading.Barrier(8)

    def read(_: int) -> bytes:
        barrier.wait()
        return spans.read(300_000, 1000)

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(read, range(8)))
    assert found == {PLAIN[300_000:301_000]}
    assert len(place.requests) == 1


def test_two_processes_cause_one_request(tmp_path: Path) -> None:
    # Two of these share nothing but the disk, as two processes do.
    place = Place(layer("gzip"))
    place.delay = 0.05
    with fetching_at(tmp_path) as one, fetching_at(tmp_path) as other:
        both = [spans_of(layer("gzip"), fetching, place)[0] for fetching in (one, other)]
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda spans: spans.read(0, len(PLAIN)), both))
    assert found == [PLAIN, PLAIN]
    assert place.sent <= len(layer("gzip")) + 100


def test_another_time_comes_from_the_disk(tmp_path: Path) -> None:
    for _ in range(2):
        with fetching_at(tmp_path) as fetching:
            spans, place = spans_of(layer("gzip"), fetching)
            assert spans.read(0, len(PLAIN)) == PLAIN
    assert not place.requests
    # Another zTOC of the layer has other spans.
    with fetching_at(tmp_path) as fetching:
        spans, place = spans_of(layer("gzip"), fetching, span_size=300_000)
        assert spans.read(0, len(PLAIN)) == PLAIN
    assert place.requests


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with Fetching(Cache(tmp_path / "file" / "cache", 1 << 30)) as fetching:
        spans, _ = spans_of(layer("gzip"), fetching)
        assert spans.read(0, len(PLAIN)) == PLAIN


def test_damage_on_the_way_is_fetched_again(fetching: Fetching) -> None:
    spans, place = spans_of(layer("gzip"), fetching)
    place.damage = {1000: 1}
    assert spans.read(0, len(PLAIN)) == PLAIN
    assert len(place.requests) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_damage_that_stays_is_an_error(fetching: Fetching, ranges: bool) -> None:
    data = layer("gzip")
    spans, place = spans_of(data, fetching, Place(data, ranges=ranges))
    place.damage = {len(data) // 2: 99}
    with pytest.raises(
        IntegrityError, match=r"span \d+ of layer sha256:.* in place: .* fetched twice"
    ):
        spans.read(0, len(PLAIN))
    # What is not damaged can be read, even what was asked for together with it.
    assert spans.read(0, 1000) == PLAIN[:1000]
    place.requests.clear()
    end = len(PLAIN) - 1000
    assert spans.read(end, 1000) == PLAIN[end:]
    assert not place.requests
    place.damage = {}
    assert spans.read(0, len(PLAIN)) == PLAIN


def test_a_source_that_ignores_range_is_read_on(fetching: Fetching) -> None:
    data = layer("gzip")
    spans, place = spans_of(data, fetching, Place(data, ranges=False))
    for at in range(100_000, len(PLAIN), 100_000):
        assert spans.read(at, 10) == PLAIN[at : at + 10]
    # The first showed it; the second goes through the whole layer, once.
    assert place.requests[1:] == [(0, len(data))]
    assert spans.read(0, len(PLAIN)) == PLAIN
    assert len(place.requests) == 2


def test_a_ztoc_of_another_layer(fetching: Fetching) -> None:
    with pytest.raises(InvalidDataError, match=r"layer sha256:.*but it has 1"):
        LayerSpans(
            fetching,
            Place(),
            LAYER,
            decode_ztoc(gzip_ztoc([], [(10, 0, 0, bytes(32768))])),
            sha256(b""),
        )


def test_spans_that_lie(tmp_path: Path) -> None:
    data = gz(PLAIN)
    digests = [b"sha256:" + sha256(data[10:]).removeprefix("sha256:").encode()]
    for claimed, said in ((1 << 40, "at most"), (len(PLAIN) + 1, "holds less")):
        ztoc = decode_ztoc(
            gzip_ztoc(
                [FileMetadata(b"x", b"reg", 0, claimed)],
                [(10, 0, 0, bytes(32768))],
                size=len(data),
                uncompressed_size=claimed,
                digests=digests,
            )
        )
        place = Place(data)
        descriptor = Descriptor(LAYER.media_type, sha256(data), len(data))
        with fetching_at(tmp_path) as fetching:
            spans = LayerSpans(fetching, place, descriptor, ztoc, sha256(b"z"))
            with pytest.raises(InvalidDataError, match=said):
                spans.read(0, claimed)
            with pytest.raises(InvalidDataError, match=said):
                spans.read(5, 1)
            assert spans.is_quiet


@pytest.mark.parametrize(
    "name", ["gnu-long.tar.gz", "pax.tar.gz", "plain-ustar.tar", "ustar-l6.tar.gz", "v7.tar.gz"]
)
def test_golden_layers_with_the_reference_ztocs(name: str, fetching: Fetching) -> None:
    data = golden_layer(name)
    ztoc = decode_ztoc(golden_ztoc(f"{name}.65536.ztoc"))
    descriptor = Descriptor(LAYER.media_type, sha256(data), len(data))
    spans = LayerSpans(fetching, Place(data), descriptor, ztoc, sha256(b"z"))
    whole = uncompressed(data)
    regular = [one for one in ztoc.files if one.has_data]
    for one in regular:
        start = one.uncompressed_offset
        assert (
            spans.read(start, one.uncompressed_size)
            == (whole[start : start + one.uncompressed_size])
        )
    assert io.BytesIO(whole).read(len(whole)) == (
        whole if name.endswith(".tar") else gzip.decompress(data)
    )
