"""The log of a mount: one line for each thing that went wrong, never more than a file may hold."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import StorageError

LIMIT = 1 << 20
"""Bytes that a log file may have."""

_RECENT = 10
_LINE = 4096


class Log(Closing):
    """Takes lines from any thread. A line that comes again and again is written once, and then counted."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.count = 0
        """The lines that came."""
        self.recent: list[str] = []
        """The last ones, without repeats."""
        self._write = write
        self._mutex = threading.Lock()
        self._last = ""
        self._repeats = 0

    def __call__(self, message: str) -> None:
        """Writes one line."""
        line = " ".join(message[:_LINE].splitlines())
        with self._mutex:
            self.count += 1
            if line == self._last:
                self._repeats += 1
                # Who looks now and then sees that it goes on: 1, 2, 4, 8... times.
                if self._repeats & (self._repeats - 1) == 0:
                    self._tell_repeats()
                return
            self._settle()
            self._last = line
            self.recent = [*self.recent, line][-_RECENT:]
            self._write(stamped(line))

    def redirect(self, write: Callable[[str], None]) -> None:
        """Writes to another place from now on."""
        with self._mutex:
            self._write = write

    def close(self) -> None:
        """Writes what is left to say."""
        with self._mutex:
            self._settle()
            self._last = ""

    def _settle(self) -> None:
        if self._repeats & (self._repeats - 1):
            self._tell_repeats()
        self._repeats = 0

    def _tell_repeats(self) -> None:
        times = f"{self._repeats} times" if self._repeats > 1 else "once"
        self._write(stamped(f"the line above came {times} more"))


class LogFile(Closing):
    """A file that lines are appended to; when it is too large, its older half goes."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        """Raises StorageError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        self._limit = limit

    def write(self, line: str) -> None:
        """Appends a line. A full disk is no reason to end."""
        with suppress(OSError):
            if os.fstat(self.fd).st_size > self._limit:
                size = self._limit // 2
                kept = os.pread(self.fd, size, os.fstat(self.fd).st_size - size)
                os.ftruncate(self.fd, 0)
                os.write(self.fd, kept[kept.find(b"\n") + 1 :])
            os.write(self.fd, line.encode("utf-8", "backslashreplace") + b"\n")

    def close(self) -> None:
        """Closes the file."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


def stamped(line: str) -> str:
    """A line with the time before it."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}"
