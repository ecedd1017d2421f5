"""What goes into a container and comes out of it: pipes, copied by a thread each.

A container never gets a descriptor of this machine: through /proc it could open the file again to write.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from soci_cli.closing import Closing

_PIECE = 1 << 16
_AT_ONCE = 1 << 20
_FAREWELL = 10.0


class Streams(Closing):
    """The pipes of a container; `close_theirs` when it has its ends."""

    console: Path | None = None
    """Where its runtime sends a terminal: there is none."""

    def __init__(self, *, stdin: bool) -> None:
        """Without `stdin` it reads nothing."""
        self._threads: list[threading.Thread] = []
        self._input: int | None = None
        if stdin:
            theirs, self._input = os.pipe2(os.O_CLOEXEC)
        else:
            theirs = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._outputs, self.theirs = [], [theirs]
        for _ in range(2):
            ours, their_end = os.pipe2(os.O_CLOEXEC)
            self._outputs.append(ours)
            self.theirs.append(their_end)

    def close_theirs(self) -> None:
        """Closes the container's ends here."""
        while self.theirs:
            os.close(self.theirs.pop())

    def follow_size(self) -> None:
        """Pipes have no size."""

    def copy_input(self, source: int) -> None:
        """From now on the container gets what comes from a descriptor, and its end."""
        assert self._input is not None
        fd, self._input = self._input, None
        start_thread(lambda: _copy_and_close(source, fd, close=fd))

    def copy_output(self, *targets: int) -> None:
        """From now on what the container writes to stdout and stderr goes to these descriptors."""
        for source, target in zip(self._outputs, targets, strict=True):
            work = _copier(source, target)
            self._threads.append(start_thread(work))
        self._outputs = []

    def finish(self) -> None:
        """Waits until all that the container wrote has arrived, once it has ended."""
        for thread in self._threads:
            thread.join(_FAREWELL)

    def close(self) -> None:
        """Closes what nobody copies; before the container was there."""
        self.close_theirs()
        for fd in (*self._outputs, *([self._input] if self._input is not None else [])):
            os.close(fd)
        self._outputs, self._input = [], None


def copy(source: int, target: int) -> None:
    """Copies until the end of either; none of this raises."""
    with suppress(OSError):
        while os.splice(source, target, _AT_ONCE):
            pass
        return
    # Files that are appended to cannot be spliced to, and terminals neither.
    with suppress(OSError):
        while piece := _read(source):
            write_all(target, piece)


def write_all(target: int, data: bytes) -> None:
    """Writes all of it. OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(target, view) :]
        except BlockingIOError:  # whoever made it had it so
            _wait(target, select.POLLOUT)


def _read(source: int) -> bytes:
    while True:
        try:
            return os.read(source, _PIECE)
        except BlockingIOError:
            _wait(source, select.POLLIN)


def _wait(fd: int, events: int) -> None:
    poll = select.poll()
    poll.register(fd, events)
    poll.poll()


def _copy_and_close(source: int, target: int, close: int) -> None:
    try:
        copy(source, target)
    finally:
        os.close(close)


def _copier(source: int, target: int) -> Callable[[], None]:
    # The end of a reader is the container's broken pipe.
    return lambda: _copy_and_close(source, target, close=source)


def start_thread(work: Callable[[], None]) -> threading.Thread:
    """A thread that does something for the streams of a container."""
    thread = threading.Thread(target=work, name="soci-stream", daemon=True)
    thread.start()
    return thread
