"""What a container is started from: its folder, its root file system, and the bundle for a runtime."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import StateError, StorageError
from soci_cli.processes.folder import OwnFolder
from soci_cli.run import capabilities, seccomp
from soci_cli.run.containers import ContainerRecord, Containers, bundle_of
from soci_cli.run.images import ImageMount
from soci_cli.run.rootfs import check_program, mount_rootfs, user_of
from soci_cli.run.runtime import Runtime, has_cgroups, has_unified_cgroups
from soci_cli.run.spec import (
    ContainerOptions,
    Surroundings,
    arguments_of,
    environment_of,
    runtime_spec,
)

_LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


@dataclass(frozen=True)
class RunRequest:
    """A container that is to be started; `stop_signal` to `runtime` are None, or empty, where nobody said.

    It is to `keep` when it has ended; with `stdin` it has one.

    Of `seccomp`, a profile in Docker's format, None is the usual one where this machine has it, and {} is
    none.
    """

    options: ContainerOptions
    name: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    stop_signal: str | None = None
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    seccomp: dict[str, object] | None = None
    runtime: str | None = None
    keep: bool = False
    stdin: bool = False


@dataclass(frozen=True)
class Start:
    """What the monitor of a container is told of it, as plain data.

    `covered` are folders that something is mounted at; `runtimes` are tried in this order.
    """

    record: ContainerRecord
    environment: Mapping[str, str]
    cwd: str
    covered: tuple[str, ...]
    terminal: bool
    stdin: bool
    runtimes: tuple[Runtime, ...]


@dataclass(frozen=True)
class Prepared:
    """A container that can be started."""

    folder: OwnFolder
    start: Start

    @property
    def bundle(self) -> Path:
        """The folder with config.json and rootfs."""
        return bundle_of(self.folder)

    def check_program(self) -> None:
        """Raises why its program cannot be there or be started, where that is so."""
        start, rootfs = self.start, self.bundle / "rootfs"
        check_program(rootfs, start.record.command[0], start.environment, start.cwd, start.covered)


def claim(
    containers: Containers, request: RunRequest, image: ImageMount
) -> tuple[OwnFolder, ContainerRecord]:
    """The folder of a new container, so that its image stays mounted. UsageError, StorageError."""
    record = _record(request, image)
    return containers.claim(record), record


def prepare(
    folder: OwnFolder, request: RunRequest, image: ImageMount, runtimes: Sequence[Runtime]
) -> Prepared:
    """Mounts the root file system of a container and writes its config.json.

    Raises UsageError and StateError for what image or machine cannot give, MountError and StorageError.
    """
    config, options = image.config, request.options
    arguments_of(config, options)
    cgroups = has_cgroups()
    if options.limits and not cgroups:
        raise StateError(
            "--cpus, -m and --pids-limit need /sys/fs/cgroup to be writable, which it is not"
        )
    given = capabilities.chosen(request.cap_add, request.cap_drop, capabilities.own_bounds())
    bundle = bundle_of(folder)
    rootfs, layer = bundle / "rootfs", folder.scratch / "layer"
    try:
        for path in (bundle, rootfs, layer):
            path.mkdir(mode=0o700)
        mount_rootfs(Path(image.record.target), layer, rootfs)
        user = user_of(rootfs, config.user if options.user is None else options.user)
        uname = os.uname()
        hostname = options.hostname or (
            uname.nodename if options.network == "host" else folder.name
        )
        about = Surroundings(
            name=folder.name,
            hostname=hostname,
            files=_write_files(bundle, hostname, options.network == "host"),
            capabilities=given,
            seccomp=_seccomp(request, given),
            cgroup_namespace=has_unified_cgroups(),
            cgroups=cgroups,
        )
        spec = runtime_spec(config, options, user, about)
        (bundle / "config.json").write_text(json.dumps(spec), "ascii")
    except OSError as error:
        raise StorageError(f"{folder.path}: {error.strerror or error}") from error
    start = Start(
        _record(request, image),
        environment_of(config, options, user, hostname),
        spec["process"]["cwd"],
        ("/dev", "/proc", "/sys", *(one.target for one in options.mounts)),
        options.terminal,
        request.stdin,
        tuple(runtimes),
    )
    return Prepared(folder, start)


def _record(request: RunRequest, image: ImageMount) -> ContainerRecord:
    return ContainerRecord(
        image=image.record.image,
        mount=image.name,
        name=request.name or "",
        digest=image.record.digest,
        command=arguments_of(image.config, request.options),
        created=time.time(),
        stop_signal=request.stop_signal or image.config.stop_signal,
        keep=request.keep,
        labels={**image.config.labels, **dict(request.labels)},
    )


def _write_files(bundle: Path, hostname: str, host_network: bool) -> dict[str, Path]:
    """The files that tell a container of its network, by where it has them."""
    hosts, resolv = _LOCAL + f"127.0.1.1\t{hostname}\n", ""
    if host_network:
        with suppress(OSError):
            hosts = Path("/etc/hosts").read_text("utf-8", "replace")
        with suppress(OSError):
            resolv = Path("/etc/resolv.conf").read_text("utf-8", "replace")
    found = {}
    for name, text in (("hosts", hosts), ("resolv.conf", resolv), ("hostname", f"{hostname}\n")):
        path = bundle / name
        path.write_text(text, "utf-8")
        path.chmod(0o644)
        found[f"/etc/{name}"] = path
    return found


def _seccomp(request: RunRequest, given: tuple[str, ...]) -> dict[str, object] | None:
    profile, uname = request.seccomp, os.uname()
    if profile is None:
        try:
            data = seccomp.DEFAULT_PROFILE.read_bytes()
        except OSError:
            return None
        profile = seccomp.parse_profile(data, str(seccomp.DEFAULT_PROFILE))
    if not profile:
        return None
    return seccomp.resolve_profile(profile, given, uname.machine, uname.release)
