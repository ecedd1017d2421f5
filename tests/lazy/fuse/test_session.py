"""The protocol, against a kernel that is played by the test."""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.lazy import LazyImage
from soci_cli.lazy.fuse import wire
from soci_cli.lazy.fuse.filesystem import MergedTree
from tests.lazy.fuse.tools import Bytes, Kernel, content, file, image_with, kernel_of, layer_of
from tests.lazy.tools import entry
from tests.support.scale import examples

SIZE = 10_000


@pytest.fixture
def archive() -> Iterator[Bytes]:
    """The bytes of the lower layer; nothing hangs after the test."""
    made = Bytes()
    yield made
    made.go()


@pytest.fixture
def image(archive: Bytes) -> LazyImage:
    """Two layers."""
    lower = layer_of(
        entry("dir", "dir"),
        file("dir/near", 512, SIZE),
        file("dir/far", 1 << 20, SIZE),
        file("broken", 2 << 20, SIZE),
        file("empty", 512, 0),
        entry("link", "symlink", linkname=b"dir/near"),
        entry("strange", "socket"),
        archive=archive,
    )
    archive.far = range(1 << 20, 2 << 20)
    archive.broken = range(2 << 20, 3 << 20)
    return image_with(lower, layer_of(file("other", 8, SIZE), file("other2", 1 << 20, SIZE)))


@pytest.fixture
def kernel(image: LazyImage) -> Iterator[Kernel]:
    with kernel_of(MergedTree(image)) as made:
        yield made


def test_init(kernel: Kernel) -> None:
    """The versions meet, and only flags that the kernel has are claimed."""
    fields = struct.unpack_from("=IIIIHHIIH", kernel.begin(minor=45))
    assert fields[:2] == (7, 38)
    assert fields[3] & wire.MAX_PAGES
    assert fields[4] >= 1024
    assert fields[8] == 256
    fields = struct.unpack_from("=IIII", kernel.begin(minor=31, flags=wire.ASYNC_READ))
    assert fields[:2] == (7, 31)
    assert fields[3] == wire.ASYNC_READ


def test_init_of_an_old_kernel(kernel: Kernel) -> None:
    """One that is too old is told so."""
    body = wire.INIT_IN.pack(7, 26, 1 << 17, 0)
    assert kernel.ask(wire.INIT, 0, body)[0] == errno.EPROTO
    assert "too old" in kernel.log[0]


def test_open(kernel: Kernel) -> None:
    """Opening is left to the kernel where it can do it alone."""
    kernel.begin()
    node = kernel.find(b"dir/near")
    assert kernel.ask(wire.OPEN, node, bytes(8)) == (errno.ENOSYS, b"")
    assert kernel.ask(wire.OPENDIR, 1, bytes(8)) == (errno.ENOSYS, b"")


def test_open_where_the_kernel_asks(kernel: Kernel) -> None:
    """It may keep what it has read."""
    kernel.begin(flags=0)
    error, data = kernel.ask(wire.OPEN, kernel.find(b"dir/near"), bytes(8))
    assert (error, struct.unpack("=QII", data)[1]) == (0, wire.KEEP_CACHE)
    assert not kernel.ask(wire.OPENDIR, 1, bytes(8))[0]
    assert not kernel.ask(wire.RELEASE, 1, bytes(24))[0]


@pytest.mark.parametrize("opcode", wire.WRITING)
def test_writing(kernel: Kernel, opcode: int) -> None:
    """Nothing can be changed."""
    assert kernel.ask(opcode, 1, b"name\0") == (errno.EROFS, b"")


def test_unknown_opcodes(kernel: Kernel) -> None:
    """What the kernel invents later is no harm."""
    assert {kernel.ask(opcode)[0] for opcode in (34, 39, 46, 50, 52, 4096)} == {errno.ENOSYS}


def test_lookup(kernel: Kernel) -> None:
    """What is there, what is not, and what cannot be shown."""
    assert kernel.look(b"dir")
    assert kernel.look(b"dir") == kernel.look(b"dir")
    assert not kernel.look(b"nothing")
    assert not kernel.look(b"strange")
    assert kernel.ask(wire.LOOKUP, 1, b"x" * 256 + b"\0")[0] == errno.ENAMETOOLONG
    assert kernel.ask(wire.LOOKUP, kernel.look(b"other"), b"x\0")[0] == errno.ENOTDIR
    assert kernel.ask(wire.LOOKUP, 12345, b"x\0")[0] == errno.ESTALE
    assert kernel.ask(wire.GETATTR, 77 << 40, bytes(16))[0] == errno.ESTALE
    assert kernel.ask(wire.READLINK, kernel.look(b"link")) == (0, b"dir/near")
    assert kernel.ask(wire.READLINK, kernel.look(b"other"))[0] == errno.EINVAL


