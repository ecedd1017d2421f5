"""Layers with a span that is too large to be read lazily: gzip streams with one block of that size."""

from __future__ import annotations

from pathlib import Path

import pytest

from soci_cli.index.inspect import inspect
from soci_cli.lazy.whole import WholeLayer
from soci_cli.targets import open_source, parse_place
from soci_cli.ztoc import decode_ztoc, zinfo
from soci_cli.ztoc.zinfo import too_large
from tests.lazy.tools import opened
from tests.support.images import (
    LayoutMaker,
    Listener,
    check_complete,
    options,
    run_convert,
    tar_of,
)
from tests.support.layers import build, gz, mixed_data

# zlib ends a block after so many symbols, each up to 258 bytes: this is one of 4 MiB.
HUGE = gz(tar_of({"zeros": bytes(4 << 20), "small": b"s"}))
FINE = gz(tar_of({"fine": mixed_data(300_000)}))


def image(root: Path) -> LayoutMaker:
    maker = LayoutMaker(root)
    maker.tag(maker.manifest([maker.blob(FINE), maker.blob(HUGE)]))
    return maker


def test_converting_names_the_layer_and_leaves_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = image(tmp_path / "image")
    run_convert(maker.root, tmp_path / "lazy", options(span_size=1 << 16))
    monkeypatch.setattr(zinfo, "MAX_SPAN", 1 << 20)
    listener = Listener()
    result = run_convert(maker.root, tmp_path / "d", options(span_size=1 << 16), listener)
    layers = result.platforms[0].layers
    assert [layer.outcome for layer in layers] == ["built", "skipped"]
    (note,) = listener.notes
    assert layers[1].layer.digest in note
    assert "a span of it has" in note
    assert layers[1].layer.digest in check_complete(tmp_path / "d")
    # So it is where the zTOC is there from before.
    again = run_convert(tmp_path / "lazy", tmp_path / "lazy", options(span_size=1 << 16))
    assert [layer.outcome for layer in again.platforms[0].layers] == ["reused", "skipped"]
    with opened(f"oci:{tmp_path / 'd'}", tmp_path / "cache") as found:
        assert found.read(found.find(b"small"), 0, 10) == b"s"
        assert [layer.indexed for layer in found.layers] == [True, False]


def test_a_ztoc_with_such_a_span_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tools make them; the layer is then read whole, as one without a zTOC."""
    maker = image(tmp_path / "image")
    files = options(span_size=1 << 16, prefetch_files=("zeros",))
    run_convert(maker.root, tmp_path / "lazy", files)
    monkeypatch.setattr(zinfo, "MAX_SPAN", 1 << 20)
    with opened(f"oci:{tmp_path / 'lazy'}", tmp_path / "cache") as found:
        assert found.read(found.find(b"small"), 0, 10) == b"s"
        assert found.read(found.find(b"zeros"), 0, 5 << 20) == bytes(4 << 20)
        assert isinstance(found.layers[1].archive, WholeLayer)
        assert not isinstance(found.layers[0].archive, WholeLayer)
        assert found.layers[1].prefetch_ranges() == ()
    source = open_source(parse_place(f"oci:{tmp_path / 'lazy'}"), tmp_path / "store")
    with source:
        facts = [layer.ztoc for layer in inspect(source).manifests[0].layers]
    assert [one is not None and bool(too_large(one.largest_span)) for one in facts] == [False, True]


def test_the_largest_span() -> None:
    built = build(HUGE, span_size=1 << 16)
    assert built.largest_span == decode_ztoc(built.data).largest_span > 4 << 20
    built = build(FINE, span_size=1 << 16)
    assert built.largest_span == decode_ztoc(built.data).largest_span < 1 << 18
