"""From an image's config and a command line to what a runtime is told (OCI runtime spec, config.md).

Pure data: nothing is read here. What flags leave open is as with Docker: its mounts, its masked paths. Only
the programs may not gain privileges (`noNewPrivileges`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from soci_cli.errors import UsageError
from soci_cli.run.image_config import ImageConfig
from soci_cli.run.users import User

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PERIOD = 100_000  # microseconds of --cpus
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_SAFE = ("nosuid", "noexec", "nodev")
# Where it goes, its type, which is its source, too, and its options.
_MOUNTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("/proc", "proc", _SAFE),
    ("/dev", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        "/dev/pts",
        "devpts",
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/dev/shm", "tmpfs", (*_SAFE, "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", _SAFE),
    ("/sys", "sysfs", (*_SAFE, "ro")),
)


@dataclass(frozen=True)
class Mount:
    """One of -v or --tmpfs: a file or folder of this machine, or none for a tmpfs."""

    target: str
    source: Path | None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """Processors, bytes of memory, and processes; None is no limit."""

    cpus: float | None = None
    memory: int | None = None
    pids: int | None = None

    def __bool__(self) -> bool:
        return (self.cpus, self.memory, self.pids) != (None, None, None)


@dataclass(frozen=True)
class ContainerOptions:
    """What a command line says of a container; None, or nothing, leaves it to the image or to Docker's way.

    `env` are "NAME=VALUE"; `entrypoint` replaces the image's, and its command with it.
    """

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    env: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    working_dir: str | None = None
    user: str | None = None
    hostname: str | None = None
    network: Literal["host", "none"] = "host"
    terminal: bool = False
    read_only: bool = False
    limits: Limits = field(default_factory=Limits)
    no_new_privileges: bool = True
    apparmor: str | None = None


@dataclass(frozen=True)
class Surroundings:
    """What else decides: the container's `name` for its cgroup, and what this machine has.

    `files` are those that are put over the image's, by where; `seccomp` is resolved.
    """

    name: str
    hostname: str
    files: Mapping[str, Path]
    capabilities: tuple[str, ...]
    seccomp: Mapping[str, Any] | None = None
    cgroup_namespace: bool = False
    cgroups: bool = True


def arguments_of(config: ImageConfig, options: ContainerOptions) -> tuple[str, ...]:
    """The program and its arguments. UsageError where neither image nor command line names one."""
    if options.entrypoint is not None:
        entry: Sequence[str] = (options.entrypoint,) if options.entrypoint else ()
        found = (*entry, *options.command)
    else:
        found = (*config.entrypoint, *(options.command or config.command))
    if not found or not found[0]:
        raise UsageError("the image names no command to run; give one after its name")
    return found


def environment_of(
    config: ImageConfig, options: ContainerOptions, user: User, hostname: str
) -> dict[str, str]:
    """The variables of the program: usual ones, the image's, and those of the command line."""
    found = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if options.terminal:
        found["TERM"] = "xterm"
    for text in (*config.env, *options.env):
        name, equals, value = text.partition("=")
        if equals:
            found[name] = value
    found.setdefault("HOME", user.home)
    return found


def runtime_spec(
    config: ImageConfig, options: ContainerOptions, user: User, about: Surroundings
) -> dict[str, Any]:
    """The content of config.json; the root file system is `rootfs` beside it. UsageError."""
    hostname = options.hostname or about.hostname
    environment = environment_of(config, options, user, hostname)
    process: dict[str, Any] = {
        "terminal": options.terminal,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": list(arguments_of(config, options)),
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": _working_dir(config, options),
        "capabilities": {
            # Those of an ordinary user become effective by what a file has.
            "bounding": list(about.capabilities),
            "effective": list(about.capabilities),
            "permitted": list(about.capabilities),
        },
        "noNewPrivileges": options.no_new_privileges,
    }
    if options.apparmor:
        process["apparmorProfile"] = options.apparmor
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs", "readonly": options.read_only},
        "hostname": hostname,
        "mounts": _mounts(options, about),
        "linux": _linux(options, about),
    }


def _working_dir(config: ImageConfig, options: ContainerOptions) -> str:
    found = options.working_dir or config.working_dir or "/"
    if not found.startswith("/"):
        if options.working_dir:
            raise UsageError(f"-w: {found} is no absolute path")
        return f"/{found}"
    return found


def _mounts(options: ContainerOptions, about: Surroundings) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"destination": target, "type": kind, "source": kind, "options": list(flags)}
        for target, kind, flags in _MOUNTS
    ]
    if about.cgroups:
        flags = [*_SAFE, "relatime", "ro"]
        cgroup = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
        found.append({**cgroup, "options": flags})
    for target, path in about.files.items():
        found.append(_bind(target, path, ("rbind", "rprivate")))
    given = {mount.target for mount in options.mounts}
    found = [one for one in found if one["destination"] not in given]
    for mount in options.mounts:
        if mount.source is not None:
            found.append(_bind(mount.target, mount.source, mount.options))
        else:
            tmpfs = {"destination": mount.target, "type": "tmpfs", "source": "tmpfs"}
            found.append({**tmpfs, "options": list(mount.options)})
    return found


def _bind(target: str, source: Path, flags: Sequence[str]) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": str(source), "options": list(flags)}


def _linux(options: ContainerOptions, about: Surroundings) -> dict[str, Any]:
    kinds = ["mount", "pid", "ipc", "uts"]
    kinds += ["network"] if options.network == "none" else []
    kinds += ["cgroup"] if about.cgroup_namespace else []
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in kinds],
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READ_ONLY),
    }
    if about.cgroups:
        linux["cgroupsPath"] = f"/soci/{about.name}"
        linux["resources"] = _resources(options.limits)
    if about.seccomp is not None:
        linux["seccomp"] = dict(about.seccomp)
    return linux


def _resources(limits: Limits) -> dict[str, Any]:
    # What is allowed for all containers, such as /dev/null, the runtimes add.
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if limits.cpus is not None:
        found["cpu"] = {"quota": round(limits.cpus * _PERIOD), "period": _PERIOD}
    if limits.memory is not None:
        found["memory"] = {"limit": limits.memory}
    if limits.pids is not None:
        found["pids"] = {"limit": limits.pids}
    return found
