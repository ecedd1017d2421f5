"""Prefetch artifacts: which spans, of which layer. The golden case is in test_golden.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soci_cli.errors import UsageError
from soci_cli.index.prefetch import merge_spans, read_prefetch_list
from soci_cli.oci.media_types import OCI_LAYER
from tests.support.images import (
    GOLDEN,
    Json,
    LayoutMaker,
    Listener,
    blob_json,
    check_complete,
    noise,
    options,
    read_index,
    run_convert,
    soci_entries,
    tar_of,
)

PREFETCH = "application/vnd.amazon.soci.prefetch.v1+json"
SPAN = 1 << 14


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Two plain layers, so that spans are slices of 16 KiB: each header takes 512 bytes."""
    lower = {"low": noise(1, SPAN), "both": noise(2, 3 * SPAN), "end": noise(3, 100)}
    upper = {"both": noise(4, 100), "pad": noise(5, 2 * SPAN), "./dir/../dir/f": b"x", "last": b"y"}
    maker = LayoutMaker(tmp_path / "image")
    maker.tag(maker.manifest([maker.blob(tar_of(files), OCI_LAYER) for files in (lower, upper)]))
    return maker.root


def artifacts(root: Path) -> list[Json]:
    soci = blob_json(root, soci_entries(read_index(root))[0])
    found = [layer for layer in soci["layers"] if layer["mediaType"] == PREFETCH]
    # They stand behind the zTOCs.
    assert soci["layers"][len(soci["layers"]) - len(found) :] == found
    return found


def spans_of(root: Path, *files: str) -> list[list[tuple[int, int]]]:
    listener = Listener()
    run_convert(
        root.parent / "image", root, options(span_size=SPAN, prefetch_files=files), listener
    )
    check_complete(root)
    assert listener.notes == []
    result = []
    for artifact in artifacts(root):
        document = blob_json(root, artifact)
        assert list(document) == ["version", "prefetch_spans"]
        result.append(
            [(span["start_span"], span["end_span"]) for span in document["prefetch_spans"]]
        )
    return result


def test_the_topmost_layer_counts(tmp_path: Path, image: Path) -> None:
    assert spans_of(tmp_path / "d", "both") == [[(0, 0)]]
    (artifact,) = artifacts(tmp_path / "d")
    layers = blob_json(image, json.loads((image / "index.json").read_bytes())["manifests"][0])
    key = "com.amazon.soci.image-layer-digest"
    assert artifact["annotations"] == {key: layers["layers"][1]["digest"]}


@pytest.mark.parametrize(
    ("files", "spans"),
    [
        (["low"], [[(0, 1)]]),
        (["low", "end"], [[(0, 1), (4, 4)]]),
        (["/low"], [[(0, 1)]]),
        (["low", "low", "/low", "./low"], [[(0, 1)]]),
        (["dir/f"], [[(2, 2)]]),
        (["/dir//f"], [[(2, 2)]]),
        (["low", "last"], [[(0, 1)], [(2, 2)]]),
        (["pad", "both"], [[(0, 2)]]),
    ],
)
def test_spans(
    tmp_path: Path, image: Path, files: list[str], spans: list[list[tuple[int, int]]]
) -> None:
    assert spans_of(tmp_path / "d", *files) == spans


def test_order_and_repetition_do_not_matter(tmp_path: Path, image: Path) -> None:
    one = options(span_size=SPAN, prefetch_files=("low", "last", "end"))
    two = options(span_size=SPAN, prefetch_files=("end", "low", "low", "last"))
    assert run_convert(image, tmp_path / "a", one).descriptor == (
        run_convert(image, tmp_path / "b", two).descriptor
    )
    assert not run_convert(image, tmp_path / "a", two).changed


def test_a_missing_file_is_noted(tmp_path: Path, image: Path) -> None:
    listener = Listener()
    chosen = options(span_size=SPAN, prefetch_files=("low", "/no/such"))
    run_convert(image, tmp_path / "d", chosen, listener)
    assert listener.notes == ["prefetch file /no/such is in no indexed layer"]
    assert len(artifacts(tmp_path / "d")) == 1


def test_without_any_file_there_is_no_artifact(tmp_path: Path, image: Path) -> None:
    run_convert(image, tmp_path / "d", options(span_size=SPAN, prefetch_files=("/no/such",)))
    assert artifacts(tmp_path / "d") == []


def test_prefetch_comes_and_goes_with_the_flag(tmp_path: Path, image: Path) -> None:
    plain = run_convert(image, tmp_path / "d", options(span_size=SPAN))
    chosen = options(span_size=SPAN, prefetch_files=("low",))
    with_it = run_convert(tmp_path / "d", tmp_path / "d", chosen)
    assert with_it.changed
    assert {layer.outcome for layer in with_it.platforms[0].layers} == {"reused"}
    assert run_convert(tmp_path / "d", tmp_path / "d", options(span_size=SPAN)).descriptor == (
        plain.descriptor
    )


def test_a_gzip_layer(tmp_path: Path) -> None:
    chosen = options(prefetch_files=("opt/big.txt", "opt/big2.txt"))
    run_convert(GOLDEN / "images" / "single-gzip", tmp_path / "d", chosen)
    (artifact,) = artifacts(tmp_path / "d")
    spans = blob_json(tmp_path / "d", artifact)["prefetch_spans"]
    assert len(spans) == 1  # the two files are neighbours, so their spans touch
    assert spans[0]["end_span"] - spans[0]["start_span"] > 5


@pytest.mark.parametrize(
    ("spans", "merged"),
    [
        ([], []),
        ([(3, 4), (0, 1)], [(0, 1), (3, 4)]),
        ([(0, 1), (2, 3)], [(0, 3)]),
        ([(0, 5), (1, 2)], [(0, 5)]),
        ([(2, 2), (2, 2)], [(2, 2)]),
    ],
)
def test_merging(spans: list[tuple[int, int]], merged: list[tuple[int, int]]) -> None:
    assert merge_spans(spans) == merged


@pytest.mark.parametrize("text", ["{}", "[1]", "no", '"x"', "[" * 100_000, ""])
def test_a_list_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"list\.json"):
        read_prefetch_list(path)


def test_reading_a_list(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('["/a", "ü"]')
    assert read_prefetch_list(path) == ["/a", "ü"]
    with pytest.raises(UsageError, match=r"none\.json"):
        read_prefetch_list(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_prefetch_list(tmp_path)
