"""Work on one thing at a time, where many things are worked on at once."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Turns:
    """A lock for each name that is in use."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, int]] = {}

    @contextmanager
    def of(self, name: Hashable) -> Iterator[None]:
        """Nobody else is in a block of this name meanwhile."""
        with self._mutex:
            lock, count = self._locks.get(name) or (threading.Lock(), 0)
            self._locks[name] = lock, count + 1
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                lock, count = self._locks.pop(name)
                if count > 1:
                    self._locks[name] = lock, count - 1
