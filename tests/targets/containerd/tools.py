"""Short ways to say things about containerd in tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from soci_cli.errors import SociError, StorageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets.containerd.api import content_pb2
from soci_cli.targets.containerd.client import Containerd
from soci_cli.targets.containerd.place import ContainerdSource, ContainerdTarget
from soci_cli.targets.containerd.streams import _Writing
from tests.support.places import push_image
from tests.support.servers.containerd import ContainerdServer

PROJECT = Path(__file__).parent.parent.parent.parent
FULL = "docker.io/library/app:1"


def source_at(client: Containerd, name: str = "app:1") -> ContainerdSource:
    return ContainerdSource(client, name, f"containerd:{name}")


def target_at(client: Containerd, name: str = "app:1") -> ContainerdTarget:
    return ContainerdTarget(client, name, f"containerd:{name}")


def write(client: Containerd, descriptor: Descriptor, data: bytes, size: int = 1 << 20) -> None:
    """Writes a blob in pieces; under a lease that ends here."""
    with target_at(client) as target:
        writer = target.open_writer(descriptor)
        try:
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
            writer.commit()
        finally:
            writer.abort()


def read(client: Containerd, descriptor: Descriptor) -> bytes:
    with source_at(client).fetch(descriptor) as stream:
        return stream.read()


def push(client: Containerd, name: str = "app:1", seed: int = 0, size: int = 5000) -> Descriptor:
    """Pushes an image of two layers and tags it."""
    with target_at(client, name) as target:
        root = push_image(target, seed=seed, size=size)
        target.tag(root)
    return root


@contextmanager
def fails(*words: str, kind: type[SociError] = SociError, code: int = 1) -> Iterator[None]:
    """The block ends with an error of one line, with these words in it."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    assert text.isprintable()
    assert 0 < len(text) < 700
    for word in words:
        assert word in text, text
    assert caught.value.exit_code == code


def wait_until_it_answers(client: Containerd) -> None:
    """After containerd was started again; in one process gRPC tries that every second at most."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(StorageError):
            client.version()
            return
        time.sleep(0.02)
    raise AssertionError("containerd does not answer")


class Sent:
    """Counts the bytes that writers send to containerd; `on_message` hears of each message."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size = 0
        self.on_message: Callable[[], object] = int
        send = _Writing.send

        def counted(
            writing: _Writing, request: content_pb2.WriteContentRequest, unanswered: int
        ) -> None:
            self.size += len(request.data)
            self.on_message()
            send(writing, request, unanswered)

        monkeypatch.setattr(_Writing, "send", counted)


def start(program: str, server: ContainerdServer, *arguments: str) -> subprocess.Popen[str]:
    """Runs a program of Python; its arguments are containerd's address and then these."""
    return subprocess.Popen(
        [sys.executable, "-c", program, server.address, *arguments],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for a program that must succeed and say nothing on stderr; its stdout."""
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert not errors
    return out
