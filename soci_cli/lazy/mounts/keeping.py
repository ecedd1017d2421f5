"""A server's side of its holder: what the holder keeps for it, and another holder where that ends.

See `holder` for what both say to each other.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.lazy.mounts.holder import MAX_DESCRIPTORS, MAX_PACKET
from soci_cli.lazy.mounts.request import Program

HOST_NAME = "host"
"""The name by which a holder keeps what belongs to the server itself: the lock of its folder."""

_SCRIPT = Path(__file__).with_name("holder.py")
_SERVER = Path(__file__).with_name("__main__.py")
_ATTEMPTS = 5  # holders that end at once, one after the other
_SOON = 1.0
_STATE = "soci-mount"


def this_program() -> Program:
    """That of this process."""
    path = (str(Path(__file__).parents[3]), *sys.path)
    return Program(sys.executable, str(_SERVER), path)


def in_memory(data: bytes) -> int:
    """A file that has no name and is on no disk; its descriptor. OSError."""
    fd = os.memfd_create(_STATE, os.MFD_CLOEXEC)
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_all(fd: int) -> bytes:
    """What such a file holds. OSError."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


class Keeper(Closing):
    """Has a holder keep descriptors, from any thread. Without `begin` or `adopt` nothing is kept."""

    def __init__(
        self,
        start: bytes,
        log: Path,
        say: Callable[[str], None],
        on_message: Callable[[str], None],
    ) -> None:
        """`start` is how a successor is started; holders write their lines into the file `log`.

        `say` is given lines for the log, `on_message` what the holder says besides, in a thread that must
        not wait for long.
        """
        self._start = start
        self._log = log
        self._say = say
        self._on_message = on_message
        self._mutex = threading.Lock()
        self._kept: dict[str, list[int]] = {}
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._closed = False

    @property
    def is_begun(self) -> bool:
        """Whether there is a holder, or there should be."""
        return self._connection is not None

    def begin(self) -> None:
        """Starts a holder. Where none can be started, nothing is kept."""
        with self._mutex:
            self._begin()

    def adopt(self, connection: socket.socket, kept: Mapping[str, Sequence[int]]) -> None:
        """Takes the holder of the server before this one, which keeps this already."""
        with self._mutex:
            self._kept.update({name: list(map(os.dup, fds)) for name, fds in kept.items()})
            self._watch(connection)

    def keep(self, name: str, descriptors: Sequence[int]) -> None:
        """Has copies of descriptors kept, in this order and as many as fit, until `drop`."""
        with self._mutex:
            if self._closed:
                return
            self._close(name)
            self._kept[name] = list(map(os.dup, descriptors[:MAX_DESCRIPTORS]))
            self._send(f"keep {name}", self._kept[name])

    def drop(self, name: str) -> None:
        """Has nothing more of that kept."""
        with self._mutex:
            if name in self._kept:
                self._close(name)
                self._send(f"drop {name}")

    def send(self, message: str) -> None:
        """Says something else to the holder."""
        with self._mutex:
            self._send(message)

    def replace(self, start: bytes) -> None:
        """Has a successor started, of which `on_message` hears: "leave" or "failed"."""
        with self._mutex:
            self._send_bytes(b"replace " + start, [])

    def renew(self) -> None:
        """Has everything kept by a new holder, and ends the one before."""
        with self._mutex:
            before = self._connection
            self._begin()
            if before is not None and before is not self._connection:
                with suppress(OSError):
                    before.send(b"end")

    def close(self) -> None:
        """It is all over: the holder ends."""
        with self._mutex:
            self._closed = True
            self._send("end")
            for name in list(self._kept):
                self._close(name)

    # With the lock.

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                with theirs:
                    self._process = subprocess.Popen(
                        [sys.executable, "-I", "-S", str(_SCRIPT)],
                        stdin=theirs.fileno(),
                        stdout=subprocess.DEVNULL,
                        stderr=log,
                        cwd="/",
                        start_new_session=True,
                    )
            finally:
                os.close(log)
        except OSError as error:
            ours.close()
            self._say(f"nothing outlives this server: no holder can be started: {error.strerror}")
            return
        self._watch(ours)
        self._send_bytes(b"start " + self._start, [])
        for name, fds in self._kept.items():
            self._send(f"keep {name}", fds)

    def _watch(self, connection: socket.socket) -> None:
        self._connection = connection
        thread = threading.Thread(
            target=self._listen, args=(connection, self._process), name="soci-holder", daemon=True
        )
        with suppress(RuntimeError):  # the system allows no more threads
            thread.start()

    def _close(self, name: str) -> None:
        for fd in self._kept.pop(name, ()):
            os.close(fd)

    def _send(self, text: str, fds: Sequence[int] = ()) -> None:
        self._send_bytes(text.encode(), fds)

    def _send_bytes(self, packet: bytes, fds: Sequence[int]) -> None:
        # One that is gone shows itself to `_listen`, and its successor gets all.
        if self._connection is not None:
            with suppress(OSError):
                socket.send_fds(self._connection, [packet], fds)

    # In its thread.

    def _listen(self, connection: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        """Hears what a holder says, until it ends; then sees to another one."""
        began = time.monotonic()
        while True:
            packet = b""
            with suppress(OSError):
                packet = connection.recv(MAX_PACKET)
            if packet:
                self._on_message(packet.decode(errors="replace"))
                continue
            connection.close()
            if process is not None:
                process.wait()
            break
        with self._mutex:
            if connection is not self._connection or self._closed:
                return
            self._connection = None
            self._failures = self._failures + 1 if time.monotonic() - began < _SOON else 0
            if self._failures >= _ATTEMPTS:
                self._say(f"{_ATTEMPTS} holders ended at once: nothing outlives this server")
                return
            self._say("the holder of the mounts ended; another one is started")
            self._begin()
