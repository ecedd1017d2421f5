"""The daemon's log: a line of JSON for each thing that happened, with the fields that tools read."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from typing import IO

LEVELS = ("trace", "debug", "info", "warning", "error", "fatal", "panic")
_NAMES = {"warn": "warning"}
_QUERY = re.compile(r"(https?://[^\s?\"']*)\?([^\s\"']*)")
_VALUE = re.compile(r"=[^&]*")
_BILLION = 10**9
_MAX_TEXT = 4096


class JsonLog:
    """Writes lines to a stream, by default stderr, from any thread."""

    def __init__(self, level: str = "info", stream: IO[str] | None = None) -> None:
        """`level` is one of `LEVELS`, or "warn": what is below it is left out."""
        self._least = LEVELS.index(level_of(level))
        self._stream = stream or sys.stderr
        self._mutex = threading.Lock()

    def __call__(self, level: str, message: str, **fields: object) -> None:
        """A line. Values of queries in URLs are not shown."""
        if LEVELS.index(level) < self._least:
            return
        now = time.time_ns()
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // _BILLION))
        shown = {name: _shown(value) for name, value in fields.items() if value != ""}
        line = {
            **dict(sorted(shown.items())),
            "level": level,
            "msg": _shown(message),
            "time": f"{seconds}.{now % _BILLION:09d}Z",
        }
        with self._mutex:
            try:
                self._stream.write(f"{json.dumps(line)}\n")
                self._stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads it any more


def level_of(name: str) -> str:
    """One of `LEVELS`. ValueError for what is none."""
    level = _NAMES.get(name, name)
    if level not in LEVELS:
        raise ValueError(name)
    return level


def _shown(value: object) -> object:
    if not isinstance(value, str):
        return value
    return _QUERY.sub(
        lambda match: f"{match[1]}?{_VALUE.sub('=redacted', match[2])}", value[:_MAX_TEXT]
    )
