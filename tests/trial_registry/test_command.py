"""`soci registry serve` as a process."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.support.commands import SOCI, environment, process
from tests.trial_registry.client import Client

READY = re.compile(r"serving (.+) at http://(\S+)\n")


class Running:
    """A registry that runs as a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        match = READY.fullmatch(line)
        assert match, (line, process.communicate(timeout=20))
        self.root, self.address = Path(match[1]), match[2]
        self.host, self.port = self.address.split(":")[0], int(self.address.split(":")[1])
        self.client = Client(self.address)

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Status, rest of stdout, and stderr."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@contextmanager
def serving(home: Path, *arguments: str | Path, stderr: int = subprocess.PIPE) -> Iterator[Running]:
    started = subprocess.Popen(
        [*SOCI, "registry", "serve", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=home,
        env=environment(home, TMPDIR=str(home)),
    )
    try:
        yield Running(started)
    finally:
        if started.poll() is None:
            started.kill()
            started.communicate(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_layout(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, "--addr", "127.0.0.1:0", "some/layout") as running:
        assert running.root == Path("some/layout")
        assert re.fullmatch(r"127\.0\.0\.1:[1-9][0-9]*", running.address)
        running.client.push_image("a", "v1")
        running.client("PATCH", running.client.start_upload("a"), data=b"x")
        status = {signal.SIGINT: 0, signal.SIGTERM: 143}[number]
        assert running.end(number) == (status, "", "")
        with pytest.raises(requests.ConnectionError):
            Client(running.address)("GET", "/v2/")
    files = {path.name for path in (tmp_path / "some" / "layout").iterdir()}
    assert files == {"blobs", "index.json", "oci-layout"}
    with serving(tmp_path, "--addr", running.address, "some/layout") as again:
        assert again.address == running.address
        assert again.client("GET", "a/manifests/v1").ok


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_temporary_folder(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path, "--addr", "localhost:0") as running:
        assert running.root.parent == tmp_path
        running.client.push_image("a", "v1")
        running.end(number)
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use(tmp_path: Path) -> None:
    with serving(tmp_path, "--addr", "127.0.0.1:0", "a") as running:
        done = process("registry", "serve", "--addr", running.address, "b", home=tmp_path)
        done.bad(1, running.address, "Address already in use")
        assert done.out == b""
        running.end(signal.SIGINT)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "text", ["", "5000", "localhost", "a:b:5000", "x:65536", "[::1:5000", "h:-1"]
)
def test_bad_addresses(tmp_path: Path, text: str) -> None:
    process("registry", "serve", "--addr", text, home=tmp_path).bad(2, "HOST:PORT")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    process("registry", "serve", "--addr", "127.0.0.1:0", ".", home=tmp_path).bad(1, "OCI layout")


@pytest.mark.parametrize("address", [":0", "0.0.0.0:0"])
def test_a_warning_for_open_addresses(tmp_path: Path, address: str) -> None:
    with serving(tmp_path, "--addr", address, "layout") as running:
        port = running.address.rpartition(":")[2]
        assert Client(f"127.0.0.1:{port}")("GET", "/v2/").ok
        _, _, err = running.end(signal.SIGINT)
    assert len(err.splitlines()) == 1
    assert "no authentication" in err


def test_a_line_for_each_request(tmp_path: Path) -> None:
    for flags, expected in (
        ((), ""),
        (("--debug",), "200 GET /v2/  2 B sent, 0 B received\n"),
        (("--debug", "-q"), ""),
    ):
        with serving(tmp_path, "--addr", "127.0.0.1:0", *flags, "layout") as running:
            assert running.client("GET", "/v2/").ok
            assert running.end(signal.SIGINT) == (0, "", expected)


def test_lines_on_a_terminal(tmp_path: Path) -> None:
    main, side = pty.openpty()
    with serving(tmp_path, "--addr", "127.0.0.1:0", "layout", stderr=side) as running:
        with socket.create_connection((running.host, running.port)) as raw:
            raw.sendall(b"HEAD /v2/a/manifests/\x1b[31m HTTP/1.1\r\n\r\n")
            assert raw.recv(1000).startswith(b"HTTP/1.1 400")
        running.end(signal.SIGINT)
    os.close(side)
    line = os.read(main, 65536).decode()
    os.close(main)
    assert line == "400 HEAD /v2/a/manifests/\\x1b[31m  0 B sent, 0 B received\r\n"
