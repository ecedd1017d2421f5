"""Asking a process that outlives its command: typed questions over a socket in its folder.

A question is a dataclass, sent as a line of JSON with its type and the version of all this. The answer is
any number of lines that tell what happens, and a last one. Only who may enter the folder can ask.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from soci_cli import errors
from soci_cli.closing import Closing
from soci_cli.errors import InvalidDataError, SociError, StorageError
from soci_cli.processes.encoding import encode, from_plain

PATIENCE = 5.0
"""Seconds that a client has for its question, and a process for an answer."""

_VERSION = 1
_NAME = "socket"
_MAX_LINE = 16 << 20
_WAITING = 64
_MOST_CLIENTS = 64
_FAREWELL = 2.0
_PAUSE = 0.1
_PLAIN = (str, int, float)  # of an error that is sent


class NoAnswerError(StorageError):
    """A process is not there, or does not answer."""


class LostAnswerError(NoAnswerError):
    """A process is not there, or ended before it answered: another one may come."""


class RemoteError(Exception):
    """A defect in a process that was asked; its cause says where."""


class Caller:
    """Who asked, and waits for the answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._mutex = threading.Lock()

    def tell(self, **news: object) -> None:
        """Sends what happens. Where nobody hears it, nothing comes of it. Any thread may call."""
        with suppress(OSError):
            self.send({"news": news})

    def send(self, value: object) -> None:
        """Sends a line. Raises OSError."""
        with self._mutex:
            self._connection.sendall(json.dumps(value).encode("ascii") + b"\n")

    @property
    def is_gone(self) -> bool:
        """Whether nobody waits any more."""
        poll = select.poll()
        poll.register(self._connection, select.POLLRDHUP)
        return bool(poll.poll(0))


Answers = Mapping[type, Callable[[Any, Caller], object]]
"""By type of question, what gives the answer, which JSON can say. A SociError is sent as one."""


