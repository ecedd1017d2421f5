"""Devices made of spans: while a layer is read, by several at once, and where something goes wrong."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import IntegrityError, RegistryError, StorageError
from soci_cli.lazy import Cache, Fetching
from soci_cli.lazy.cache import device_key
from soci_cli.lazy.completing import complete_all
from soci_cli.lazy.devices.complete import open_device
from soci_cli.lazy.devices.growing import SpanDevice
from soci_cli.lazy.spans import LayerSpans
from soci_cli.oci import Descriptor
from soci_cli.progress import SilentObserver
from soci_cli.ztoc import Compression, build_ztoc, decode_ztoc
from tests.lazy.tools import (
    LAYER,
    Place,
    eventually,
    fetching_at,
    files_of,
    opened_layer,
    read_now,
)
from tests.support.images import sha256
from tests.support.layers import gz, make_tar, mixed_data

FILES = [(f"d/{number}", mixed_data(number * 977 % 60_000)) for number in range(60)]
PLAIN = make_tar(FILES) + bytes(7000)
PACKED = gz(PLAIN)
SPAN = 1 << 16


class Layer:
    """A layer of a place in memory, and where its device is."""

    def __init__(
        self, fetching: Fetching, packed: bytes = PACKED, diff_id: str | None = sha256(PLAIN)
    ) -> None:
        is_gzip = packed[:2] == b"\x1f\x8b"
        kind = Compression.GZIP if is_gzip else Compression.UNCOMPRESSED
        built = build_ztoc(io.BytesIO(packed), span_size=SPAN, compression=kind)
        self.place = Place(packed)
        source: Any = self.place
        about = Descriptor(LAYER.media_type, sha256(packed), len(packed))
        ztoc = decode_ztoc(built.data)
        self.size = ztoc.uncompressed_archive_size
        self.spans = LayerSpans(fetching, source, about, ztoc, built.digest, lambda: diff_id)
        self.cache = fetching.cache
        self.key = device_key(about.digest, built.digest)

    def check(self) -> None:
        """All of it can be read, and the device is whole."""
        assert self.spans.read(0, self.size) == PLAIN[: self.size]
        device = open_device(self.cache, self.key)
        assert device is not None
        assert b"".join(device.stream()) == PLAIN

    def files(self) -> list[str]:
        root = self.cache.root
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("packed", [PACKED, PLAIN, gz(PLAIN[:99_999]) + gz(PLAIN[99_999:])])
def test_of_what_is_elsewhere(fetching: Fetching, packed: bytes) -> None:
    layer = Layer(fetching, packed)
    layer.spans.complete()
    layer.check()
    assert layer.files() == [layer.key, "usage"]
    presence = layer.spans.presence()
    assert presence.spans_here == presence.spans > 10
    assert presence.size_here == presence.size == layer.size
    requests = len(layer.place.requests)
    layer.spans.complete()
    again = Layer(fetching, packed)
    again.spans.complete()
    again.check()
    assert len(layer.place.requests) == requests
    assert not again.place.requests
    buffer = read_now(again.spans, 70_000, 5000)
    assert buffer == PLAIN[70_000:75_000]


def test_of_what_is_in_the_cache(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans go as the device grows: there is no more on the disk than it and one span."""
    layer = Layer(fetching)
    layer.spans.read(0, layer.size)
    root = fetching.cache.root
    most = 0
    put = SpanDevice.put

    def watched(self: SpanDevice, number: int, data: memoryview) -> None:
        nonlocal most
        put(self, number, data)
        used = sum(512 * path.stat().st_blocks for path in root.rglob("*") if path.is_file())
        most = max(most, used)

    monkeypatch.setattr(SpanDevice, "put", watched)
    sent = layer.place.sent
    layer.spans.complete()
    layer.check()
    assert layer.files() == [layer.key, "usage"]
    size = (root / layer.key).stat().st_size
    assert most <= size + 3 * SPAN + 60 * 4096
    # Of the registry only the end of the layer was wanted again.
    assert layer.place.sent - sent < len(PACKED) // 8


def test_readers_go_on_while_it_is_made(fetching: Fetching, pool: ThreadPoolExecutor) -> None:
    layer = Layer(fetching)
    layer.place.gate = threading.Semaphore(2)
    ending = threading.Event()

    def read(seed: int) -> int:
        rng = random.Random(seed)
        count = 0
        while not ending.is_set() or count < 50:
            offset = rng.randrange(layer.size)
            length = rng.randrange(min(30_000, layer.size - offset) + 1)
            assert layer.spans.read(offset, length) == PLAIN[offset : offset + length]
            count += 1
        return count

    readers = [pool.submit(read, seed) for seed in range(4)]
    layer.place.gate.release(1000)
    try:
        layer.spans.complete()
    finally:
        ending.set()
    assert all(reader.result(30) >= 50 for reader in readers)
    layer.check()


