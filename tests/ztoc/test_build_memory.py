"""Building takes little memory, however large the layer is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from soci_cli.errors import InvalidDataError, SociError
from soci_cli.ztoc import decode_ztoc
from tests.support.layers import (
    END,
    build,
    entries_of,
    file,
    golden_layer,
    gz,
    pax,
)
from tests.ztoc.samples import run_python

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


def test_memory_does_not_grow_with_the_layer() -> None:
    # 300 MB of zeros in one file, in a stream that is made as it is read.
    script = """
        import io, zlib
        from soci_cli.ztoc import build_ztoc
        from tests.support.layers import END, header, peak_memory

        SIZE = 300 << 20

        class Layer:
            def __init__(self):
                self.deflater = zlib.compressobj(1, zlib.DEFLATED, 31)
                self.ready = bytearray(self.deflater.compress(header(size=SIZE)))
                self.left = SIZE

            def readinto(self, buffer):
                while self.left and len(self.ready) < len(buffer):
                    self.ready += self.deflater.compress(bytes(1 << 20))
                    self.left -= 1 << 20
                    if not self.left:
                        self.ready += self.deflater.compress(END) + self.deflater.flush()
                count = min(len(buffer), len(self.ready))
                buffer[:count] = self.ready[:count]
                del self.ready[:count]
                return count

        built = build_ztoc(Layer())
        assert built.uncompressed_size == SIZE + 1536, built.uncompressed_size
        assert built.files == 1
        print(peak_memory())
    """
    assert run_python(script) < 150


def test_memory_of_a_plain_layer() -> None:
    script = """
        from soci_cli.ztoc import Compression, build_ztoc
        from tests.support.layers import END, header, peak_memory

        SIZE = 300 << 20

        class Layer:
            def __init__(self):
                self.left = SIZE
                self.ready = header(size=SIZE)

            def readinto(self, buffer):
                if not self.ready and self.left:
                    self.ready = bytes(1 << 20)
                    self.left -= 1 << 20
                    if not self.left:
                        self.ready += END
                count = min(len(buffer), len(self.ready))
                buffer[:count] = self.ready[:count]
                self.ready = self.ready[count:]
                return count

        built = build_ztoc(Layer(), compression=Compression.UNCOMPRESSED)
        assert built.uncompressed_size == SIZE + 1536, built.uncompressed_size
        print(peak_memory())
    """
    assert run_python(script) < 150


def test_memory_of_many_files() -> None:
    # 200,000 files, 100 MB of headers: the zTOC has about 40 MB.
    script = """
        import io, zlib
        from soci_cli.ztoc import build_ztoc
        from tests.support.layers import END, header, peak_memory

        deflater = zlib.compressobj(1, zlib.DEFLATED, 31)
        layer = bytearray()
        template = header(b"usr/share/some/folder/000000")
        for i in range(200_000):
            layer += deflater.compress(template)
        layer += deflater.compress(END) + deflater.flush()
        built = build_ztoc(io.BytesIO(layer))
        assert built.files == 200_000
        print(peak_memory())
    """
    assert run_python(script) < 250


def test_a_list_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("soci_cli.ztoc.toc_writer.MAX_TOC_SIZE", 1 << 20)
    fits = b"".join(pax([(b"comment", b"c" * 10_000)]) + file(b"a") for _ in range(90))
    too_long = b"".join(pax([(b"comment", b"c" * 10_000)]) + file(b"a") for _ in range(120))
    assert len(entries_of(decode_ztoc(build(gz(fits + END)).data))) == 90
    with pytest.raises(InvalidDataError, match="too much"):
        build(gz(too_long + END))


@pytest.mark.parametrize("name", ["multi-member-empty.tar.gz", "flushed-blocks.tar.gz"])
def test_damage_in_many_places(name: str) -> None:
    layer = golden_layer(name)

    def try_it(change: Callable[[bytearray], None]) -> None:
        damaged = bytearray(layer)
        change(damaged)
        with contextlib.suppress(SociError):
            build(bytes(damaged), span_size=65536)

    for at in range(0, len(layer), len(layer) // 25):

        def flip(data: bytearray, at: int = at) -> None:
            data[at] ^= 0xFF

        def drop(data: bytearray, at: int = at) -> None:
            del data[at : at + 100]

        def repeat(data: bytearray, at: int = at) -> None:
            data[at:at] = data[:100]

        for change in (flip, drop, repeat):
            try_it(change)
