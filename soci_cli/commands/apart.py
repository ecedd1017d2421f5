"""Running the rest of a command in a process of its own, which outlives the command."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from soci_cli.commands.app import App
from soci_cli.commands.status import status_of

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 15.0
_PAUSE = 0.02


def run_apart(app: App, work: Callable[[Callable[[int], None]], None]) -> int:
    """Runs `work` in a child; returns when it is ready, or has ended, with its exit status.

    `work` calls its argument when it is ready, with the descriptor that stdout and stderr go to from then
    on. Before that it has the terminal, and what stops this process stops it too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    child = os.fork()
    if child == 0:
        _run(app, work, writer)
    os.close(writer)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        if os.read(reader, 1):
            return 0
        return _status(os.waitpid(child, 0)[1])
    except (KeyboardInterrupt, SystemExit):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _stop(child)
        raise
    finally:
        os.close(reader)


def _run(app: App, work: Callable[[Callable[[int], None]], None], writer: int) -> None:
    """The child. It never returns, and no thread that hangs holds it."""
    status = 1
    try:
        # Ctrl-C reaches both processes; the parent hands it on as SIGTERM, once.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, _hang_up)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        _close_others(writer)

        def ready(log: int) -> None:
            _detach(log)
            os.write(writer, b"1")
            os.close(writer)

        status = status_of(app, lambda: work(ready))
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:  # noqa: BLE001 - a defect: this process ends here
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _hang_up(_: int, __: object) -> None:
    raise SystemExit(129)


def _close_others(kept: int) -> None:
    """Closes what this process was given but stdin, stdout and stderr: whoever waits for its end would
    wait as long as the server lives."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) > 2 and int(name) != kept:
            with suppress(OSError):
                os.close(int(name))


def _detach(log: int) -> None:
    """Leaves the terminal, its session and the current folder."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _stop(child: int) -> None:
    """Ends the child, which cleans up. One that cannot is killed."""
    deadline = time.monotonic() + _PATIENCE
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGTERM)
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return
            time.sleep(_PAUSE)


def _status(raw: int) -> int:
    code = os.waitstatus_to_exitcode(raw)
    return code if code >= 0 else 128 - code
