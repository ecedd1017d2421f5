"""Layers without a zTOC, read from their file in the cache: what waits and what does not."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path

import pytest

from soci_cli.errors import InvalidDataError
from soci_cli.lazy import Cache, Fetcher, Fetching
from soci_cli.lazy.cache import device_key
from soci_cli.lazy.whole import WholeLayer
from soci_cli.oci import Descriptor
from soci_cli.parallel import Stop
from soci_cli.progress import SilentObserver
from tests.lazy.tools import LAYER, Place, eventually, read_now
from tests.support.images import sha256
from tests.support.layers import gz, make_tar, mixed_data

PLAIN = make_tar([("a", mixed_data(5_000_000)), ("b", b"x" * 90_000)])
PACKED = gz(PLAIN)


def opened(root: Path, fetcher: Fetcher | None = None) -> tuple[WholeLayer, Place, Path]:
    place = Place(PACKED)
    fetching = Fetching(Cache(root, 1 << 30), fetcher=fetcher)
    descriptor = Descriptor(LAYER.media_type, sha256(PACKED), len(PACKED))
    layer = WholeLayer(fetching, place, descriptor, sha256(PLAIN), SilentObserver(), Stop())
    return layer, place, root / device_key(descriptor.digest, "")


def test_reading(tmp_path: Path) -> None:
    layer, place, _ = opened(tmp_path)
    with layer:
        for offset, length in ((0, 100), (4_194_000, 1000), (5_000_000, 1), (0, 5_090_000)):
            expected = PLAIN[offset : offset + length]
            assert layer.read(offset, length, lambda: b"file") == expected
            assert b"".join(layer.pieces(offset, length)) == expected
            assert read_now(layer, offset, length) == expected
        assert read_now(layer, 7, 0) == layer.read(7, 0) == b"".join(layer.pieces(7, 0)) == b""
        for offset, length in ((-1, 5), (len(PLAIN), 1)):
            for read in (layer.read, partial(read_now, layer), lambda *at: list(layer.pieces(*at))):
                with pytest.raises(InvalidDataError, match="there are no bytes"):
                    read(offset, length)
    assert len(place.requests) == 1


def test_damage_is_mended_by_who_may_wait(tmp_path: Path) -> None:
    layer, _, path = opened(tmp_path)
    layer.close()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    changed = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(changed, changed))  # as a disk that fails, and not somebody who writes
    layer, place, _ = opened(tmp_path)
    with layer:
        assert read_now(layer, 5_000_000, 1000) is None  # not checked yet, which takes long
        assert layer.read(5_000_000, 1000) == PLAIN[5_000_000:5_001_000]
        assert read_now(layer, 5_000_000, 1000) == PLAIN[5_000_000:5_001_000]
        assert read_now(layer, 0, 1000) is None
        assert not place.requests
        assert layer.read(0, 1000) == PLAIN[:1000]
        assert len(place.requests) == 1
        assert read_now(layer, 0, 1000) == PLAIN[:1000]
        os.truncate(path, 100)
        assert read_now(layer, 0, 1000) is None
        assert layer.read(0, 1000) == PLAIN[:1000]
        os.truncate(path, 100)
        assert b"".join(layer.pieces(0, 1000)) == PLAIN[:1000]


def test_mending_holds_up_nobody(tmp_path: Path) -> None:
    """While damaged layers are made again, which hangs, another is read by the threads they share."""
    with Fetcher() as fetcher:
        layers = [opened(tmp_path / str(number), fetcher) for number in range(7)]
        for _, place, path in layers[:6]:
            place.gate = threading.Semaphore(0)
            with path.open("r+b") as file:
                file.write(b"damage")
        damaged = [layer.submit(0, 1000) for layer, _, _ in layers[:6]]
        eventually(lambda: all(len(place.requests) == 2 for _, place, _ in layers[:6]))
        assert layers[6][0].submit(0, 1000).result(30) == PLAIN[:1000]
        for _, place, _ in layers[:6]:
            assert place.gate is not None
            place.gate.release()
        assert [one.result(30) for one in damaged] == [PLAIN[:1000]] * 6
