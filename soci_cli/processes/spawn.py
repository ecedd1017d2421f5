"""Starting a process that outlives the command: by exec, since one that has threads cannot be forked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_DIGITS = 8


def spawn(script: Path, **arguments: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Runs a file of this package in a session of its own; the process, and a connection to its stdin.

    There it gets `arguments`, and what this process imports from. What it says before `keep_output` is in
    its stderr, a pipe. OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    start = {"path": [str(Path(__file__).parents[2]), *sys.path], "arguments": arguments}
    try:
        with theirs:
            process = subprocess.Popen(
                # Neither the variables nor the start-up files of Python: this process has read them.
                [sys.executable, "-I", "-S", str(script)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd="/",
                start_new_session=True,
            )
        data = json.dumps(start).encode("ascii")
        ours.sendall(b"%0*d" % (_DIGITS, len(data)) + data)
    except BaseException:
        ours.close()
        raise
    return process, ours


def accept_start(name: str) -> tuple[dict[str, str], socket.socket]:
    """In a process that `spawn` started: its arguments, and the connection to who did it.

    The process is shown as `name`. From now on it imports from where its starter did.
    """
    connection = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name, "ascii")
    length = int(connection.recv(_DIGITS, socket.MSG_WAITALL))
    start = json.loads(connection.recv(length, socket.MSG_WAITALL))
    sys.path[:] = start["path"]
    return start["arguments"], connection


def keep_output(path: Path) -> None:
    """Puts stdout and stderr of this process into a file from now on. OSError."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