class ControlServer(Closing):
    """Answers, each client in a thread of its own."""

    def __init__(self, folder: Path, answers: Answers, log: Callable[[str], None]) -> None:
        """`log` is told of defects. StorageError."""
        self._answers = {kind.__name__: (kind, answer) for kind, answer in answers.items()}
        self._log = log
        self._mutex = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._closed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The socket of a process before this one goes on until this one listens.
            aside = folder / f"{_NAME}.new"
            aside.unlink(missing_ok=True)
            with _short(folder) as path:
                self._socket.bind(f"{path}.new")
            self._socket.listen(_WAITING)
            aside.rename(folder / _NAME)
        except OSError as error:
            self._socket.close()
            raise StorageError(f"{folder / _NAME}: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._accept, name="soci-control", daemon=True)
        self._thread.start()

    def serve(
        self,
        connection: socket.socket,
        patience: float | None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Answers a client that is connected, and closes the connection; calls `done` after that.

        `patience` are the seconds that it has for its question.
        """
        thread = threading.Thread(
            target=self._serve, args=(connection, patience, done), name="soci-client", daemon=True
        )
        with self._mutex:
            has_room = len(self._threads) < _MOST_CLIENTS and not self._closed
            if has_room:
                self._threads.add(thread)
        try:
            if has_room:
                thread.start()
                return
        except RuntimeError as error:  # the system allows no more threads
            self._log(f"a question cannot be answered: {error}")
            self._threads.discard(thread)
        connection.close()
        done()

    def close(self) -> None:
        """Takes no more questions; who waits for an answer gets it, unless that takes long."""
        with self._mutex:
            self._closed = True
            threads = list(self._threads)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        deadline = time.monotonic() + _FAREWELL
        for thread in (self._thread, *threads):
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if not self._closed:  # such as too many open files: it may be better soon
                    self._log(f"a client cannot be taken: {error}")
                    time.sleep(_PAUSE)
                continue
            self.serve(connection, PATIENCE)

    def _serve(
        self, connection: socket.socket, patience: float | None, done: Callable[[], None]
    ) -> None:
        deadline = None if patience is None else time.monotonic() + patience
        try:
            with connection, suppress(OSError):
                caller = Caller(connection)
                line = _read_line(connection, bytearray(), deadline)
                connection.settimeout(PATIENCE)
                if line:
                    caller.send(self._answer(line, caller))
        finally:
            with self._mutex:
                self._threads.discard(threading.current_thread())
            done()

    def _answer(self, line: bytes, caller: Caller) -> object:
        try:
            question, answer = self._read(line)
            return {"answer": answer(question, caller)}
        except SociError as error:
            return {"error": _error_to_plain(error)}
        except Exception as error:  # noqa: BLE001 - a defect must not take the process with it
            trace = traceback.format_exc()
            self._log(trace)
            return {"error": {"message": f"{type(error).__name__}: {error}", "trace": trace}}

    def _read(self, line: bytes) -> tuple[Any, Callable[[Any, Caller], object]]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise InvalidDataError("a question is no JSON") from None
        if not isinstance(value, dict) or value.get("version") != _VERSION:
            raise StorageError("the server of this mount is of another version of soci")
        known = self._answers.get(str(value.get("question")))
        if known is None:
            raise StorageError("the server of this mount does not know this question")
        return from_plain(known[0], value.get("fields"), "a question"), known[1]


def ask(folder: Path, question: Any, patience: float = PATIENCE) -> Any:
    """What the process of a folder answers.

    NoAnswerError, the SociError that it answers with, and RemoteError for a defect there.
    """
    with connect(folder, patience) as connection:
        return talk(connection, question, patience)


def connect(folder: Path, patience: float = PATIENCE) -> socket.socket:
    """A connection to the process of a folder. NoAnswerError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(patience)
        with _short(folder) as path:
            connection.connect(path)
    except OSError as error:
        connection.close()
        raise _no_answer(error) from error
    return connection


def talk(
    connection: socket.socket,
    question: Any,
    patience: float | None = PATIENCE,
    hear: Callable[[Mapping[str, Any]], None] = lambda news: None,
) -> Any:
    """As `ask`, over a connection. Within `patience` seconds the answer, or any news, must come.

    `hear` is given the news, what happens until the answer is there.
    """
    sent = {
        "version": _VERSION,
        "question": type(question).__name__,
        "fields": json.loads(encode(question)),
    }
    deadline = None if patience is None else time.monotonic() + patience
    buffer = bytearray()
    try:
        connection.settimeout(patience)
        connection.sendall(json.dumps(sent).encode("ascii") + b"\n")
        while line := _read_line(connection, buffer, deadline):
            value = json.loads(line)
            if not isinstance(value, dict) or not isinstance(value.get("news"), dict):
                return _result(value)
            hear(value["news"])
            deadline = None
            connection.settimeout(None)
    except (OSError, ValueError, RecursionError) as error:
        raise _no_answer(error) from error
    raise LostAnswerError("the server of the mount ended without an answer")


def _no_answer(error: Exception) -> NoAnswerError:
    is_gone = isinstance(error, (ConnectionError, FileNotFoundError, NotADirectoryError))
    kind = LostAnswerError if is_gone else NoAnswerError
    return kind(f"the server of the mount does not answer: {error}")


def _result(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        error = value["error"]
        if "trace" in error:
            raise RemoteError(str(error.get("message"))) from RemoteError(f"\n{error['trace']}")
        raise _error_from_plain(error)
    if not isinstance(value, dict) or "answer" not in value:
        raise NoAnswerError("the server of the mount answers what nobody understands")
    return value["answer"]


def _error_to_plain(error: SociError) -> dict[str, object]:
    fields = {name: one for name, one in vars(error).items() if isinstance(one, _PLAIN)}
    cause = error.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    return {"kind": type(error).__name__, "fields": fields, "errno": number}


def _error_from_plain(value: Mapping[str, Any]) -> SociError:
    """An error of the same class with the same fields; one that is unknown here is a SociError."""
    kind = getattr(errors, str(value.get("kind")), None)
    if not isinstance(kind, type) or not issubclass(kind, SociError):
        kind = SociError
    error: SociError = kind.__new__(kind)
    fields = value.get("fields")
    plain = fields if isinstance(fields, dict) else {}
    plain = {name: one for name, one in plain.items() if isinstance(one, _PLAIN)}
    SociError.__init__(error, str(plain.get("message")))
    vars(error).update(plain)
    if isinstance(value.get("errno"), int):
        error.__cause__ = OSError(value["errno"], os.strerror(value["errno"]))
    return error


def _read_line(connection: socket.socket, buffer: bytearray, deadline: float | None) -> bytes:
    """The next line, or what came of it; b"" at the end. OSError, TimeoutError at the deadline."""
    while b"\n" not in buffer:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            connection.settimeout(left)
        piece = connection.recv(1 << 16)
        if not piece or len(buffer) > _MAX_LINE:
            break
        buffer += piece
    line, _, rest = bytes(buffer).partition(b"\n")
    buffer[:] = rest
    return line


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A path of the socket that fits into the 108 bytes of an address, however long the folder's is."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{_NAME}"
    finally:
        os.close(fd)
