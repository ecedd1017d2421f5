"""Helpers of the tests of soci_cli.lazy.fuse: a kernel to talk to, archives that hang, real mounts."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from soci_cli.errors import IntegrityError
from soci_cli.kernel.points import identify, mount_at
from soci_cli.kernel.unmount import unmount
from soci_cli.lazy import LazyImage, LazyLayer
from soci_cli.lazy.fuse import MountedImage, MountOptions, mount_image, wire
from soci_cli.lazy.fuse.filesystem import Tree
from soci_cli.lazy.fuse.session import Session
from soci_cli.lazy.layer_bytes import Name, no_name
from soci_cli.ztoc import FileMetadata, LayerFiles, decode_ztoc
from tests.lazy.tools import NoBytes, opened_layer
from tests.support.layers import tar_ztoc

PATIENCE = 30.0


class Bytes(NoBytes):
    """An archive of which each byte is known: those that are here, those that must be fetched, those
    that cannot be had."""

    def __init__(self) -> None:
        self.far = range(0)
        self.broken = range(0)
        self.fetched: list[tuple[int, int, bytes]] = []
        self._waiting: list[tuple[int, int, Future[bytes]]] | None = []

    def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        if offset in self.far or offset in self.broken:
            return False
        buffer[:] = content(offset, buffer.nbytes)
        return True

    def submit(self, offset: int, length: int, name: Name = no_name) -> Future[bytes]:
        self.fetched.append((offset, length, name()))
        future: Future[bytes] = Future()
        if offset in self.broken:
            future.set_exception(IntegrityError("it is damaged", span=7))
        elif self._waiting is None:
            future.set_result(content(offset, length))
        else:
            self._waiting.append((offset, length, future))
        return future

    def pieces(self, offset: int, length: int, name: Name = no_name) -> Iterator[memoryview]:
        yield memoryview(content(offset, length))

    def go(self) -> None:
        """What must be fetched comes, now and later."""
        waiting, self._waiting = self._waiting or [], None
        for offset, length, future in waiting:
            future.set_result(content(offset, length))


def content(offset: int, length: int) -> bytes:
    """The bytes of such an archive: each eight bytes say where they are."""
    first = offset // 8
    data = b"".join(
        number.to_bytes(8, "big") for number in range(first, (offset + length) // 8 + 1)
    )
    return data[offset - 8 * first :][:length]


def file(name: str | bytes, offset: int, size: int, **fields: Any) -> FileMetadata:
    """A regular file that has bytes in the archive."""
    raw = name.encode() if isinstance(name, str) else name
    fields.setdefault("mode", 0o644)
    return FileMetadata(raw, b"reg", offset, size, **fields)


def layer_of(*entries: FileMetadata, archive: Bytes | None = None) -> LazyLayer:
    """A layer of an image."""
    files = LayerFiles(decode_ztoc(tar_ztoc(entries, size=1 << 26, span_size=1 << 22)))
    return opened_layer(files, archive or Bytes())


class Kernel:
    """Plays the kernel's part of a connection. Requests are answered in any order."""

    def __init__(self, tree: Tree, on_read: Callable[[int, int], None] | None = None) -> None:
        self.log: list[str] = []
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE)
        self._unique = 0
        self._answers: dict[int, tuple[int, bytes]] = {}
        self.session = Session(theirs.detach(), tree, self.log.append, on_read)
        self.thread = threading.Thread(target=self.session.run)
        self.thread.start()

    def close(self) -> None:
        """Unmounts."""
        self._socket.close()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def send(self, opcode: int, node: int = 1, body: bytes = b"", pid: int = 0) -> int:
        """Sends a request."""
        self._unique += 2
        size = wire.IN_HEADER.size + len(body)
        header = wire.IN_HEADER.pack(size, opcode, self._unique, node, 0, 0, pid, 0, 0)
        self._socket.send(header + body)
        return self._unique

    def answer(self, unique: int) -> tuple[int, bytes]:
        """The errno and the body of an answer."""
        while unique not in self._answers:
            data = self._socket.recv(2 << 20)
            size, error, of = wire.OUT_HEADER.unpack_from(data)
            assert size == len(data)
            self._answers[of] = -error, data[wire.OUT_HEADER.size :]
        return self._answers.pop(unique)

    def ask(self, opcode: int, node: int = 1, body: bytes = b"") -> tuple[int, bytes]:
        """Sends a request and waits for the answer."""
        return self.answer(self.send(opcode, node, body))

    def begin(self, minor: int = 38, flags: int = 0xFFFFFFFF) -> bytes:
        """The answer to INIT."""
        error, data = self.ask(wire.INIT, 0, wire.INIT_IN.pack(7, minor, 1 << 17, flags))
        assert not error
        return data

    def look(self, name: bytes, parent: int = 1) -> int:
        """The node of a name, 0 when there is none."""
        error, data = self.ask(wire.LOOKUP, parent, name + b"\0")
        assert not error
        assert len(data) == 128
        return int(struct.unpack_from("=Q", data)[0])

    def find(self, path: bytes) -> int:
        """The node at a path."""
        node = 1
        for name in path.split(b"/"):
            node = self.look(name, node)
        return node

    def reading(self, node: int, offset: int, size: int, pid: int = 0) -> int:
        """Sends a READ."""
        body = wire.READ_IN.pack(0, offset, size, 0) + bytes(16)
        return self.send(wire.READ, node, body, pid)

    def read(self, node: int, offset: int, size: int) -> tuple[int, bytes]:
        """The answer to a READ."""
        return self.answer(self.reading(node, offset, size))


@contextmanager
def kernel_of(tree: Tree, on_read: Callable[[int, int], None] | None = None) -> Iterator[Kernel]:
    """A connection, ended at the end."""
    kernel = Kernel(tree, on_read)
    try:
        yield kernel
    finally:
        kernel.close()


@contextmanager
def mounted(
    image: LazyImage, root: Path, options: MountOptions | None = None
) -> Iterator[tuple[MountedImage, Path, list[str]]]:
    """A real mount: with its folder, and the lines that were logged."""
    log: list[str] = []
    target, scratch = root / "mount", root / "scratch"
    target.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True, mode=0o700)
    made = mount_image(image, target, scratch, options or MountOptions(), log.append)
    try:
        yield made, target, log
    finally:
        made.close()
        while mount_at(str(target)) is not None:
            unmount(target, identify(target), force=True)


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def errno_of(work: Callable[[], object]) -> int:
    """The number of the error that something ends with."""
    try:
        work()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def image_with(*layers: Sequence[FileMetadata] | LazyLayer) -> LazyImage:
    """An image, the lowest layer first."""
    made = [layer if isinstance(layer, LazyLayer) else layer_of(*layer) for layer in layers]
    return LazyImage("example.org/image:1", made)
