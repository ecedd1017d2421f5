"""Layers that are opened together: looking into many takes few round trips."""

from __future__ import annotations

import threading

import pytest

from soci_cli.lazy import LazyImage
from soci_cli.lazy.layer_bytes import LayerBytes
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.oci import Descriptor
from soci_cli.parallel import Stop
from soci_cli.ztoc.layer import LayerFiles
from tests.lazy.fuse.tools import file
from tests.lazy.tools import LAYER, NoBytes, files_of

SMALL, LARGE = 1000, 50 << 20


class Far:
    """Opens layers once so many are being opened at the same time. Implements `Opener`."""

    def __init__(self, together: int) -> None:
        self.barrier = threading.Barrier(together, timeout=10)
        self.opened = 0

    def open(self, layer: Descriptor, stop: Stop) -> tuple[LayerFiles, LayerBytes]:
        self.barrier.wait()
        self.opened += 1
        return files_of(file("name", 0, 1)), NoBytes()

    def prefetch_ranges(self, layer: Descriptor, count: int) -> tuple[tuple[int, int], ...]:
        return ()


def image_of(far: Far, sizes: list[int]) -> LazyImage:
    return LazyImage("image", [LazyLayer(LAYER, far, "sha256:1", size) for size in sizes])


@pytest.mark.parametrize("count", [5, 32])
def test_all_small_ones_are_opened_together(count: int) -> None:
    far = Far(count)
    image_of(far, [SMALL] * count).open_all()
    assert far.opened == count


def test_large_ones_are_opened_a_few_at_a_time() -> None:
    far = Far(4)
    image_of(far, [LARGE] * 4).open_all()
    assert far.opened == 4
    with pytest.raises(threading.BrokenBarrierError):
        far = Far(5)
        far.barrier = threading.Barrier(5, timeout=0.2)
        image_of(far, [LARGE] * 5).open_all()


def test_what_is_looked_for_in_many_layers_opens_them_together() -> None:
    """The two topmost are opened alone: many files are there."""
    far = Far(1)
    image = image_of(far, [SMALL] * 20)
    assert image.lookup(image.root, b"name") is not None
    assert far.opened == 1
    far = Far(1)
    image = image_of(far, [SMALL] * 20)
    for number in (19, 18):
        assert image.layers[number].files
    assert far.opened == 2
    far.barrier = threading.Barrier(18, timeout=10)
    assert image.layers[17].files
    assert all(layer.is_open for layer in image.layers)
