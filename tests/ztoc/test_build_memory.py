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


def test_memory_of_files_and_windows_together() -> None:
    """What is kept of files and windows takes little more than the zTOC itself, which is made out of it."""
    script = """
        from soci_cli.ztoc.codec import encode_ztoc
        from soci_cli.ztoc.memory import Windows
        from soci_cli.ztoc.toc_writer import TocWriter
        from soci_cli.ztoc.zinfo import encode_gzip
        from tests.support.layers import peak_memory

        COUNT = 200_000
        before, toc, windows, points = peak_memory(), TocWriter(), Windows(), []
        for i in range(COUNT):
            name = b"home/build/node_modules/package-%d/dist/lib/module_%d.js" % (i // 40, i)
            time = b"2023-11-14T22:13:20.%09dZ" % i
            records = ((b"mtime", b"1700000000.%09d" % i),) if i % 2 else ()
            toc.add(name, b"reg", b"", b"", b"", time, (512 * i, 300, 420, 0, 0, 0, 0), records)
            if not i % 170:
                window = windows.keep(i.to_bytes(8, "little") * 4096)
                points.append((i * 1000 + 1, i * 5000, 3, window))
        count, blob = len(points), encode_gzip(4 << 20, points)
        points.clear()
        data = encode_ztoc(
            toc, build_tool_identifier="x", compression=1, compressed_size=1, uncompressed_size=1,
            checkpoints=blob, span_digests=[b"sha256:" + b"0" * 64] * count,
        )
        assert len(data) > 64 << 20, len(data)
        print((peak_memory() - before) * 100 // len(data) << 20)
    """
    assert run_python(script) < 150  # percent
