"""Making a container, and running it in the foreground until its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from soci_cli.lazy.mounts.request import ImageRequest
from soci_cli.run.bundle import Prepared, RunRequest, claim, prepare
from soci_cli.run.containers import Containers
from soci_cli.run.monitor import ContainerStreams, Monitor
from soci_cli.run.runtime import Runtime
from soci_cli.run.streams import Streams
from soci_cli.run.terminal import ContainerTerminal, raw


def make_container(
    containers: Containers,
    request: RunRequest,
    image: ImageRequest,
    current: Callable[[], str] | None,
    mount: Callable[[Path], str],
) -> Prepared:
    """A container that can be started, on an image that is mounted; see `RunImages.mounted`.

    Raises what mounting the image and `prepare` raise; nothing is left then.
    """
    with containers.images.mounted(image, current, mount) as found:
        folder = claim(containers, request, found)
    try:
        return prepare(folder, request, found)
    except BaseException:
        _remove(containers, folder.name)
        folder.close()
        raise


def run_attached(
    containers: Containers,
    prepared: Prepared,
    request: RunRequest,
    runtimes: Sequence[Runtime],
    stdio: tuple[int | None, int, int],
    note: Callable[[str], None],
) -> int:
    """Runs a container until its end and removes it; its exit status. See `Monitor`.

    `stdio` are the descriptors that its stdin, if it has any, stdout and stderr are copied from and to.
    """
    with ExitStack() as stack:
        stack.callback(prepared.folder.close)
        stack.callback(_remove, containers, prepared.folder.name)
        monitor = Monitor(prepared, request, note)
        monitor.forward_signals()
        terminal = _terminal_of(stdio) if request.options.terminal else None

        def make_streams() -> ContainerStreams:
            if request.options.terminal:
                return ContainerTerminal(prepared.bundle, terminal)
            return Streams(stdin=stdio[0] is not None)

        streams = monitor.start(runtimes, make_streams)
        streams.follow_size()
        if stdio[0] is not None and stdio[0] == terminal:
            stack.enter_context(raw(terminal))
        streams.copy_output(*stdio[1:])
        if stdio[0] is not None:
            streams.copy_input(stdio[0])
        status = monitor.wait()
        streams.finish()
        return status


def _terminal_of(stdio: Iterable[int | None]) -> int | None:
    """The user's terminal, if any of the descriptors is one."""
    return next((fd for fd in stdio if fd is not None and os.isatty(fd)), None)


def _remove(containers: Containers, name: str) -> None:
    for folder, record in containers.all():
        if folder.name == name:
            containers.remove(folder, record)
