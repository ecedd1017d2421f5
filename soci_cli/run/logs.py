"""What containers in the background write: a file of JSON lines, as Docker's driver "json-file" writes it.

Each has `log`, a line with its newline, `stream` and `time`. Bytes that are no UTF-8 are kept as lone
surrogates.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.run.streams import start_thread, write_all

_PIECE = 1 << 16
_LONGEST = 1 << 14
_PAUSE = 0.05
_FAREWELL = 10.0


class LogWriter(Closing):
    """Writes the file; each stream is a pipe that a thread reads."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(path, flags, 0o600)
        self._threads: list[threading.Thread] = []
        self._ends: list[int] = []

    def stream(self, name: str) -> int:
        """The descriptor to write to."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        self._ends.append(theirs)
        self._threads.append(start_thread(lambda: self._copy(ours, name)))
        return theirs

    def finish(self) -> None:
        """Waits until all is written that came."""
        while self._ends:
            os.close(self._ends.pop())
        for thread in self._threads:
            thread.join(_FAREWELL)

    def close(self) -> None:
        """Ends it."""
        self.finish()
        os.close(self._file)

    def _copy(self, source: int, name: str) -> None:
        rest = b""
        with suppress(OSError):
            while piece := os.read(source, _PIECE):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    self._write(line + b"\n", name)
                if len(rest) > _LONGEST:
                    self._write(rest, name)
                    rest = b""
            if rest:
                self._write(rest, name)
        os.close(source)

    def _write(self, line: bytes, name: str) -> None:
        now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        value = {"log": line.decode("utf-8", "surrogateescape"), "stream": name, "time": now}
        write_all(self._file, json.dumps(value).encode("ascii") + b"\n")


@dataclass(frozen=True)
class LogLine:
    """A piece of what a container wrote to "stdout" or "stderr"."""

    stream: str
    data: bytes


def read_log(path: Path, is_running: Callable[[], bool] | None = None) -> Iterator[LogLine]:
    """What was written so far and, with `is_running`, what comes as long as that is so. OSError."""
    rest = b""
    try:
        file = path.open("rb")
    except FileNotFoundError:  # nothing was written
        return
    with file:
        while True:
            goes_on = is_running is not None and is_running()
            while piece := file.read(_PIECE):
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    with suppress(ValueError, KeyError, TypeError, AttributeError):
                        value = json.loads(line)
                        data = value["log"].encode("utf-8", "surrogateescape")
                        yield LogLine(str(value["stream"]), data)
            if not goes_on:
                return
            time.sleep(_PAUSE)
