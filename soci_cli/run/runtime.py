"""The programs that start containers: crun and runc, by their common command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import StateError, UsageError
from soci_cli.text import brief

NAMES = ("crun", "runc")
"""The runtimes that are known, the quicker first."""

_LOG_LIMIT = 1 << 16
_PATIENCE = 30.0


class StartError(StateError):
    """A runtime did not start a container, or a process in one."""


@dataclass(frozen=True)
class Runtime:
    """A runtime that is installed. `options` stand before its commands."""

    name: str
    program: str
    options: tuple[str, ...] = ()

    def start(
        self,
        container: str,
        bundle: Path,
        stdio: Sequence[int],
        console: Path | None = None,
    ) -> int:
        """Starts what the config.json of a bundle says; the pid of its first process.

        That becomes a child of the nearest subreaper. `stdio` are the descriptors of its stdin, stdout and
        stderr; with a `console` its terminal is sent there. StartError.
        """
        where = ["--bundle", str(bundle)]
        try:
            return self._launch("run", container, bundle, bundle, where, stdio, console)
        except StartError:
            self.delete(container, bundle)
            raise

    def execute(
        self,
        container: str,
        bundle: Path,
        folder: Path,
        stdio: Sequence[int],
        console: Path | None = None,
    ) -> int:
        """As `start`, one more process in a container: what `process.json` in a folder says. StartError."""
        what = ["--process", str(folder / "process.json")]
        return self._launch("exec", container, bundle, folder, what, stdio, console)

    def _launch(
        self,
        verb: str,
        container: str,
        bundle: Path,
        folder: Path,
        more: Sequence[str],
        stdio: Sequence[int],
        console: Path | None,
    ) -> int:
        pid_file, log = folder / "pid", folder / "log"
        log.unlink(missing_ok=True)
        command = [*self._base(bundle), "--log", str(log), "--log-format", "json", verb, "--detach"]
        command += ["--pid-file", str(pid_file), *more]
        command += ["--console-socket", str(console)] if console is not None else []
        # In a session of its own: what a terminal sends is not for the runtime.
        with subprocess.Popen(
            [*command, container],
            stdin=stdio[0],
            stdout=stdio[1],
            stderr=stdio[2],
            start_new_session=True,
        ) as process:
            status = process.wait()
        if status == 0:
            with suppress(OSError, ValueError):
                return int(pid_file.read_text())
        what = "the container" if verb == "run" else "a program in the container"
        raise StartError(f"{self.name} did not start {what}: {_last_error(log) or status}")

    def delete(self, container: str, bundle: Path) -> None:
        """Ends a container, if it runs, and removes what the runtime knows of it, and its cgroup."""
        command = [*self._base(bundle), "delete", "--force", container]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_PATIENCE,
            )

    def _base(self, bundle: Path) -> list[str]:
        return [self.program, *self.options, "--root", str(bundle / "state")]


def find_runtimes(wanted: str | None, *, cgroups: bool) -> list[Runtime]:
    """The runtimes to try, in this order: that of --runtime, or those that are installed.

    Without `cgroups` only those that need none. UsageError for one that is not installed, StateError.
    """
    names = NAMES if wanted is None else (wanted,)
    found = [Runtime(name, path) for name in names if (path := shutil.which(name)) is not None]
    if not found and wanted is not None:
        raise UsageError(f"--runtime: {wanted} is not installed")
    if not found:
        raise StateError("no runtime is installed: install crun or runc")
    if cgroups:
        return found
    able = [
        Runtime(one.name, one.program, ("--cgroup-manager=disabled",))
        for one in found
        if one.name == "crun"
    ]
    if not able:
        raise StateError(
            "/sys/fs/cgroup cannot be written here, and only crun starts containers so"
        )
    return able


def has_cgroups() -> bool:
    """Whether this process can make cgroups."""
    return os.access("/sys/fs/cgroup", os.W_OK)


def has_apparmor() -> bool:
    """Whether the kernel confines programs by AppArmor."""
    with suppress(OSError):
        return Path("/sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
    return False


def has_unified_cgroups() -> bool:
    """Whether there is nothing but cgroups v2."""
    return Path("/sys/fs/cgroup/cgroup.controllers").exists()


def _last_error(log: Path) -> str:
    """The last that a runtime wrote into its log."""
    try:
        with log.open("rb") as file:
            lines = file.read(_LOG_LIMIT).decode(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        with suppress(ValueError, AttributeError):
            message = json.loads(line).get("msg")
            if message:
                return brief(" ".join(str(message).split()))
    return brief(lines[-1]) if lines else ""
