"""One more program in a container that runs."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soci_cli.errors import InvalidDataError, StateError, StorageError, UsageError
from soci_cli.kernel import calls
from soci_cli.run.containers import Container, bundle_of
from soci_cli.run.monitor import ContainerStreams, Waiter
from soci_cli.run.rootfs import check_program, user_of
from soci_cli.run.running import attend, terminal_of
from soci_cli.run.runtime import Runtime, StartError
from soci_cli.run.streams import Streams
from soci_cli.run.terminal import ContainerTerminal


@dataclass(frozen=True)
class ExecRequest:
    """A program to run; what is None is as with the container's own. `env` are "NAME=VALUE"."""

    command: tuple[str, ...]
    env: tuple[str, ...] = ()
    working_dir: str | None = None
    user: str | None = None
    terminal: bool = False


def execute(container: Container, request: ExecRequest, stdio: tuple[int | None, int, int]) -> int:
    """Runs a program in a container until its end; its exit status. `stdio` as for `run_attached`.

    Raises StateError where the container does not run, UsageError, NoProgramError and NotExecutableError.
    """
    folder, record = container
    if not folder.is_alive() or not record.process.is_alive():
        raise StateError(f"container {record.name or folder.name} is not running")
    bundle = bundle_of(folder)
    spec = _read(bundle / "config.json")
    process = _process(spec["process"], request, bundle / "rootfs")
    runtime = Runtime(record.runtime, record.runtime_program, record.runtime_options)
    waiter = Waiter()
    waiter.forward_signals()
    calls.become_subreaper()
    terminal = terminal_of(stdio) if request.terminal else None
    with tempfile.TemporaryDirectory(prefix="exec-", dir=folder.scratch) as name:
        about = Path(name)
        (about / "process.json").write_text(json.dumps(process), "ascii")
        streams: ContainerStreams = (
            ContainerTerminal(about, terminal)
            if request.terminal
            else Streams(stdin=stdio[0] is not None)
        )
        try:
            waiter.pid = runtime.execute(
                folder.name, bundle, about, streams.theirs, streams.console
            )
        except StartError:
            streams.close()
            covered = [one["destination"] for one in spec["mounts"]]
            environment = dict(text.split("=", 1) for text in process["env"])
            check_program(
                bundle / "rootfs", request.command[0], environment, process["cwd"], covered
            )
            raise
        streams.close_theirs()
    return attend(waiter, streams, stdio, terminal)


def _process(process: dict[str, Any], request: ExecRequest, rootfs: Path) -> dict[str, Any]:
    environment = dict(text.split("=", 1) for text in process["env"])
    if request.user is not None:
        user = user_of(rootfs, request.user)
        process["user"] = {
            "uid": user.uid,
            "gid": user.gid,
            "additionalGids": list(user.groups),
        }
        environment["HOME"] = user.home
    if request.terminal:
        environment["TERM"] = "xterm"
    environment.update(dict(text.split("=", 1) for text in request.env))
    if request.working_dir is not None:
        if not request.working_dir.startswith("/"):
            raise UsageError(f"-w: {request.working_dir} is no absolute path")
        process["cwd"] = request.working_dir
    process["args"] = list(request.command)
    process["env"] = [f"{name}={value}" for name, value in environment.items()]
    process["terminal"] = request.terminal
    return process


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    except ValueError:
        raise InvalidDataError(f"{path}: it is no JSON") from None
    if not isinstance(value, dict):
        raise InvalidDataError(f"{path}: it is no JSON object")
    return value
