"""What is no containerd, or not to be reached: one clear line."""

from __future__ import annotations

import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    SociError,
    StorageError,
    UsageError,
)
from soci_cli.targets import open_source, parse_place
from soci_cli.targets.containerd import client as client_module
from soci_cli.targets.containerd.api import (
    content_pb2,
    content_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
)
from soci_cli.targets.containerd.client import Containerd
from soci_cli.targets.places import connect
from tests.support.places import describe
from tests.support.servers.containerd import ContainerdServer
from tests.targets.containerd.tools import fails, finish, push, read, source_at, start, write

NOBODY = """
import os, sys
from soci_cli.errors import StorageError
from soci_cli.targets.containerd.client import Containerd

os.setgid(65534)
os.setuid(65534)
with Containerd(sys.argv[1]) as client:
    try:
        client.version()
    except StorageError as error:
        print(error)
"""

MISSING = """
import sys
from soci_cli.errors import SociError
from soci_cli.targets.places import connect

sys.modules["grpc"] = None
try:
    connect(sys.argv[1])
except SociError as error:
    print(error)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="s-") as name:
        yield Path(name)


def calls(client: Containerd) -> list[Callable[[], object]]:
    return [
        client.version,
        client.images,
        lambda: list(client.list_content()),
        lambda: client.put_image("a", describe(b"a")),
        lambda: source_at(client).resolve(),
        lambda: source_at(client).exists(describe(b"a")),
        lambda: read(client, describe(b"a")),
        lambda: write(client, describe(b"a"), b"a"),
    ]


def all_fail(path: Path, *words: str, kind: type[SociError] = StorageError) -> None:
    with Containerd(str(path)) as client:
        for call in calls(client):
            with fails(str(path), *words, kind=kind):
                call()


def test_not_running(folder: Path) -> None:
    all_fail(folder / "socket", "no such socket", "is containerd running?", "--address")


def test_socket_that_was_left_behind(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "socket"))
    all_fail(folder / "socket", "nobody listens", "is containerd running?")


def test_not_a_socket(folder: Path) -> None:
    (folder / "file").write_text("")
    all_fail(folder / "file", "no socket", "--address")
    all_fail(folder, "no socket", "--address")


def test_path_that_is_too_long(tmp_path: Path) -> None:
    with Containerd(f"{tmp_path}/{'x' * 120}") as client, fails(kind=StorageError):
        client.version()


def test_addresses(containerd: ContainerdServer, folder: Path) -> None:
    for wrong in ("", "containerd.sock", "tcp://127.0.0.1:1", "unix://relative", "\0"):
        with fails("not an address of containerd", kind=UsageError, code=2):
            Containerd(wrong)
    odd = folder / "a b%20#?ä"
    odd.symlink_to(containerd.address)
    for address in (containerd.address, f"unix://{containerd.address}", str(odd)):
        with Containerd(address) as client:
            assert client.version().startswith(containerd.version)


def test_no_access(containerd: ContainerdServer) -> None:
    told = finish(start(NOBODY, containerd))
    assert "cannot be reached" in told
    assert "try as root" in told
    assert told.count("\n") == 1
    mode = stat.S_IMODE(Path(containerd.address).parent.stat().st_mode)
    Path(containerd.address).parent.chmod(0o755)
    try:
        told = finish(start(NOBODY, containerd))
    finally:
        Path(containerd.address).parent.chmod(mode)
    assert "no access to the socket; try as root" in told


def test_packages_that_are_missing(containerd: ContainerdServer) -> None:
    assert "pip install 'soci-cli[containerd]'" in finish(start(MISSING, containerd))


def test_places(
    containerd: ContainerdServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Containerd(containerd.address, "places") as client:
        root = push(client)
    monkeypatch.setenv("CONTAINERD_ADDRESS", containerd.address)
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "places")
    with open_source(parse_place("containerd:app:1"), tmp_path) as source:
        assert source.name == "containerd:app:1"
        assert source.resolve() == root
    with connect(namespace="other") as client:
        assert client.namespace == "other"
        assert client.images() == []


class Listener:
    """Something that listens on a socket and answers every connection with `answer`."""

    def __init__(self, path: Path, answer: bytes | None) -> None:
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._taken.append(connection)
            if self._answer is not None:
                with suppress(BrokenPipeError):
                    connection.recv(1000)
                    connection.sendall(self._answer)
                connection.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self._taken:
            connection.close()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b"", b"\0" * 100]
)
def test_something_else_listens(folder: Path, answer: bytes) -> None:
    with Listener(folder / "socket", answer):
        all_fail(folder / "socket", "cannot be reached")


def test_somebody_who_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.2)
    with Listener(folder / "socket", None):
        with Containerd(str(folder / "socket")) as client, fails(kind=StorageError):
            client.images()
        with (
            Containerd(str(folder / "socket"), timeout=0.05) as client,
            fails("--timeout", kind=StorageError),
        ):
            client.images()


class Images(images_pb2_grpc.ImagesServicer):
    """Images of something that only looks like containerd."""

    def Get(self, request: Any, context: Any) -> Any:
        digest = describe(b"").digest if request.name.endswith(":empty") else "sha256:../../etc"
        target = images_pb2.Descriptor(media_type="x", digest=digest, size=5)
        return images_pb2.GetImageResponse(image=images_pb2.Image(name="bad\nname", target=target))


class Content(content_pb2_grpc.ContentServicer):
    """Content that is more, less, or in smaller pieces than it should be."""

    pieces: tuple[bytes, ...] = ()
    code: grpc.StatusCode | None = None

    def Info(self, request: Any, context: Any) -> Any:
        return content_pb2.InfoResponse(info=content_pb2.Info(digest=request.digest, size=5))

    def Read(self, request: Any, context: Any) -> Iterator[Any]:
        for piece in self.pieces:
            yield content_pb2.ReadContentResponse(data=piece)
        if self.code is not None:
            context.abort(self.code, "two\nlines \x1b[31m" + "x" * 2000)

    def Write(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        """Ends after the first message."""
        yield content_pb2.WriteContentResponse()


@pytest.fixture
def strange(folder: Path) -> Iterator[tuple[Containerd, Content]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    content = Content()
    images_pb2_grpc.add_ImagesServicer_to_server(Images(), server)
    content_pb2_grpc.add_ContentServicer_to_server(content, server)
    server.add_insecure_port(f"unix:{folder}/socket")
    server.start()
    with Containerd(str(folder / "socket")) as client:
        yield client, content
    server.stop(None).wait()


def test_no_containerd_but_grpc(strange: tuple[Containerd, Content]) -> None:
    client, _ = strange
    for call in (client.version, client.images):
        with fails(client.address, kind=StorageError):
            call()


def test_strange_image(strange: tuple[Containerd, Content]) -> None:
    client, _ = strange
    with fails("digest", "bad\\nname", kind=InvalidDataError):
        source_at(client).resolve()


def test_strange_content(strange: tuple[Containerd, Content]) -> None:
    client, content = strange
    blob = describe(b"hello")
    for content.pieces in ((b"hello",), (b"he", b"", b"llo"), (b"hello world",), (b"hello", b"x")):
        assert read(client, blob) == b"hello"
    content.pieces = (b"hel",)
    with fails("cut short", kind=IntegrityError):
        read(client, blob)
    for content.code in (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNKNOWN):
        with fails(blob.digest, "two\\nlines", kind=StorageError):
            read(client, blob)
    content.pieces, content.code = (bytes(17 << 20),), None
    with fails(blob.digest, kind=StorageError):
        read(client, blob)
