"""The library's log for people who look for a fault: it only writes to its loggers."""

from __future__ import annotations

import logging
from collections.abc import Callable

from soci_cli.text import printable

_ALL = "soci_cli"


class _Lines(logging.Handler):
    """Gives each record as one line to `write`, with the time and the package."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write
        self.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        package = record.name.removeprefix(f"{_ALL}.")
        self._write(f"{package}: {printable(self.format(record))}")


def show_log(write: Callable[[str], None]) -> Callable[[], None]:
    """From now on writes the log of all packages, a line a record; gives what ends that."""
    logger, handler = logging.getLogger(_ALL), _Lines(write)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate

    return end
