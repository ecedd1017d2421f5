"""Doing several things at once, and stopping all of them when one fails."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

from soci_cli.errors import SociError
from soci_cli.progress import Task

_T = TypeVar("_T")
_R = TypeVar("_R")

_FAREWELL = 1.0  # seconds


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


def no_check() -> None:
    """In place of `Stop.check`, for work that is never stopped."""


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

    The first error is raised at once, as Ctrl-C is: what waits never starts, what runs ends at its next
    `stop.check()`, and what does not end within a moment, because it hangs in the network, is left behind.
    So close what the work writes to: what is left behind can write no more then.
    """
    stop = Stop()
    futures: list[Future[_R]] = [Future() for _ in items]
    waiting = deque(zip(items, futures, strict=True))

    def run() -> None:
        while True:
            try:
                item, future = waiting.popleft()
            except IndexError:
                return
            try:
                stop.check()
                future.set_result(work(item, stop))
            except BaseException as error:  # noqa: BLE001 - raised again by who waits
                future.set_exception(error)
                return

    # Not a ThreadPoolExecutor: Python does not end before all threads of one do.
    threads = [
        threading.Thread(target=run, name=f"soci-{number}", daemon=True)
        for number in range(min(max(1, concurrency), len(items)))
    ]
    begun: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            begun.append(thread)
        wait(futures, return_when=FIRST_EXCEPTION)
        errors = [future.exception() for future in futures if future.done()]
    finally:
        stop.set()
        deadline = time.monotonic() + _FAREWELL
        for thread in begun:
            thread.join(max(0.0, deadline - time.monotonic()))
    for error in errors:
        if error is not None:
            raise error
    return [future.result() for future in futures]
