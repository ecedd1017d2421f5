"""Spans that are not held in memory as a whole."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from zlib_ng import zlib_ng

from soci_cli.errors import IntegrityError
from soci_cli.lazy import buffers, receiving
from soci_cli.lazy.buffers import RequestMemory, file_buffer
from soci_cli.lazy.cache import Claim
from tests.lazy.tools import opened
from tests.support.images import LayoutMaker, options, run_convert, tar_of
from tests.support.layers import gz, mixed_data
from tests.ztoc.samples import run_python

SIZE = 3 << 20
DATA = mixed_data(SIZE)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every span is a large one."""
    monkeypatch.setattr(buffers, "LARGE", 1 << 10)
    monkeypatch.setattr(receiving, "LARGE", 1 << 10)
    monkeypatch.setattr(receiving, "_INFLATED_AT_ONCE", 1 << 12)
    monkeypatch.setattr(receiving, "_HASHED_AT_ONCE", 1 << 12)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    maker = LayoutMaker(tmp_path / "image")
    layer = maker.blob(gz(tar_of({"big": DATA, "small": b"s"})))
    maker.tag(maker.manifest([layer]))
    run_convert(maker.root, tmp_path / "d", options(span_size=1 << 19))
    return tmp_path / "d"


@pytest.mark.usefixtures("small_limit")
def test_they_are_read_as_all_others(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []
    fill = Claim.fill

    def counted(self: Claim, size: int, pieces: object) -> object:
        filled.append(size)
        return fill(self, size, pieces)  # type: ignore[arg-type]

    monkeypatch.setattr(Claim, "fill", counted)
    with opened(f"oci:{image}", tmp_path / "cache") as found:
        assert found.read(found.find(b"big"), 0, SIZE) == DATA
        assert found.read(found.find(b"small"), 0, 9) == b"s"
        assert len(filled) == found.layers[0].archive.span_count > 2
    filled.clear()
    with opened(f"oci:{image}", tmp_path / "cache") as found:
        assert found.read(found.find(b"big"), 1000, 2 << 20) == DATA[1000 : 1000 + (2 << 20)]
    assert not filled
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.startswith("tmp")]


@pytest.mark.usefixtures("small_limit")
def test_damage_is_found(tmp_path: Path, image: Path) -> None:
    (blob,) = [
        path for path in image.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20
    ]
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    with opened(f"oci:{image}", tmp_path / "cache") as found, pytest.raises(IntegrityError):
        found.read(found.find(b"big"), 0, SIZE)


@pytest.mark.usefixtures("small_limit")
def test_a_disk_that_takes_nothing(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then they are held in memory, as others are."""

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Claim, "write", fail)
    with opened(f"oci:{image}", tmp_path / "cache") as found:
        assert found.read(found.find(b"big"), 0, SIZE) == DATA


def test_buffers_in_files(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        buffer = file_buffer(1 << 20, directory)
        buffer.view[:5] = b"bytes"
        buffer.forget()
        assert bytes(buffer.view[:6]) == b"bytes\0"
    assert not list(tmp_path.iterdir())
    with RequestMemory(buffers.Buffers(1, 1)) as memory:
        small = memory.packed(100, tmp_path)
        assert memory.packed(50, tmp_path) is small
        memory.forget()


def test_memory(tmp_path: Path) -> None:
    """A span of 100 MB takes no more memory than others."""
    size = 100 << 20
    deflater = zlib_ng.compressobj(1, zlib_ng.DEFLATED, 31)  # makes one block of all
    info = tarfile.TarInfo("big")
    info.size = size
    block = mixed_data(1 << 20)
    packed = deflater.compress(info.tobuf())
    packed += b"".join(deflater.compress(block) for _ in range(100))
    packed += deflater.compress(tar_of({"small": b"s"})) + deflater.flush()
    maker = LayoutMaker(tmp_path / "image")
    maker.tag(maker.manifest([maker.blob(packed)]))
    run_convert(maker.root, tmp_path / "d")
    script = f"""
        from pathlib import Path
        from tests.lazy.tools import opened
        from tests.support.layers import peak_memory

        with opened("oci:{tmp_path / "d"}", Path("{tmp_path / "cache"}")) as image:
            assert image.layers[0].files.ztoc.largest_span > {size}
            assert image.read(image.find(b"small"), 0, 9) == b"s"
        print(peak_memory())
    """
    assert run_python(script) < 90
