"""Having an image mounted by a process that outlives this one, which serves others already or is new."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soci_cli.closing import Closing
from soci_cli.errors import MountError, SociError
from soci_cli.lazy.mounts.records import Hosts
from soci_cli.processes.control import NoAnswerError, connect, talk
from soci_cli.processes.spawn import spawn
from soci_cli.progress import Observer, Task
from soci_cli.text import brief

if TYPE_CHECKING:
    from soci_cli.lazy.mounts.request import ImageRequest, MountRequest

_ATTEMPTS = 3
_PATIENCE = 10.0  # seconds
_SCRIPT = Path(__file__).with_name("__main__.py")


class HostFinder(Closing):
    """Finds or starts the process, in a thread: who makes the request meanwhile need not wait for it."""

    def __init__(self, state: Path, key: str) -> None:
        """See `Host`."""
        self._hosts = Hosts(state)
        self._state, self._key = state, key
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._error: Exception | None = None
        self._failed: set[Path] = set()
        self._begin()

    def mount(self, request: MountRequest, observer: Observer, log: Callable[[str], None]) -> str:
        """Has an image mounted; the id of its folder. Raises what mounting raises.

        `log` is given the lines of the library's log, if the request wants them.

        `close`, by which an exception leaves this, ends a mount that is not ready.
        """
        from soci_cli.lazy.mounts.request import MountQuestion

        name: str = self._ask(MountQuestion(request), _Hearing(observer, log), str(request.target))
        return name

    def fetch(self, image: ImageRequest) -> None:
        """Has all layers of an image opened once; see `FetchQuestion`. Raises what opening them raises."""
        from soci_cli.lazy.mounts.request import FetchQuestion

        self._ask(FetchQuestion(image), lambda news: None, image.place)

    def _ask(self, question: object, hear: Callable[[Mapping[str, Any]], None], what: str) -> Any:
        for _ in range(_ATTEMPTS):
            self._thread.join()
            if self._error is not None:
                raise self._error
            assert self._connection is not None
            patience = _PATIENCE if self._process is None else None
            try:
                answer = talk(self._connection, question, patience, hear)
            except NoAnswerError as error:
                if self._process is not None:
                    raise self._died(self._process) from error
                answer = ""
            if answer:
                return answer
            # It was about to end.
            self.close()
            self._begin()
        raise MountError(f"{what} cannot be mounted: no server could be found or started")

    def close(self) -> None:
        """Ends the connection, and so what is asked over it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # which wakes the thread
            self._thread.join()
            connection.close()
        if self._process is not None and self._process.stderr is not None:
            self._process.stderr.close()

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._find, name="soci-start", daemon=True)
        self._thread.start()

    def _find(self) -> None:
        try:
            # One of several who want a mount at the same time starts the process, and the others wait.
            with self._hosts.turn():
                self._process = None
                for living in self._hosts.living(self._key):
                    if living.path not in self._failed:
                        self._failed.add(living.path)  # not asked twice
                        with suppress(NoAnswerError):
                            self._connection = connect(living.path)
                            return
                self._process, self._connection = spawn(
                    _SCRIPT, state=str(self._state), key=self._key
                )
                self._connection.recv(1, socket.MSG_PEEK)  # it listens, or it ended
        except OSError as error:
            self._error = MountError(f"no server can be started: {error.strerror or error}")
        except SociError as error:
            self._error = error

    def _died(self, process: subprocess.Popen[bytes]) -> MountError:
        """What to say of a process that ended before it answered."""
        said = b""
        with suppress(OSError):
            if process.stderr is not None:
                said = process.stderr.read()
        process.wait()
        lines = said.decode(errors="replace").strip().splitlines() or [f"{process.returncode}"]
        return MountError(f"the server of the mount ended: {brief(lines[-1])}")


class _Hearing:
    """Tells an observer what a process does for its request."""

    def __init__(self, observer: Observer, log: Callable[[str], None]) -> None:
        self._observer = observer
        self._log = log
        self._tasks: dict[int, Task] = {}

    def __call__(self, news: Mapping[str, Any]) -> None:
        number = news.get("task")
        if "start" in news and isinstance(number, int):
            self._tasks[number] = self._observer.start(str(news["start"]), news.get("total"))
        elif "log" in news:
            self._log(str(news["log"]))
        elif "note" in news:
            self._observer.note(str(news["note"]), str(news.get("kind", "")))
        elif number in self._tasks:
            if "advance" in news:
                self._tasks[number].advance(int(news["advance"]))
            elif "finish" in news:
                self._tasks.pop(number).finish(str(news["finish"]))
