"""Sparse files of images: what is stored is fetched, holes are zeros."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import SociError
from soci_cli.lazy.erofs.tree import merged_tree
from soci_cli.lazy.fuse.filesystem import ROOT, MergedTree
from soci_cli.lazy.sparse import SparseBytes
from soci_cli.ztoc import decode_ztoc
from soci_cli.ztoc.sparse import SparseMap
from tests.lazy.fuse.tools import Bytes, content
from tests.lazy.tools import entry, image_of, opened, read_now
from tests.support.images import LayoutMaker, options, run_convert
from tests.support.layers import END, file, gz, mixed_data, tar_ztoc
from tests.ztoc.test_sparse import FORMS, content_of, sparse_file


class Near(Bytes):
    """As `Bytes`, of which nothing is fetched before it is read."""

    def ahead(self, ranges: Any, name: Any = None) -> Any:
        return lambda offset: None


def test_reading() -> None:
    archive = Near()
    pieces = SparseMap(10_000, [100, 5000, 9990], [50, 1000, 10])
    sparse = SparseBytes(archive, 512, pieces)
    whole = bytearray(10_000)
    stored = content(512, 1060)
    whole[100:150], whole[5000:6000], whole[9990:] = stored[:50], stored[50:1050], stored[1050:]
    archive.go()
    for offset, length in ((0, 10_000), (0, 50), (120, 10), (140, 5000), (200, 4000), (9980, 20)):
        expected = bytes(whole[offset : offset + length])
        assert read_now(sparse, offset, length) == expected
        assert sparse.submit(offset, length).result() == expected
        assert sparse.read(offset, length) == expected
    assert b"".join(sparse.pieces(90, 9000)) == whole[90:9090]
    # What is not here is fetched in one piece, holes never.
    archive.fetched.clear()
    archive.far = range(512, 2000)
    assert read_now(sparse, 0, 10_000) is None
    assert read_now(sparse, 200, 4000) == bytes(4000)
    assert sparse.submit(0, 10_000, lambda: b"name").result() == whole
    assert archive.fetched == [(512, 1060, b"name")]
    archive.far, archive.broken = range(0), range(512, 600)
    with pytest.raises(SociError, match="damaged"):
        sparse.submit(0, 200).result()


@pytest.mark.parametrize("form", FORMS)
def test_lazily_in_an_image(tmp_path: Path, form: str) -> None:
    data = mixed_data(600_000)
    pieces = [(at * 3, data[at : at + 50_000]) for at in range(0, 600_000, 50_000)]
    size = 2_000_000
    layer = file(b"a", b"1") + sparse_file(form, b"hole", size, pieces) + file(b"b", b"2") + END
    maker = LayoutMaker(tmp_path / "image")
    maker.tag(maker.manifest([maker.blob(gz(layer))]))
    run_convert(maker.root, tmp_path / "d", options(span_size=1 << 16))
    whole = content_of(size, pieces)
    rng = random.Random(form)
    with opened(f"oci:{tmp_path / 'd'}", tmp_path / "cache") as image:
        hole = image.find(b"hole")
        assert image.layers[0].indexed
        for _ in range(30):
            offset, length = rng.randrange(size), rng.randrange(300_000)
            assert image.read(hole, offset, length) == whole[offset : offset + length]
        files = image.children(image.root)
        assert {one.path: b"".join(found) for one, found in image.read_all(files)} == {
            b"a": b"1",
            b"b": b"2",
            b"hole": whole,
        }
        tree = MergedTree(image)
        found = tree.content(tree.lookup(ROOT, b"hole"))
        assert found.size == size
        assert found.archive.read(found.offset + 100, 500_000) == whole[100:500_100]


def test_erofs_leaves_them_to_fuse() -> None:
    one = entry("x", xattrs=((b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"5")))
    with pytest.raises(SociError, match="sparse"):
        merged_tree([decode_ztoc(tar_ztoc([one]))], [b"tag"])


def test_a_map_that_the_ztoc_does_not_have() -> None:
    """Its file cannot be read, others can."""
    version = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    image = image_of([entry("x", size=7, xattrs=version), entry("y")])
    assert image.node(image.find(b"x")).size == 7
    with pytest.raises(SociError, match="sparse file, whose map"):
        image.read(image.find(b"x"), 0, 7)
    tree = MergedTree(image)
    with pytest.raises(SociError, match="sparse file, whose map"):
        tree.content(tree.lookup(ROOT, b"x"))
    assert tree.content(tree.lookup(ROOT, b"y")).size == 0
