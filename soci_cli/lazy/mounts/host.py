"""A process that serves mounted images: as many as are handed to it, until the last one is gone."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from soci_cli.closing import Closing
from soci_cli.errors import MountError, NotFoundError, SociError
from soci_cli.kernel.calls import limit_heaps
from soci_cli.lazy.mounts.keeping import HOST_NAME, Keeper, this_program
from soci_cli.lazy.mounts.records import HostRecord, Hosts
from soci_cli.lazy.mounts.request import (
    AbortQuestion,
    FetchQuestion,
    MountQuestion,
    MountRequest,
    RestartQuestion,
    StatisticsQuestion,
    UnmountQuestion,
    opened,
)
from soci_cli.processes.control import Caller, ControlServer
from soci_cli.processes.debugging import show_log
from soci_cli.processes.identity import this_process
from soci_cli.processes.log import LogFile, stamped
from soci_cli.progress import Observer, SilentObserver, Task

if TYPE_CHECKING:
    from soci_cli.lazy.fetcher import Fetcher
    from soci_cli.lazy.mounts.resuming import Inheritance, Inherited
    from soci_cli.lazy.mounts.server import Server

_SWITCH_INTERVAL = 0.0005
_AGAIN = 1.0  # seconds
_PAUSE = 0.1
_FAREWELL = 2.0
_TAKING_OVER = 10.0
_STARTING = 30.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Host(Closing):
    """The mounts of this process, and the answers to what is asked of them."""

    def __init__(
        self,
        state: Path,
        key: str = "",
        write: Callable[[str], None] | None = None,
        inheritance: Inheritance | None = None,
        folder: str = "",
    ) -> None:
        """What is known of it is below `state`; it takes requests of who has the same `key`.

        Log lines go to `write`, by default into the folders of the process and of each mount. With an
        `inheritance` it goes on with what another process served, whose folder is `folder`. StorageError.
        """
        this = this_process()
        _raise_limits()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        self._write = write
        self._mutex = threading.Lock()
        self._servers: dict[str, Server] = {}
        self._fetcher: Fetcher | None = None
        self._threads: set[threading.Thread] = set()
        self._pending = 0
        self._is_ending = False
        self._is_closed = False
        self._inheritance = inheritance
        self._successor: Future[bool] | None = None
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stack = stack = ExitStack()
        try:
            stack.callback(os.close, self._reader)
            stack.callback(os.close, self._writer)
            record = HostRecord(this.pid, this.started, this.boot_id, key)
            if inheritance is None:
                self.folder = Hosts(state).create(record)
            else:
                self.folder = Hosts(state).adopt(folder, inheritance.lock)
            stack.enter_context(self.folder)
            self._log = write or stack.enter_context(LogFile(self.folder.log)).write
            self._arguments = {"state": str(state), "key": key, "folder": self.folder.name}
            start = this_program().start(self._arguments)
            self._keeper = Keeper(start, self.folder.log, self._say, self._hear)
            stack.callback(self._keeper.close)
            if inheritance is not None:
                self._take_over(inheritance)
                self.folder.write(record)
            answers: dict[type, Callable[[Any, Caller], object]] = {
                MountQuestion: self._answer_mount,
                FetchQuestion: self._answer_fetch,
                StatisticsQuestion: lambda one, _: self._server(one.mount).statistics(),
                UnmountQuestion: lambda one, _: self._server(one.mount).unmount(),
                AbortQuestion: lambda one, _: self._server(one.mount).abort(),
                RestartQuestion: self._answer_restart,
            }
            self._control = stack.enter_context(ControlServer(self.folder.path, answers, self._log))
        except BaseException:
            if inheritance is None:  # else all belongs to another process still
                stack.close()
            raise
        if inheritance is not None:
            for server in self._all():
                server.publish()
            self._keeper.send("ready")

    def keep(self) -> None:
        """From now on a holder keeps what a successor needs, should this process end without a word."""
        self._keeper.begin()
        self._keeper.keep(HOST_NAME, [self.folder.lock])

    def serve(self, connection: socket.socket) -> None:
        """Answers the question of who started this process; `run` does not end before."""
        with self._mutex:
            self._pending += 1
        Caller(connection).tell(host=self.folder.name)
        self._control.serve(connection, None, self._done)

    def begin(self, request: MountRequest, observer: Observer) -> Server:
        """Mounts an image in a thread. Raises StorageError and MountError; see also `Server.ready`."""
        return self._begin(request, observer, None)

    def _begin(
        self, request: MountRequest, observer: Observer, inherited: Inherited | None
    ) -> Server:
        from soci_cli.lazy.mounts.server import Server

        server = Server(
            request,
            self.folder.name,
            self._shared_fetcher(),
            self._keeper,
            self._write,
            inherited,
        )
        thread = threading.Thread(
            target=self._serve, args=(server, observer), name="soci-mount", daemon=True
        )
        with self._mutex:
            self._servers[server.folder.name] = server
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the system allows no more threads
            self._forget(server, thread)
            server.folder.close()
            raise MountError(f"{request.target} cannot be served: {error}") from error
        return server

    def run(self) -> None:
        """Serves until there is no mount any more; in the main thread.

        SIGTERM, SIGINT and SIGHUP unmount all, as soon as that can be done.
        """
        for number in _ENDING:
            signal.signal(number, self._end)
        is_frozen = False
        while not self._has_ended():
            poll = select.poll()
            poll.register(self._reader, select.POLLIN)
            woken = poll.poll(_AGAIN * 1000 if self._is_ending or not is_frozen else None)
            is_frozen = not woken
            if woken:
                os.read(self._reader, 1 << 10)
            else:
                _freeze()  # a while after something happened, when nobody waits for this process
            if self._is_ending:
                for server in self._all():
                    server.try_to_end()

    # A successor.

    def _take_over(self, inheritance: Inheritance) -> None:
        """Goes on with mounts. MountError where that fails while another process serves them still."""
        for one in inheritance.mounts:
            self._begin(one.state.request, SilentObserver(), one)
        self._keeper.adopt(inheritance.connection, inheritance.kept)
        deadline = time.monotonic() + _TAKING_OVER
        for server in self._all():
            server.settled.wait(max(0.0, deadline - time.monotonic()))
        waiting = [server for server in self._all() if server.is_waiting]
        if inheritance.is_replacing and waiting:
            # That process had better go on.
            raise MountError(f"{len(waiting)} mounts cannot be taken over now")

    def _answer_restart(self, question: RestartQuestion, _: Caller) -> None:
        """Lets another process take over. MountError where it cannot; then this one goes on."""
        with self._mutex:
            if not self._keeper.is_begun:
                raise MountError("this server has no holder, so nothing can take its mounts over")
            if self._is_ending or self._successor is not None:
                raise MountError("this server is about to end")
            successor: Future[bool] = Future()
            self._successor = successor
        try:
            deadline = time.monotonic() + _TAKING_OVER
            while self._pending:
                if time.monotonic() > deadline:
                    raise MountError("this server is mounting an image; try again later")
                time.sleep(_PAUSE)
            self._keeper.replace(question.program.start(self._arguments))
            if not wait([successor], _STARTING).done or not successor.result():
                raise MountError(
                    "the new server could not take the mounts over, so the old one goes on; "
                    f"{self.folder.log} may say why"
                )
        except MountError:
            self._successor = None
            raise

    def _hear(self, message: str) -> None:
        """What the holder says."""
        if message == "alone":
            for server in self._all():
                server.confirm()
            if self._inheritance is not None and self._inheritance.is_replacing:
                self._keeper.renew()  # by the new code
        elif self._successor is not None:
            self._successor.set_result(message == "leave")
            if message == "leave":
                self._leave()

    def _leave(self) -> NoReturn:
        """Ends this process and leaves everything to its successor."""
        self._control.close()  # which gives the answer
        for server in self._all():
            server.leave()
        os._exit(0)

    def _say(self, line: str) -> None:
        self._log(stamped(line))

    def _shared_fetcher(self) -> Fetcher:
        from soci_cli.lazy.fetcher import Fetcher

        with self._mutex:
            if self._fetcher is None:
                self._fetcher = self._stack.enter_context(Fetcher())
            return self._fetcher

    def close(self) -> None:
        """Ends what is still mounted, and writes what is left to write. What hangs is left behind."""
        for server in self._all():
            with suppress(SociError):
                server.abort()
        deadline = time.monotonic() + _FAREWELL
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._stack.close()
        self._writer = -1

    def _end(self, _: int, __: FrameType | None) -> None:
        self._is_ending = True
        self._wake()

    def _has_ended(self) -> bool:
        with self._mutex:
            if not self._servers and (not self._pending or self._is_ending):
                self._is_closed = True
            return self._is_closed

    def _serve(self, server: Server, observer: Observer) -> None:
        """A mount, from its beginning to its end. Whatever goes wrong, the others go on."""
        server.run(observer)
        self._forget(server, threading.current_thread())

    def _forget(self, server: Server, thread: threading.Thread) -> None:
        with self._mutex:
            del self._servers[server.folder.name]
            self._threads.discard(thread)
        self._wake()

    def _answer_mount(self, question: MountQuestion, caller: Caller) -> str:
        """The id of the new mount's folder; "" where this process is about to end."""
        with ExitStack() as stack:
            if not stack.enter_context(self._work_for(caller)):
                return ""
            if question.request.debug:
                stack.callback(show_log(lambda line: caller.tell(log=line)))
            server = self.begin(question.request, RemoteObserver(caller))
            while not wait([server.ready], _PAUSE).done:
                if caller.is_gone:
                    with suppress(SociError):
                        server.abort()
            name = server.ready.result()
            self._wake()
            if question.request.debug:
                show_log(server.log)
            return name

    def _answer_fetch(self, question: FetchQuestion, caller: Caller) -> object:
        """True; "" where this process is about to end."""
        with self._work_for(caller) as is_wanted:
            if not is_wanted:
                return ""
            observer, fetcher = RemoteObserver(caller), self._shared_fetcher()
            with opened(question.image, observer, 0, fetcher) as found:
                found.image.open_all()
        return True

    @contextmanager
    def _work_for(self, caller: Caller) -> Iterator[bool]:
        """Keeps this process from ending; the value is False where it is about to."""
        with self._mutex:
            is_wanted = not (self._is_closed or self._is_ending or self._successor is not None)
            self._pending += is_wanted
        try:
            if is_wanted:
                caller.tell(host=self.folder.name)
            yield is_wanted
        finally:
            if is_wanted:
                self._done()

    def _server(self, mount: str) -> Server:
        server = self._servers.get(mount)
        if server is None:
            raise NotFoundError("this mount is gone")
        return server

    def _all(self) -> list[Server]:
        with self._mutex:
            return list(self._servers.values())

    def _done(self) -> None:
        with self._mutex:
            self._pending -= 1
        self._wake()

    def _wake(self) -> None:
        with suppress(OSError):  # it is full, or closed
            os.write(self._writer, b"1")


