"""The life of one container in this process: its start, its signals and streams, its end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import FrameType

from soci_cli.kernel import calls
from soci_cli.processes.identity import process_of
from soci_cli.run.bundle import Prepared
from soci_cli.run.runtime import Runtime, StartError
from soci_cli.run.streams import Streams
from soci_cli.run.terminal import ContainerTerminal

_FORWARDED = (
    "SIGHUP SIGINT SIGQUIT SIGTERM SIGUSR1 SIGUSR2 SIGCONT SIGALRM SIGVTALRM SIGPROF SIGIO SIGPWR"
)
_IMPATIENT = 3
ContainerStreams = Streams | ContainerTerminal
"""Where a container reads and writes."""


class Waiter:
    """Waits for a process of a container, a child of this one; in the main thread, to pass signals on."""

    def __init__(self) -> None:
        self.pid = 0
        """The process, once it is there."""
        self._waiting: list[int] = []
        self._asked = 0

    def wait(self) -> int:
        """Waits until it has ended; its exit status, 128 and more for a signal's."""
        for number in self._waiting:
            self._send(number)
        while True:
            # All that is left of the container's processes comes to this one.
            pid, status = os.waitpid(-1, 0)
            if pid == self.pid:
                self.pid = 0
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code

    def forward_signals(self) -> None:
        """From now on signals of this process are the container's; what is ignored stays so."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _FORWARDED.split():
            number = signal.Signals[name]
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._forward)

    def _forward(self, number: int, _: FrameType | None) -> None:
        if not self.pid:
            self._waiting.append(number)
            return
        self._send(number)

    def _send(self, number: int) -> None:
        """Sends it; the third that asks it to end does not ask."""
        if number in (signal.SIGINT, signal.SIGTERM):
            self._asked += 1
            number = signal.SIGKILL if self._asked >= _IMPATIENT else number
        with suppress(ProcessLookupError):
            # It has not been waited for, so the pid is nobody else's.
            os.kill(self.pid, number)


class Monitor(Waiter):
    """Starts a prepared container and waits for it."""

    def __init__(self, prepared: Prepared, note: Callable[[str], None]) -> None:
        """`note` is told of a runtime that did not work, where another one did."""
        super().__init__()
        self._prepared = prepared
        self._note = note
        self.record = prepared.start.record
        """What is written down of it."""

    def start(self, make_streams: Callable[[], ContainerStreams]) -> ContainerStreams:
        """Starts it with the first runtime that can; its streams, which nobody copies yet.

        Each runtime is given new ones. Raises NoProgramError and NotExecutableError where it is the
        program's fault, else StartError.
        """
        calls.become_subreaper()
        failed: list[str] = []
        for runtime in self._prepared.start.runtimes:
            self._write(runtime)
            streams = make_streams()
            try:
                self.pid = runtime.start(
                    self._prepared.folder.name,
                    self._prepared.bundle,
                    streams.theirs,
                    streams.console,
                )
            except StartError as error:
                streams.close()  # with what the runtime wrote into them
                self._prepared.check_program()
                failed.append(str(error))
                continue
            streams.close_theirs()
            self._write(runtime)
            if failed:
                self._note(f"{'; '.join(failed)}; {runtime.name} did")
            return streams
        raise StartError("; ".join(failed))

    def _write(self, runtime: Runtime) -> None:
        """Writes down which runtime it is, and which process, for who finds it without this monitor."""
        process = process_of(self.pid) if self.pid else None
        self.record = replace(
            self.record,
            runtime=runtime.name,
            runtime_program=runtime.program,
            runtime_options=runtime.options,
            pid=process.pid if process else 0,
            process_started=process.started if process else 0,
            boot_id=process.boot_id if process else "",
        )
        self._prepared.folder.write(self.record)
