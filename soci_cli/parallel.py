"""Doing several things at once, and stopping all of them when one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from soci_cli.errors import SociError
from soci_cli.progress import Task

_T = TypeVar("_T")
_R = TypeVar("_R")


class Stopped(SociError):
    """Another thread failed, so this one gave up. It never leaves `run_all`."""


class Stop:
    """Says whether work should end early."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask everybody to end."""
        self._event.set()

    def check(self) -> None:
        """Raise Stopped when the work should end."""
        if self._event.is_set():
            raise Stopped("stopped")


class StoppableTask:
    """Passes progress on, and ends the work at its next step when another one failed."""

    def __init__(self, task: Task, stop: Stop) -> None:
        self._task = task
        self._stop = stop

    def advance(self, amount: int) -> None:
        self._stop.check()
        self._task.advance(amount)

    def finish(self, outcome: str) -> None:
        self._task.finish(outcome)


def run_all(work: Callable[[_T, Stop], _R], items: Sequence[_T], concurrency: int) -> list[_R]:
    """`work(item, stop)` for every item, `concurrency` at a time; the results in order.

    After an error or Ctrl-C what runs ends at its next `stop.check()` and what waits never starts; then
    the first error is raised.
    """
    stop = Stop()

    def start(item: _T) -> _R:
        stop.check()
        return work(item, stop)

    with ThreadPoolExecutor(max(1, concurrency), thread_name_prefix="soci") as pool:
        futures = [pool.submit(start, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            errors = [future.exception() for future in futures if future.done()]
            for error in errors:
                if error is not None:
                    raise error
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return [future.result() for future in futures]
