"""Asking the server of a mount: one word in, one JSON value out, over a socket in its state folder.

Only who may enter that folder can ask.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from soci_cli.closing import Closing
from soci_cli.errors import SociError, StorageError

PATIENCE = 5.0
"""Seconds that a server has for an answer."""

_NAME = "socket"
_MAX_COMMAND = 64
_MAX_ANSWER = 16 << 20
_WAITING = 8
_FAREWELL = 2.0


class NoAnswerError(StorageError):
    """The server of a mount is not there, or does not answer."""


class ControlServer(Closing):
    """Answers in a thread of its own, one question at a time."""

    def __init__(self, folder: Path, answers: Mapping[str, Callable[[], object]]) -> None:
        """`answers` by command; what they return is sent, and of a SociError its text. StorageError."""
        self._answers = dict(answers)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short(folder) as path:
                self._socket.bind(path)
            self._socket.listen(_WAITING)
        except OSError as error:
            self._socket.close()
            raise StorageError(f"{folder / _NAME}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._serve, name="soci-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no more questions; who waits for an answer gets it, unless that takes long."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(_FAREWELL)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(PATIENCE)
                connection.sendall(json.dumps(self._answer(_line(connection))).encode("ascii"))

    def _answer(self, command: str) -> object:
        answer = self._answers.get(command)
        if answer is None:
            return {"error": "the server of this mount does not know this question"}
        try:
            return {"answer": answer()}
        except SociError as error:
            return {"error": str(error)}


def ask(folder: Path, command: str, patience: float = PATIENCE) -> Any:
    """What the server of a mount answers. NoAnswerError, and StorageError for what it refuses."""
    data = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(patience)
            with _short(folder) as path:
                connection.connect(path)
            connection.sendall(command.encode("ascii") + b"\n")
            while len(data) <= _MAX_ANSWER and (piece := connection.recv(1 << 20)):
                data += piece
        value = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise NoAnswerError(f"the server of the mount does not answer: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("error"), str):
        raise StorageError(value["error"])
    if not isinstance(value, dict) or "answer" not in value:
        raise NoAnswerError("the server of the mount answers what nobody understands")
    return value["answer"]


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path of the socket that fits into the 108 bytes of an address, however long the folder's is."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{_NAME}"
    finally:
        os.close(fd)


def _line(connection: socket.socket) -> str:
    data = b""
    while b"\n" not in data and len(data) < _MAX_COMMAND:
        piece = connection.recv(_MAX_COMMAND)
        if not piece:
            break
        data += piece
    return data.partition(b"\n")[0].decode("ascii", "replace")
