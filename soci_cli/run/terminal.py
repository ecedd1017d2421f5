"""The terminal of a container: made by the runtime in the container, held and copied by its monitor.

Its size and its end are kept here: crun up to 1.8 sets no size.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from soci_cli.closing import Closing
from soci_cli.run.streams import copy, start_thread

_SOCKET = "console"
_PATIENCE = 10.0
_FAREWELL = 10.0


class ContainerTerminal(Closing):
    """A terminal as the streams of a container, as `Streams` are; `outside` is the user's."""

    def __init__(self, bundle: Path, outside: int | None) -> None:
        """Listens in the folder `bundle`. OSError."""
        self._outside = outside
        self._master = -1
        self._thread: threading.Thread | None = None
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self.theirs = [null, null, null]
        self._folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # Short, whatever the folder is called: it must fit into an address, in the runtime, too.
        self.console = Path(f"/proc/{os.getpid()}/fd/{self._folder}/{_SOCKET}")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (bundle / _SOCKET).unlink(missing_ok=True)
        self._socket.bind(str(self.console))
        self._socket.listen(1)
        self._socket.settimeout(_PATIENCE)
        # Before the program runs, which may ask for the size at once.
        self._accepting = start_thread(self._accept)

    def close_theirs(self) -> None:
        """See `Streams.close_theirs`; the terminal is here after that."""
        while self.theirs:
            fd = self.theirs.pop()
            if fd not in self.theirs:
                os.close(fd)
        self._accepting.join()
        self._socket.close()
        os.close(self._folder)

    def copy_input(self, source: int) -> None:
        """See `Streams.copy_input`."""
        start_thread(lambda: copy(source, self._master))

    def copy_output(self, stdout: int, _: int) -> None:
        """See `Streams.copy_output`; all of it goes to the first."""
        self._thread = start_thread(lambda: copy(self._master, stdout))

    def finish(self) -> None:
        """See `Streams.finish`."""
        if self._thread is not None:
            self._thread.join(_FAREWELL)

    def close(self) -> None:
        """See `Streams.close`."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self.close_theirs()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def follow_size(self) -> None:
        """From now on it is as large as the user's terminal; in the main thread."""
        if self._outside is not None:
            signal.signal(signal.SIGWINCH, self._resize)
            self._resize(0, None)

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(_PATIENCE)
                fds = socket.recv_fds(connection, 1 << 12, 1)[1]
            if fds:
                self._master = fds[0]
                os.set_inheritable(self._master, False)
                self._resize(0, None)

    def _resize(self, _: int, __: FrameType | None) -> None:
        size = size_of(self._outside)
        if size is not None and self._master >= 0:
            with suppress(OSError):
                rows, columns = size
                packed = struct.pack("HHHH", rows, columns, 0, 0)
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, packed)


def size_of(terminal: int | None) -> tuple[int, int] | None:
    """The rows and columns of a terminal."""
    if terminal is None:
        return None
    with suppress(OSError):
        columns, rows = os.get_terminal_size(terminal)
        return rows, columns
    return None


@contextmanager
def raw(terminal: int) -> Iterator[None]:
    """What is typed goes on as it is, until the end of the `with`."""
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