def test_several_makers(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with fetching_at(tmp_path) as first, fetching_at(tmp_path) as second:
        layers = [Layer(first), Layer(second), Layer(second)]
        for made in [pool.submit(layer.spans.complete) for layer in layers for _ in range(2)]:
            made.result(30)
        assert sum(layer.place.sent for layer in layers) < 2 * len(PACKED)
        for layer in layers:
            layer.check()


def test_another_process_reads_the_device_when_its_spans_are_gone(tmp_path: Path) -> None:
    with fetching_at(tmp_path) as first, fetching_at(tmp_path) as second:
        one, other = Layer(first), Layer(second)
        one.spans.read(0, one.size)
        assert other.spans.read(0, 10) == PLAIN[:10]
        one.spans.complete()
        second.fetcher.open.clear()
        assert other.spans.read(0, other.size) == PLAIN[: other.size]
        assert not other.place.requests


def test_of_another_archive_than_its_diff_id_says(fetching: Fetching) -> None:
    layer = Layer(fetching, diff_id=sha256(b"other"))
    with pytest.raises(IntegrityError, match="not its diff ID"):
        layer.spans.complete()
    assert layer.files() == ["usage"] or layer.files() == []
    assert layer.spans.read(0, layer.size) == PLAIN[: layer.size]


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """The disk takes so many writes of devices and no more."""
    left = [after]
    pwritev = os.pwritev

    def write(fd: int, *arguments: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwritev(fd, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", write)
        yield


@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("after", [0, 3, 13])
def test_a_full_disk(
    fetching: Fetching, monkeypatch: pytest.MonkeyPatch, after: int, is_cached: bool
) -> None:
    layer = Layer(fetching)
    if is_cached:
        layer.spans.read(0, layer.size)
    with full_disk(monkeypatch, after):
        with pytest.raises(StorageError):
            layer.spans.complete()
        assert layer.spans.read(0, layer.size) == PLAIN[: layer.size]
    assert not [name for name in layer.files() if "devices" in name]
    layer.spans.complete()
    layer.check()


def test_a_registry_that_fails(fetching: Fetching) -> None:
    layer = Layer(fetching)
    layer.spans.read(0, 300_000)
    layer.place.failures = [RegistryError("no")]
    with pytest.raises(RegistryError):
        layer.spans.complete()
    layer.spans.complete()
    layer.check()


def test_larger_than_the_cache(tmp_path: Path) -> None:
    with fetching_at(tmp_path, limit=1 << 20) as fetching:
        layer = Layer(fetching)
        with pytest.raises(StorageError, match="larger, unpacked"):
            layer.spans.complete()
        assert layer.spans.read(0, layer.size) == PLAIN[: layer.size]


def test_a_device_that_is_damaged_is_read_no_more(tmp_path: Path) -> None:
    with fetching_at(tmp_path) as fetching:
        layer = Layer(fetching)
        layer.spans.complete()
    path = tmp_path / layer.key
    changed = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(300_000)
        file.write(b"damage")
    os.utime(path, ns=(changed, changed))
    with fetching_at(tmp_path) as fetching:
        layer = Layer(fetching)
        assert layer.spans.read(0, layer.size) == PLAIN[: layer.size]
        assert layer.place.requests
        eventually(lambda: not path.exists())
        layer.spans.complete()
        layer.check()


_DIE = """
import os, sys
from pathlib import Path
from soci_cli.lazy import Cache, Fetching
from soci_cli.lazy.devices.growing import SpanDevice
from tests.lazy.devices.test_making import Layer

root, step, cached = sys.argv[1:]
def die(*args, **names):
    os.kill(os.getpid(), 9)
fetching = Fetching(Cache(Path(root), 1 << 30))
layer = Layer(fetching)
if cached == "True":
    layer.spans.read(0, layer.size)
setattr(SpanDevice if hasattr(SpanDevice, step) else os, step, die)
layer.spans.complete()
"""


@pytest.mark.parametrize("is_cached", [False, True])
@pytest.mark.parametrize("step", ["put", "_hash", "commit", "ftruncate", "utime", "fsync"])
def test_a_maker_that_is_killed(tmp_path: Path, step: str, is_cached: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DIE, str(tmp_path), step, str(is_cached)],
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with fetching_at(tmp_path) as fetching:
        layer = Layer(fetching)
        assert not layer.cache.has(layer.key)
        assert layer.spans.read(0, layer.size) == PLAIN[: layer.size]
        layer.spans.complete()
        layer.check()
        layer.spans.close()
    assert Cache(tmp_path, 1 << 30).prune() > 0
    assert not list(tmp_path.rglob("*.part"))


def test_there_is_room_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fetching_at(tmp_path, limit=4 << 20) as fetching:
        old = "spans/" + "7" * 64
        for number in range(3):
            fetching.cache.put(f"{old}/{'8' * 64}/{number}", bytes(1 << 20))
        layer = Layer(fetching)
        layer.spans.read(0, 500_000)
        evicted: list[int] = []

        def fill(*_: object) -> None:
            evicted.append(3 - len(fetching.cache.names(f"{old}/{'8' * 64}/")))
            raise StorageError("seen")

        with monkeypatch.context() as patch:
            patch.setattr("soci_cli.lazy.devices.making._fill", fill)
            with pytest.raises(StorageError, match="seen"):
                layer.spans.complete()
        assert evicted == [1]
        sent = layer.place.sent
        assert layer.spans.read(0, 500_000) == PLAIN[:500_000]
        assert layer.place.sent == sent
        layer.spans.complete()
        layer.check()


def test_what_cannot_be_kept_is_served(tmp_path: Path) -> None:
    """A layer of an image that is larger than the cache is noted, and read as before."""
    notes: list[str] = []

    class Observer(SilentObserver):
        def note(self, message: str, kind: str = "") -> None:
            notes.append(message)

    with fetching_at(tmp_path, limit=1 << 20) as fetching:
        layer = Layer(fetching)
        complete_all([opened_layer(files_of(), layer.spans)], Observer())
        assert "is served, and not kept as a whole: it is larger, unpacked" in notes[0]
        assert layer.spans.read(0, layer.size) == PLAIN[: layer.size]
