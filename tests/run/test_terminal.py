"""`soci run -t`: a container's terminal, its size, and what is typed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

from tests.commands.mounting import PATIENCE, Home
from tests.run.test_run import left, run
from tests.support.commands import SOCI, environment

SCRIPT = """
    tty; stty size
    trap 'stty size; echo resized' WINCH
    trap 'echo interrupted; exit 4' INT
    echo ready
    while :; do sleep 0.02; done
"""


def resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What comes until it has `wanted` in it."""
    found, deadline = b"", time.monotonic() + PATIENCE
    while wanted not in found:
        assert time.monotonic() < deadline, found
        if select.select([terminal], [], [], 1)[0]:
            found += os.read(terminal, 4096)
    return found


def test_terminal(home: Home, shell_image: str, runtime: str) -> None:
    main, side = pty.openpty()
    try:
        resize(main, 33, 77)
        before = termios.tcgetattr(side)
        flags = ["--runtime", runtime, "-it", shell_image, "sh", "-c", SCRIPT]
        started = subprocess.Popen(
            [*SOCI, "run", "--rm", *flags],
            stdin=side,
            stdout=side,
            stderr=side,
            cwd=home.folder,
            env=environment(home.folder, **home.env),
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )
        assert read_until(main, b"ready\r\n").split()[:3] == [b"/dev/pts/0", b"33", b"77"]
        resize(main, 40, 100)
        assert b"40 100" in read_until(main, b"resized\r\n")
        os.write(main, b"\x03")
        read_until(main, b"interrupted")
        assert started.wait(timeout=30) == 4
        assert termios.tcgetattr(side) == before
    finally:
        os.close(main)
        os.close(side)
    assert left(home) == []


def test_terminal_without_one(home: Home, shell_image: str) -> None:
    done = run(home, "-q", "-t", shell_image, "sh", "-c", "echo $TERM; test -t 0 && tty")
    assert (done.status, done.out) == (0, b"xterm\r\n/dev/pts/0\r\n")
    run(home, "-it", shell_image).bad(125, "-t", "no terminal")
