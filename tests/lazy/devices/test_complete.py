"""Complete devices: what is written is read, what is damaged is noticed, what is used stays."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import InvalidDataError
from soci_cli.lazy import Cache
from soci_cli.lazy.cache import device_key
from soci_cli.lazy.devices.complete import CHUNK, Device, open_device
from soci_cli.lazy.devices.growing import StreamedDevice, TooLargeError
from soci_cli.ztoc import Compression, build_ztoc, decode_ztoc
from tests.lazy.devices.test_layout import device_of, layout_of
from tests.support.layers import make_tar, mixed_data
from tests.support.scale import examples

KEY = device_key("sha256:" + "1" * 64, "")
BIG = make_tar([("a", mixed_data(5_000_000)), ("b", b"x" * 9_000), ("c", b""), ("d", b"d")])


def made(cache: Cache, stream: bytes, key: str = KEY) -> Device:
    """The device of a tar stream, made in one pass."""
    claim = cache.claim(key)
    assert claim is not None
    with claim:
        device = StreamedDevice(claim, cache.limit)
        build_ztoc(io.BytesIO(stream), compression=Compression.UNCOMPRESSED, archive=device)
        return device.commit()


def opened(cache: Cache, key: str = KEY) -> Device:
    device = open_device(cache, key)
    assert device is not None
    return device


@examples(25)
@given(
    st.lists(st.binary(max_size=3) | st.integers(0, 9000).map(mixed_data), max_size=12),
    st.integers(0, 3000),
    st.data(),
)
def test_all_of_the_stream_comes_back(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], tail: int, data: st.DataObject
) -> None:
    files = [(f"{number}", content) for number, content in enumerate(contents)]
    stream = make_tar(files) + bytes(tail)
    cache = Cache(tmp_path_factory.mktemp("cache"), 1 << 30)
    made(cache, stream)
    device = opened(cache)
    assert b"".join(device.stream()) == stream
    assert device.stream_size == len(stream)
    ztoc = decode_ztoc(build_ztoc(io.BytesIO(stream), compression=Compression.UNCOMPRESSED).data)
    archive = stream[: ztoc.uncompressed_archive_size]
    layout = layout_of(
        len(archive), [(one.uncompressed_offset, one.uncompressed_size) for one in ztoc.files]
    )
    assert device.layout.runs == layout.runs
    assert os.pread(device.fileno(), layout.size, 0) == device_of(layout, archive)
    offset = data.draw(st.integers(0, len(archive)))
    length = data.draw(st.integers(0, len(archive) - offset))
    assert device.read(offset, length) == archive[offset : offset + length]
    buffer = bytearray(length)
    assert device.read_now(offset, memoryview(buffer)) == length
    assert buffer == archive[offset : offset + length]


def test_what_was_not_checked_yet_is_not_read_at_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    made(cache, BIG)
    device = opened(cache)
    buffer = memoryview(bytearray(100))
    assert device.read_now(CHUNK - 50, buffer) == 0
    assert device.read(CHUNK - 50, 10) == BIG[CHUNK - 50 : CHUNK - 40]
    assert device.read_now(CHUNK - 50, buffer) == 0
    assert device.read(CHUNK, 1) == BIG[CHUNK : CHUNK + 1]
    assert device.read_now(CHUNK - 50, buffer) == 100
    assert buffer == BIG[CHUNK - 50 : CHUNK + 50]


@pytest.mark.parametrize("at", [0, 1000, 4_999_999])
def test_bytes_that_changed_by_themselves(tmp_path: Path, at: int) -> None:
    cache = Cache(tmp_path, 1 << 30)
    offset = made(cache, BIG).layout.device_offset(at)
    path = tmp_path / KEY
    changed = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([BIG[at] ^ 1]))
    os.utime(path, ns=(changed, changed))
    device = opened(cache)
    assert device.read(at, 1) == b""
    with pytest.raises(InvalidDataError, match="damaged"):
        list(device.stream())


def test_files_that_somebody_changed_are_no_devices(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    path = tmp_path / KEY

    def write() -> None:
        with path.open("r+b") as file:
            file.write(b"x")

    size = made(cache, BIG).layout.size
    lengths = (0, 1, size - 1, size, path.stat().st_size - 1, path.stat().st_size + 1)
    for change in (write, *(lambda length=length: os.truncate(path, length) for length in lengths)):
        made(cache, BIG)
        assert open_device(cache, KEY) is not None
        change()
        assert open_device(cache, KEY) is None
        assert not path.exists()


@given(st.integers(1, 200), st.integers(1, 255))
@examples(40)
def test_damage_of_the_trailer(
    tmp_path_factory: pytest.TempPathFactory, back: int, flip: int
) -> None:
    root = tmp_path_factory.mktemp("cache")
    cache = Cache(root, 1 << 30)
    made(cache, make_tar([("a", b"x"), ("b", b"y" * 5000)]))
    path = root / KEY
    data = bytearray(path.read_bytes())
    changed = path.stat().st_mtime_ns
    data[-back] ^= flip
    path.write_bytes(data)
    os.utime(path, ns=(changed, changed))
    device = open_device(cache, KEY)
    # Far from the end are the zeros of the device, which no file of the image has.
    assert device is None or back > 16 * 3 + 4 + 48 + 8


def test_the_device_counts_not_the_archive(tmp_path: Path) -> None:
    """Small files take a block each, so a device may be much larger than its archive."""
    cache = Cache(tmp_path, 1 << 20)
    stream = make_tar([(f"{number}", b"x") for number in range(400)])
    assert len(stream) < 1 << 19
    with pytest.raises(TooLargeError, match="unpacks to more than the 1048576 bytes"):
        made(cache, stream)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_open_is_not_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    device = made(cache, BIG)
    other = device_key("sha256:" + "2" * 64, "")
    made(cache, BIG, other)
    assert cache.prune() > len(BIG)
    assert (cache.has(KEY), cache.has(other)) == (True, False)
    cache.put("a", bytes(100))
    assert b"".join(device.stream()) == BIG
    del device
    assert cache.prune() > len(BIG)
    assert not cache.has(KEY)


def test_the_one_used_last_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3 * len(BIG))
    keys = [device_key("sha256:" + digit * 64, "") for digit in "123"]
    for number, key in enumerate(keys[:2]):
        made(cache, BIG, key)
        changed = (tmp_path / key).stat().st_mtime_ns
        os.utime(tmp_path / key, ns=(1000 + number, changed))
    opened(cache, keys[0])
    made(cache, BIG, keys[2])
    assert [cache.has(key) for key in keys] == [True, False, True]


_STEPS = ("content", "write", "commit", "fsync", "utime", "replace")
_DIE = """
import io, os, sys
from pathlib import Path
from soci_cli.lazy import Cache
from soci_cli.lazy.devices import growing
from tests.lazy.devices.test_complete import BIG, made

step = sys.argv[2]
def die(*args, **names):
    os.kill(os.getpid(), 9)
setattr(growing.StreamedDevice if hasattr(growing.StreamedDevice, step) else os, step, die)
made(Cache(Path(sys.argv[1]), 1 << 30), BIG)
"""


@pytest.mark.parametrize("step", _STEPS)
def test_a_maker_that_is_killed_leaves_nothing_half(tmp_path: Path, step: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DIE, str(tmp_path), step], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    cache = Cache(tmp_path, 1 << 30)
    assert not cache.has(KEY)
    assert open_device(cache, KEY) is None
    assert (
        hashlib.sha256(b"".join(made(cache, BIG).stream())).digest() == hashlib.sha256(BIG).digest()
    )
    assert not list(tmp_path.rglob("*.part"))