class RemoteObserver:
    """Tells a caller what happens. Implements `Observer`."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._tasks = itertools.count()

    def start(self, name: str, total: int | None) -> Task:
        """See `Observer.start`."""
        number = next(self._tasks)
        self._caller.tell(task=number, start=name, total=total)
        return _RemoteTask(self._caller, number)

    def note(self, message: str, kind: str = "") -> None:
        """See `Observer.note`."""
        self._caller.tell(note=message, kind=kind)


class _RemoteTask:
    """Not every piece of a few bytes is worth a line."""

    def __init__(self, caller: Caller, number: int) -> None:
        self._caller = caller
        self._number = number
        self._amount = 0
        self._told = time.monotonic()

    def advance(self, amount: int) -> None:
        """See `Task.advance`."""
        self._amount += amount
        now = time.monotonic()
        if now > self._told + _PAUSE:
            self._tell(now)

    def finish(self, outcome: str) -> None:
        """See `Task.finish`."""
        self._tell(time.monotonic())
        self._caller.tell(task=self._number, finish=outcome)

    def _tell(self, now: float) -> None:
        amount, self._amount, self._told = self._amount, 0, now
        self._caller.tell(task=self._number, advance=amount)


def _freeze() -> None:
    """What is here now stays for long: no collection need look at it again."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.enable()


def import_ahead() -> None:
    """Imports what serving needs, beside the wait for the first request."""
    work = partial(importlib.import_module, "soci_cli.lazy.mounts.server")
    threading.Thread(target=work, name="soci-import", daemon=True).start()


def _raise_limits() -> None:
    """Lets this process open as many files as the system lets it: the cache's entries stay open."""
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit_heaps()
