"""What is done with containers that are there: stopping, signalling, removing."""

from __future__ import annotations

import signal

from soci_cli.errors import StateError, UsageError
from soci_cli.run.containers import Container, Containers, wait_for
from soci_cli.text import quote

_FAREWELL = 15.0


def parse_signal(text: str) -> signal.Signals:
    """The signal of a name, as TERM or SIGTERM, or of a number. UsageError."""
    try:
        if text.isascii() and text.isdigit():
            return signal.Signals(int(text))
        return signal.Signals[f"SIG{text.upper().removeprefix('SIG')}"]
    except (ValueError, KeyError):
        raise UsageError(f"{quote(text)} is no signal; kill -l lists them") from None


def stop(container: Container, seconds: float) -> None:
    """Asks a container to end, and ends it after some seconds; nothing where it has ended. StateError."""
    folder, record = container
    if not folder.is_alive():
        return
    record.process.send_signal(parse_signal(record.stop_signal or "TERM"))
    if not wait_for(record.process, seconds):
        record.process.send_signal(signal.SIGKILL)
    if not folder.wait(_FAREWELL):
        raise StateError(f"container {folder.name} does not end")


def send(container: Container, number: signal.Signals) -> None:
    """Sends a signal to the first process of a container that runs. StateError."""
    folder, record = container
    if not folder.is_alive() or not record.process.send_signal(number):
        raise StateError(f"container {record.name or folder.name} is not running")


def remove(containers: Containers, container: Container, *, force: bool) -> None:
    """Removes a container that has ended; with `force` it is ended first. StateError."""
    folder, record = container
    name = record.name or folder.name
    if folder.is_alive():
        if not force:
            raise StateError(f"container {name} is running; stop it first, or use rm --force")
        record.process.send_signal(signal.SIGKILL)
        if not folder.wait(_FAREWELL):
            raise StateError(f"container {name} does not end")
    own = containers.take(folder)
    if own is not None:  # else it is gone already, or somebody else removes it
        containers.discard(own, record)
