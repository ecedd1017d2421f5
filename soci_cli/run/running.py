"""Making a container, and running it until its end: in the foreground, or by a process of its own."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from soci_cli.errors import StateError
from soci_cli.lazy.mounts.request import ImageRequest
from soci_cli.processes.encoding import encode
from soci_cli.processes.spawn import spawn
from soci_cli.run.bundle import Prepared, RunRequest, claim, prepare
from soci_cli.run.containers import Containers, output_of
from soci_cli.run.logs import LogWriter
from soci_cli.run.monitor import ContainerStreams, Monitor, Waiter
from soci_cli.run.rootfs import NoProgramError, NotExecutableError
from soci_cli.run.runtime import Runtime, StartError
from soci_cli.run.streams import Streams
from soci_cli.run.terminal import ContainerTerminal, raw

_KILLED = 137
_SCRIPT = Path(__file__).with_name("__main__.py")
_ERRORS: dict[str, type[StateError | NoProgramError | NotExecutableError]] = {
    one.__name__: one for one in (NoProgramError, NotExecutableError, StartError)
}


def make_container(
    containers: Containers,
    request: RunRequest,
    runtimes: Sequence[Runtime],
    image: ImageRequest,
    current: Callable[[], str] | None,
    mount: Callable[[Path], str],
) -> Prepared:
    """A container that can be started, on an image that is mounted; see `RunImages.mounted`.

    Raises what mounting the image and `prepare` raise; nothing is left then.
    """
    with containers.images.mounted(image, current, mount) as found:
        folder, record = claim(containers, request, found)
    try:
        return prepare(folder, request, found, runtimes)
    except BaseException:
        containers.discard(folder, record)
        raise


def run_attached(
    containers: Containers,
    prepared: Prepared,
    stdio: tuple[int | None, int, int],
    note: Callable[[str], None],
) -> int:
    """Runs a container until its end; its exit status. See `Monitor`.

    `stdio` are the descriptors that its stdin, if it has any, stdout and stderr are copied from and to.
    """
    monitor = Monitor(prepared, note)
    terminal = terminal_of(stdio) if prepared.start.terminal else None
    streams = _start(containers, monitor, prepared, terminal)
    status = _KILLED
    try:
        status = attend(monitor, streams, stdio, terminal)
    finally:
        containers.finish(prepared.folder, monitor.record, status)
    return status


def attend(
    waiter: Waiter,
    streams: ContainerStreams,
    stdio: tuple[int | None, int, int],
    terminal: int | None,
) -> int:
    """Copies the streams of a process from and to `stdio` until its end; its exit status.

    `terminal` is the user's, where the process has one, too.
    """
    with ExitStack() as stack:
        streams.follow_size()
        if stdio[0] is not None and stdio[0] == terminal:
            stack.enter_context(raw(terminal))
        streams.copy_output(*stdio[1:])
        if stdio[0] is not None:
            streams.copy_input(stdio[0])
        status = waiter.wait()
        streams.finish()
        return status


def run_detached(prepared: Prepared, state: Path, note: Callable[[str], None]) -> None:
    """Has a process of its own start and watch a container. Raises as `Monitor.start`."""
    folder = prepared.folder
    process, connection = spawn(
        _SCRIPT, state=str(state), name=folder.name, start=encode(prepared.start).decode("ascii")
    )
    with connection:
        socket.send_fds(connection, [b"\n"], [folder.lock])
        folder.leave()  # it is that process's now
        with connection.makefile("rb") as lines:
            for line in lines:
                news: dict[str, Any] = json.loads(line)
                if "note" in news:
                    note(news["note"])
                elif "error" in news:
                    process.wait()
                    raise _ERRORS.get(news["kind"], StateError)(news["error"])
                else:
                    return
    process.wait()
    raise StateError("the container's monitor ended without a word; is there enough memory?")


def watch(containers: Containers, prepared: Prepared, tell: Callable[..., None]) -> None:
    """Starts a container and watches it until its end, in the process that `run_detached` started."""
    monitor = Monitor(prepared, lambda text: tell(note=text))
    streams = _start(containers, monitor, prepared, None)
    status = _KILLED
    try:
        with LogWriter(output_of(prepared.folder)) as log:
            streams.copy_output(log.stream("stdout"), log.stream("stderr"))
            tell(started=True)
            status = monitor.wait()
            streams.finish()
            log.finish()
    finally:
        containers.finish(prepared.folder, monitor.record, status)


def _start(
    containers: Containers, monitor: Monitor, prepared: Prepared, terminal: int | None
) -> ContainerStreams:
    """Starts a container, of which nothing is left where that fails."""
    monitor.forward_signals()
    try:
        return monitor.start(lambda: _streams(prepared, terminal))
    except BaseException:
        containers.discard(prepared.folder, monitor.record)
        raise


def _streams(prepared: Prepared, terminal: int | None) -> ContainerStreams:
    if prepared.start.terminal:
        return ContainerTerminal(prepared.bundle, terminal)
    return Streams(stdin=prepared.start.stdin)


def terminal_of(stdio: Iterable[int | None]) -> int | None:
    """The user's terminal, if any of the descriptors is one."""
    return next((fd for fd in stdio if fd is not None and os.isatty(fd)), None)
