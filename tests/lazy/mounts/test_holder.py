"""The process that keeps descriptors and starts servers: files take the place of connections."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soci_cli.lazy.mounts import holder
from soci_cli.lazy.mounts.request import Program

SCRIPT = Path(holder.__file__)
PATIENCE = 60.0

# A server that tells a file what it was given, and is ready; it ends when it is told to, or at once.
SERVER = """
    import json, os, socket, sys
    connection = socket.socket(fileno=0)
    start = json.loads(connection.recv(int(connection.recv(8))))
    said = []
    while not said or not said[-1].startswith("all"):
        packet, fds, _, _ = socket.recv_fds(connection, 1 << 16, 250)
        said.append(packet.decode())
        for fd in fds:
            said[-1] += " " + os.fstat(fd).st_ino.__str__()
    out = open(start["arguments"]["out"], "a")
    print(os.getpid(), *said, sep=", ", file=out, flush=True)
    if "fails" in start["arguments"]:
        sys.exit(3)
    connection.send(b"ready")
    while word := connection.recv(100):
        print(os.getpid(), word.decode(), file=out, flush=True)
        if word == b"leave":
            break
"""


class Kept:
    """A holder whose first server is this process."""

    def __init__(
        self, folder: Path, connection: socket.socket, process: subprocess.Popen[bytes]
    ) -> None:
        self.connection = connection
        self.process = process
        self.out = folder / "out"
        self.server = folder / "server.py"
        self.server.write_text(textwrap.dedent(SERVER))
        self.files = [os.memfd_create(f"file{number}") for number in range(4)]

    def start(self, **arguments: str) -> bytes:
        program = Program(sys.executable, str(self.server), ())
        return program.start({"out": str(self.out), **arguments})

    def keep(self, name: str, fds: list[int]) -> None:
        socket.send_fds(self.connection, [f"keep {name}".encode()], fds)

    def inodes(self, fds: list[int]) -> str:
        return " ".join(str(os.fstat(fd).st_ino) for fd in fds)

    def lines(self, count: int) -> list[str]:
        """What servers said, as soon as there are so many lines."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = self.out.read_text().splitlines() if self.out.exists() else []
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.01)

    def log(self) -> list[str]:
        """What the holder said until its end."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return [line.partition(" ")[2] for line in errors.decode().splitlines()]


@contextmanager
def held(folder: Path, program: str | None = None) -> Iterator[Kept]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [str(SCRIPT)] if program is None else ["-c", program]
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", *command],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    with ours, process:
        made = Kept(folder, ours, process)
        try:
            yield made
        finally:
            process.kill()
            for fd in made.files:
                os.close(fd)


def test_a_successor_gets_all(tmp_path: Path) -> None:
    with held(tmp_path) as kept:
        kept.connection.send(b"start " + kept.start())
        kept.keep("host", kept.files[:1])
        kept.keep("one", kept.files[:3])
        kept.keep("two", kept.files[1:])
        kept.keep("one", kept.files)  # anew
        kept.keep("three", kept.files[:3])
        kept.connection.send(b"drop three")
        kept.connection.close()
        first, second = kept.lines(2)
        pid, *given = first.split(", ")
        assert sorted(given) == sorted(
            [
                f"give host {kept.inodes(kept.files[:1])}",
                f"give two {kept.inodes(kept.files[1:])}",
                f"give one {kept.inodes(kept.files)}",
                "all",
            ]
        )
        assert second == f"{pid} alone"
        os.kill(int(pid), 9)
        *_, third, fourth = kept.lines(4)
        assert third.split(", ")[1:] == given
        assert fourth.endswith(" alone")
        os.kill(int(fourth.split()[0]), 9)
        kept.lines(6)
        kept.process.kill()
        log = kept.log()
    assert log[0] == "the server ended; another one takes over its mounts"
    assert log[1:3] == ["the server ended by signal 9; another one takes over its mounts"] * 2


def test_replacing(tmp_path: Path) -> None:
    """The one before leaves when the other is ready; one that fails changes nothing."""
    with held(tmp_path) as kept:
        kept.keep("one", kept.files[:3])
        kept.connection.send(b"replace " + kept.start(fails="yes"))
        assert kept.connection.recv(100) == b"failed"
        kept.connection.send(b"replace " + kept.start())
        assert kept.connection.recv(100) == b"leave"
        failed, taken = kept.lines(2)
        assert failed.endswith(", all replacing")
        assert taken.endswith(", all replacing")
        kept.connection.close()
        assert kept.lines(3)[2] == f"{taken.split(',')[0]} alone"
        kept.process.kill()
        assert kept.log() == [
            "the server that should have taken over ended with status 3; the one before goes on"
        ]


@pytest.mark.parametrize("last", [b"end", b"drop one"])
def test_the_end(tmp_path: Path, last: bytes) -> None:
    """When nothing is left to keep, nobody is started."""
    with held(tmp_path) as kept:
        kept.connection.send(b"start " + kept.start())
        kept.keep("host", kept.files[:1])
        kept.keep("one", kept.files[:3])
        kept.connection.send(last)
        kept.connection.close()
        assert kept.log() == []
        assert kept.process.returncode == 0
    assert not kept.out.exists()


def test_servers_that_end_at_once(tmp_path: Path) -> None:
    """After some of them, with pauses that grow, all is given up, with one line."""
    program = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import holder
holder._PAUSE /= 100
holder._LONGEST_PAUSE /= 100
holder.main()
"""
    with held(tmp_path, program) as kept:
        kept.connection.send(b"start " + kept.start(fails="yes"))
        reader, writer = os.pipe()
        kept.keep("one", [*kept.files[:2], writer])
        os.close(writer)
        kept.connection.close()
        log = kept.log()
        with open(reader, "rb") as stream:  # noqa: PTH123 - a descriptor
            # Ten questions for what was in flight; then nobody has the other end any more.
            assert len(stream.read()) == 10 * 16
    assert len(kept.lines(0)) == 9
    assert log[-1] == ("10 servers ended at once, one after the other: these mounts are given up")
    assert sum("given up" in line for line in log) == 1


def test_it_is_small(tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import holder
print(*sys.modules)
print(open("/proc/self/smaps_rollup").read())
"""
    command = [sys.executable, "-I", "-S", "-c", program]
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    modules, _, memory = shown.partition("\n")
    assert not {"json", "threading", "subprocess", "typing", "soci_cli"} & set(modules.split())
    private = [int(size) for size in re.findall(r"Private_\w+: +(\d+)", memory)]
    assert sum(private) < 8000  # KiB
