"""Where the daemon listens, and what systemd is told.

gRPC binds a path by itself, so it is given one aside, which is renamed: the socket has its mode when it
shows, and who took the path before loses nothing but the path.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import ConfigError, StorageError
from soci_cli.text import brief

DEFAULT_ADDRESS = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"
_FIRST_PASSED = 3  # sd_listen_fds(3)
_MODE = 0o600
_PIECE = 64 << 10


def path_of(address: str) -> Path | None:
    """The path of an address; None for `fd://`. ConfigError for what is neither that nor a path."""
    if address == "fd://":
        return None
    path = address.removeprefix("unix://")
    if "://" in path or not path.startswith("/") or "\0" in path:
        raise ConfigError(f"--address {brief(address)}: a path, unix://PATH or fd:// is expected")
    return Path(path)


class ListeningSocket(Closing):
    """A socket at a path. `bind` is given the address to bind, and must listen when it returns."""

    def __init__(self, path: Path, bind: Callable[[str], object]) -> None:
        """Makes the folder if there is none, and takes the path from whoever has it. StorageError."""
        self.path = path
        aside = f".{os.getpid()}"
        self._identity = (0, 0)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            # By a descriptor: an address has at most 107 bytes, a path more.
            folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with suppress(FileNotFoundError):
                    os.unlink(aside, dir_fd=folder)
                bind(f"/proc/self/fd/{folder}/{aside}")
                os.chmod(aside, _MODE, dir_fd=folder)
                status = os.stat(aside, dir_fd=folder)
                os.rename(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
                self._identity = status.st_dev, status.st_ino
            finally:
                os.close(folder)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise StorageError(f"{path}: cannot listen: {reason}") from error

    def close(self) -> None:
        """Removes the socket, unless another has taken the path."""
        with suppress(OSError):
            status = self.path.lstat()
            if (status.st_dev, status.st_ino) == self._identity:
                self.path.unlink()


def passed_socket(environ: Mapping[str, str]) -> socket.socket | None:
    """The socket that systemd passed; None where it passed none. ConfigError for several."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environ.get("LISTEN_FDS", "0")
    if count == "0":
        return None
    if count != "1":
        raise ConfigError(f"--address fd://: one socket is expected, not {brief(count)}")
    passed = socket.socket(fileno=_FIRST_PASSED)
    os.set_inheritable(_FIRST_PASSED, False)
    return passed


class Pump(Closing):
    """Passes connections of one listening socket on to another: gRPC cannot listen on what is open."""

    def __init__(self, listening: socket.socket, to: str) -> None:
        self._listening = listening
        self._to = to
        threading.Thread(target=self._accept, name="soci-accept", daemon=True).start()

    def close(self) -> None:
        """Takes no more connections; the socket stays whose it is."""
        with suppress(OSError):
            self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listening.accept()
            except OSError:
                return
            theirs = socket.socket(socket.AF_UNIX)
            try:
                theirs.connect(self._to)
            except OSError:
                ours.close()
                theirs.close()
                continue
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=_pass_on, args=(source, sink), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tells systemd, where it wants to know: sd_notify(3)."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = f"\0{address[1:]}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.send(state.encode())
