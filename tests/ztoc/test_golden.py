"""What the reference answers for the golden layers, byte for byte."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import pytest

from soci_cli.errors import InvalidDataError
from soci_cli.ztoc import BuiltZtoc, Compression, build_ztoc, builder, decode_ztoc
from soci_cli.ztoc.codec import read_head
from tests.support.layers import (
    BUILD_TOOL,
    GOLDEN,
    Pieces,
    build,
    entries_of,
    golden_layer,
    golden_rows,
    golden_ztoc,
)

ROWS = golden_rows()
ACCEPTED = [row for row in ROWS if "refused" not in row]
# A PAX global header is passed over where the reference refuses the layer.
REFUSED = [row for row in ROWS if "refused" in row and row["layer"] != "bad-pax-global.tar.gz"]
ZTOCS = sorted(path.name for path in (GOLDEN / "ztocs").iterdir())
CHUNKED = [row for row in ACCEPTED if row["span_size"] == 65536]


def build_row(row: dict[str, Any], **options: Any) -> BuiltZtoc:
    return build(
        golden_layer(row["layer"]),
        span_size=row["span_size"],
        compression=compression_of(row["layer"]),
        build_tool_identifier=BUILD_TOOL,
        **options,
    )


def compression_of(layer: str) -> int:
    return Compression.UNCOMPRESSED if layer.endswith(".tar") else Compression.GZIP


def name_of(row: dict[str, Any]) -> str:
    return f"{row['layer']}-{row['span_size']}"


def check_answer(built: BuiltZtoc, row: dict[str, Any]) -> None:
    assert built.digest == row["ztoc_digest"]
    assert len(built.data) == row["ztoc_size"]
    assert built.spans == row["max_span_id"] + 1
    assert built.files == row["files"]
    assert built.layer_size == row["compressed_archive_size"]
    assert built.uncompressed_size == row["uncompressed_archive_size"]


class Sliced:
    """Bytes that note which parts are looked at."""

    def __init__(self, data: bytes) -> None:
        self.looked_at = 0
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, part: slice, /) -> bytes:
        self.looked_at += len(self._data[part])
        return self._data[part]


@pytest.mark.parametrize("name", ZTOCS)
def test_the_head_says_the_same(name: str) -> None:
    whole = decode_ztoc(golden_ztoc(name))
    sliced = Sliced(golden_ztoc(name))
    head = read_head(sliced)
    assert (head.build_tool_identifier, head.compressed_archive_size, head.span_size) == (
        whole.build_tool_identifier,
        whole.compressed_archive_size,
        whole.spans.span_size,
    )
    assert (head.spans, head.files) == (len(whole.span_digests), len(whole.files))
    assert sliced.looked_at < 500


@pytest.mark.parametrize("cut", range(0, 400, 13))
def test_a_head_that_is_cut_off(cut: int) -> None:
    data = golden_ztoc(ZTOCS[0])
    for damaged in (data[:cut], data[:cut] + bytes(len(data) - cut), data[:cut] + b"\xff" * 400):
        with contextlib.suppress(InvalidDataError):
            read_head(damaged)


def test_rows_are_complete() -> None:
    layers = {path.name for path in (GOLDEN / "layers").iterdir()}
    assert {row["layer"] for row in ROWS} == layers - {"ustar.tar.zst"}
    assert {row["layer"] for row in REFUSED} == {
        name for name in layers if name.startswith("bad-") and name != "bad-pax-global.tar.gz"
    } | {"trailing-garbage.tar.gz", "trailing-zeros.tar.gz"}


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize("row", ACCEPTED, ids=name_of)
def test_same_answer(row: dict[str, Any]) -> None:
    built = build_row(row)
    check_answer(built, row)
    assert built.digest == f"sha256:{hashlib.sha256(built.data).hexdigest()}"


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize("row", REFUSED, ids=name_of)
def test_refused(row: dict[str, Any]) -> None:
    with pytest.raises(InvalidDataError):
        build_row(row)


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize("name", ZTOCS)
def test_same_bytes(name: str) -> None:
    layer, span_size, _ = name.rsplit(".", 2)
    built = build_row({"layer": layer, "span_size": int(span_size)})
    expected = golden_ztoc(name)
    different = next(
        (i for i, (a, b) in enumerate(zip(built.data, expected, strict=False)) if a != b), None
    )
    assert different is None
    assert built.data == expected


def test_global_header_is_passed_over() -> None:
    built = build_row({"layer": "bad-pax-global.tar.gz", "span_size": 0})
    (entry,) = entries_of(decode_ztoc(built.data))
    assert (entry.name, entry.type, entry.uncompressed_size) == (b"f", b"reg", 1)
    assert entry.uncompressed_offset == 3 * 512
    assert entry.xattrs == ()


@pytest.mark.parametrize("row", CHUNKED, ids=name_of)
def test_decoded(row: dict[str, Any]) -> None:
    ztoc = decode_ztoc(build_row(row).data)
    assert ztoc.build_tool_identifier == BUILD_TOOL.encode()
    assert ztoc.version == b"0.9"
    assert ztoc.compression == compression_of(row["layer"])
    assert ztoc.compressed_archive_size == row["compressed_archive_size"]
    assert ztoc.uncompressed_archive_size == row["uncompressed_archive_size"]
    assert len(ztoc.files) == len(entries_of(ztoc)) == row["files"]
    assert len(ztoc.spans) == len(ztoc.span_digests) == row["max_span_id"] + 1
    layer = golden_layer(row["layer"])
    for span, digest in enumerate(ztoc.span_digests):
        start, end = ztoc.spans.compressed_range(span)
        assert digest.decode() == f"sha256:{hashlib.sha256(layer[start:end]).hexdigest()}"


@pytest.mark.parametrize("step", [1, 7, 513])
@pytest.mark.parametrize(
    "layer", ["ustar-l6.tar.gz", "multi-member-empty.tar.gz", "pax.tar.gz", "plain-ustar.tar"]
)
def test_stream_in_odd_pieces(layer: str, step: int) -> None:
    row = next(r for r in CHUNKED if r["layer"] == layer)
    data = golden_layer(layer)
    received = bytearray()
    advanced: list[int] = []
    built = build_ztoc(
        Pieces(data, step),
        span_size=65536,
        compression=compression_of(layer),
        build_tool_identifier=BUILD_TOOL,
        sink=received.extend,
        advance=advanced.append,
    )
    check_answer(built, row)
    assert received == data
    assert sum(advanced) == len(data)


@pytest.mark.usefixtures("zlib_choice")
@pytest.mark.parametrize(
    ("input_size", "output_size"), [(1, 40000), (7, 1), (509, 32768), (65536, 100_003)]
)
@pytest.mark.parametrize("span_size", [0, 4096, 65536])
@pytest.mark.parametrize(
    "layer", ["pax.tar.gz", "v7.tar.gz", "multi-member-empty.tar.gz", "stored-l0.tar.gz"]
)
def test_buffers_of_any_size(
    layer: str, span_size: int, input_size: int, output_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether a block, a span or a header ends in a buffer or between two makes no difference.
    if layer not in ("pax.tar.gz", "v7.tar.gz"):
        input_size, output_size = max(input_size, 61), max(output_size, 4093)
    monkeypatch.setattr(builder, "_INPUT_SIZE", input_size)
    monkeypatch.setattr(builder, "_OUTPUT_SIZE", output_size)
    row = next(r for r in ACCEPTED if r["layer"] == layer and r["span_size"] == span_size)
    received = bytearray()
    check_answer(build_row(row, sink=received.extend), row)
    assert received == golden_layer(layer)


@pytest.mark.parametrize("input_size", [19, 512, 1000, 4096])
@pytest.mark.parametrize("span_size", [4096, 65536])
def test_plain_buffers_of_any_size(
    span_size: int, input_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "_INPUT_SIZE", input_size)
    row = next(
        r for r in ACCEPTED if r["layer"] == "plain-ustar.tar" and r["span_size"] == span_size
    )
    check_answer(build_row(row), row)