@given(
    st.integers(0, 60),
    st.sampled_from([0, 1, 2, 4, 1 << 40, (1 << 40) + 1, 1 << 63]),
    st.binary(max_size=64),
)
@examples(300)
def test_any_request(opcode: int, node: int, body: bytes) -> None:
    """Nothing ends the loop, and everything is answered that wants an answer."""
    silent = (wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT)
    with kernel_of(MergedTree(image_with([file("a", 0, 100)]))) as kernel:
        unique = kernel.send(opcode, node, body)
        if opcode not in silent or (opcode == wire.INTERRUPT and len(body) < 8):
            kernel.answer(unique)
        assert kernel.look(b"a")


def names_of(data: bytes, head: int) -> list[tuple[bytes, int]]:
    found = []
    while data:
        _, offset, size, _ = struct.unpack_from("=QQII", data, head)
        found.append((data[head + 24 : head + 24 + size], offset))
        data = data[head + 24 + -(-size // 8) * 8 :]
    return found


@pytest.mark.parametrize(("opcode", "head"), [(wire.READDIR, 0), (wire.READDIRPLUS, 128)])
def test_folders_in_pieces(opcode: int, head: int) -> None:
    """Every name comes once, wherever the answers are cut, in the order of the archive."""
    names = [b"%s-%d" % (b"x" * (n % 40), n) for n in range(300)]
    with kernel_of(MergedTree(image_with([file(name, 0, 1) for name in names]))) as kernel:
        found: list[bytes] = []
        offset = 0
        while True:
            body = wire.READ_IN.pack(0, offset, 700, 0) + bytes(16)
            error, data = kernel.ask(opcode, 1, body)
            assert not error
            assert len(data) <= 700
            if not data:
                break
            part = names_of(data, head)
            found += [name for name, _ in part]
            offset = part[-1][1]
        assert found == [b".", b"..", *names]


def test_xattrs() -> None:
    """Sizes are asked for first; too little room is an error, and so is a name that is not there."""
    pairs = ((b"SCHILY.xattr.user.a", b"value"), (b"SCHILY.xattr.user.b", b""))
    with kernel_of(MergedTree(image_with([file("a", 0, 1, xattrs=pairs)]))) as kernel:
        node = kernel.look(b"a")

        def get(name: bytes, size: int) -> tuple[int, bytes]:
            return kernel.ask(wire.GETXATTR, node, wire.XATTR_IN.pack(size, 0) + name + b"\0")

        assert get(b"user.a", 0) == (0, wire.XATTR_OUT.pack(5, 0))
        assert get(b"user.a", 5) == (0, b"value")
        assert get(b"user.b", 5) == (0, b"")
        assert get(b"user.a", 4)[0] == errno.ERANGE
        assert get(b"user.c", 0)[0] == errno.ENODATA
        listed = b"user.a\0user.b\0"
        assert kernel.ask(wire.LISTXATTR, node, wire.XATTR_IN.pack(64, 0)) == (0, listed)
        assert kernel.ask(wire.LISTXATTR, node, wire.XATTR_IN.pack(3, 0))[0] == errno.ERANGE


def test_no_xattrs(kernel: Kernel) -> None:
    """Programs expect to hear that there is none, not that there cannot be any."""
    node = kernel.find(b"dir/near")
    body = wire.XATTR_IN.pack(0, 0) + b"user.a\0"
    assert kernel.ask(wire.GETXATTR, node, body)[0] == errno.ENODATA
    assert kernel.ask(wire.LISTXATTR, node, wire.XATTR_IN.pack(64, 0)) == (0, b"")


def test_folders_with_attributes(kernel: Kernel) -> None:
    """As LOOKUP gives them; of the folder itself and the one above there are none."""
    node = kernel.find(b"dir")
    error, data = kernel.ask(wire.READDIRPLUS, node, wire.READ_IN.pack(0, 0, 4096, 0) + bytes(16))
    assert not error
    for name, at in ((b".", node), (b"..", 1)):
        assert data[:128] == bytes(128)
        assert struct.unpack_from("=Q8xII", data, 128) == (at, len(name), stat.S_IFDIR >> 12)
        data = data[160:]
    looked = kernel.ask(wire.LOOKUP, node, b"near\0")[1]
    assert data[:128] == looked
    assert data[128:136] == looked[:8]
    assert struct.unpack_from("=II", data, 144) == (4, stat.S_IFREG >> 12)


def test_strange_types_take_no_room() -> None:
    """What cannot be shown does not end a folder early."""
    strange = [entry(f"strange{n}", "socket") for n in range(100)]
    with kernel_of(MergedTree(image_with([*strange, file("last", 0, 1)]))) as other:
        body = wire.READ_IN.pack(0, 2, 200, 0) + bytes(16)
        error, data = other.ask(wire.READDIRPLUS, 1, body)
        assert (error, names_of(data, 128)) == (0, [(b"last", 103)])


def test_reading(kernel: Kernel) -> None:
    """Ranges, the end of the file, and beyond."""
    node = kernel.find(b"dir/near")
    assert kernel.read(node, 0, 100) == (0, content(512, 100))
    assert kernel.read(node, 9_000, 4096) == (0, content(9_512, 1_000))
    assert kernel.read(node, SIZE, 4096) == (0, b"")
    assert kernel.read(node, 1 << 40, 4096) == (0, b"")
    assert kernel.read(node, 5, 0) == (0, b"")
    assert kernel.read(kernel.look(b"empty"), 0, 4096) == (0, b"")
    assert kernel.read(kernel.look(b"link"), 0, 4096)[0] == errno.EINVAL
    assert kernel.read(kernel.look(b"dir"), 0, 4096)[0] != 0


def test_a_hung_layer_holds_up_nothing_else(kernel: Kernel, archive: Bytes) -> None:
    """Many reads wait for one layer; what is here is read meanwhile, and so is the other layer."""
    far = kernel.find(b"dir/far")
    threads = threading.active_count()
    waiting = [kernel.reading(far, 10 * number, 10) for number in range(100)]
    assert kernel.read(kernel.find(b"dir/near"), 0, 10) == (0, content(512, 10))
    assert kernel.read(kernel.look(b"other"), 0, 10) == (0, content(8, 10))
    assert threading.active_count() == threads  # nobody waits in one
    archive.go()
    for number, unique in enumerate(waiting):
        assert kernel.answer(unique) == (0, content((1 << 20) + 10 * number, 10))
    assert {name for _, _, name in archive.fetched} == {b"dir/far"}


def test_errors(kernel: Kernel) -> None:
    """A file that cannot be read is an error for who reads it, and a line that says all."""
    assert kernel.read(kernel.look(b"broken"), 0, 100) == (errno.EIO, b"")
    assert kernel.read(kernel.look(b"other"), 0, 10)[0] == 0
    (line,) = kernel.log
    for part in ("/broken", "sha256:1111", "example.org/image:1", "span 7", "it is damaged"):
        assert part in line


def test_defects(image: LazyImage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is an error for one request."""

    class Defective(MergedTree):
        def link(self, node: int) -> bytes:
            raise ZeroDivisionError("oh")

    with kernel_of(Defective(image)) as kernel:
        assert kernel.ask(wire.READLINK, 1)[0] == errno.EIO
        assert kernel.look(b"dir")
        assert "ZeroDivisionError: oh (test_session.py:" in kernel.log[0]


def test_interrupts(kernel: Kernel, archive: Bytes) -> None:
    """Who is killed is let go; who only got a signal waits on."""
    far = kernel.find(b"dir/far")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        unique = kernel.reading(far, 0, 10, process.pid)
        other = kernel.reading(far, 10, 10, os.getpid())
        for one in (unique, other):
            kernel.send(wire.INTERRUPT, far, wire.INTERRUPT_IN.pack(one))
        assert kernel.look(b"dir")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert kernel.answer(unique)[0] == errno.EINTR
        archive.go()
        assert kernel.answer(other) == (0, content((1 << 20) + 10, 10))


def test_abort(image: LazyImage) -> None:
    """Who waits gets an error at once, and the next request ends the connection."""
    with kernel_of(MergedTree(image)) as kernel:
        unique = kernel.reading(kernel.find(b"dir/far"), 0, 10)
        kernel.look(b"dir")
        kernel.session.abort()
        assert kernel.answer(unique)[0] == errno.EIO
        kernel.send(wire.GETATTR, 1, bytes(16))
        assert kernel.session.wait(30)


def test_observer(image: LazyImage) -> None:
    """Reads are told of, once for several of one file."""
    seen: list[tuple[int, int]] = []
    with kernel_of(MergedTree(image), lambda *file: seen.append(file)) as kernel:
        node, other = kernel.find(b"dir/near"), kernel.look(b"other")
        for which in (node, node, other, other, node):
            kernel.read(which, 0, 10)
    assert seen == [(0, 1), (1, 0), (0, 1)]
