"""Running the command line: in this process, as its own process, or on a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from soci_cli.commands import run
from tests.support.machine import PROJECT

SOCI = [sys.executable, "-m", "soci_cli"]


@dataclass(frozen=True)
class Done:
    """What a command answered."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def last(self) -> str:
        """The last line on stdout."""
        return self.text.splitlines()[-1]

    def good(self) -> Done:
        """Itself; fails unless the command succeeded."""
        assert self.status == 0, self.err
        return self

    def bad(self, status: int, *parts: str) -> Done:
        """Itself; fails unless the command failed with one line that holds all `parts`."""
        assert self.status == status, (self.status, self.err)
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("soci: ")
        for part in parts:
            assert part in lines[0]
        return self


class Soci:
    """Runs commands in this process."""

    def __init__(self, capture: pytest.CaptureFixture[bytes], store: Path) -> None:
        self._capture = capture
        self.store = store

    def __call__(self, *arguments: str | Path) -> Done:
        self._capture.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            status = run(["--root", str(self.store), *map(str, arguments)])
        finally:
            signal.signal(signal.SIGTERM, before)
        sys.stdout.flush()
        out, err = self._capture.readouterr()
        return Done(status, out, err.decode())


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment without the user's settings and store."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SOCI", "XDG"))}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(PROJECT), **more}


def process(
    *arguments: str | Path, home: Path, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> Done:
    """Runs a command as a process of its own, in the folder `home`."""
    done = subprocess.run(
        [*SOCI, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        cwd=home,
        env=environment(home, **(env or {})),
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


def on_terminal(*arguments: str | Path, home: Path) -> tuple[int, str]:
    """Runs a command with stderr on a terminal; its status and what the terminal got."""
    main, side = pty.openpty()
    started = subprocess.Popen(
        [*SOCI, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=side,
        cwd=home,
        env=environment(home, TERM="xterm", COLUMNS="160"),
    )
    os.close(side)
    seen = b""
    while True:
        ready, _, _ = select.select([main], [], [], 60)
        try:
            piece = os.read(main, 65536) if ready else b""
        except OSError:  # the other side was closed
            piece = b""
        if not piece:
            break
        seen += piece
    os.close(main)
    return started.wait(timeout=60), seen.decode(errors="replace")
