"""The flags of `soci run`, which are nerdctl's, and what they mean."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from soci_cli.errors import UsageError
from soci_cli.run import seccomp
from soci_cli.run.bundle import RunRequest
from soci_cli.run.containers import check_name
from soci_cli.run.control import parse_signal
from soci_cli.run.runtime import NAMES
from soci_cli.run.spec import ContainerOptions, Limits, Mount
from soci_cli.text import quote

FAILED = 125
"""The exit status for what goes wrong before there is a container, as with Docker."""

_F = TypeVar("_F", bound=Callable[..., Any])

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_UNITS = " kmgtp"
_LEAST_MEMORY = 6 << 20
_RECURSIVE = (5, 12)  # the kernel with mount_setattr(2)
_PROPAGATION = {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
_TMPFS = ("noexec", "nosuid", "nodev")


class RunCommand(click.Command):
    """A command whose flags end at its first argument, and for which a wrong one means exit status 125."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """See click."""
        try:
            return super().make_context(*arguments, **more)
        except click.UsageError as error:
            raise _WrongFlagError(error.message, error.ctx) from error


class _WrongFlagError(click.UsageError):
    """A command line that cannot be meant; the exit status is Docker's."""

    exit_code = FAILED


ENVIRONMENT_OPTIONS = (
    click.option("-i", "--interactive", is_flag=True, help="Give it this stdin."),
    click.option("-t", "--tty", "terminal", is_flag=True, help="Give it a terminal."),
    click.option(
        "-e",
        "--env",
        "env",
        metavar="NAME[=VALUE]",
        multiple=True,
        help="A variable; without a value it has that of this environment.",
    ),
    click.option(
        "--env-file",
        "env_files",
        metavar="FILE",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Variables, one a line.",
    ),
    click.option("-w", "--workdir", metavar="DIR", help="The folder to start in."),
    click.option("-u", "--user", metavar="USER[:GROUP]", help="Who to be: names or numbers."),
)
"""What a program in a container is given."""

_OPTIONS = (
    click.option(
        "-d",
        "--detach",
        is_flag=True,
        help="Run it in the background, and print its id: see soci ps, logs, stop and rm.",
    ),
    click.option("--rm", "remove", is_flag=True, help="Remove the container at its end."),
    click.option("--name", metavar="NAME", help="The container's name."),
    click.option("-l", "--label", "labels", metavar="NAME[=VALUE]", multiple=True, help="A label."),
    click.option(
        "--stop-signal",
        metavar="SIGNAL",
        help="What soci stop sends. Default: the image's, or TERM.",
    ),
    click.option(
        "-v",
        "--volume",
        "volumes",
        metavar="SRC:DST[:ro]",
        multiple=True,
        help="Show the file or folder SRC at DST.",
    ),
    click.option(
        "--tmpfs",
        "tmpfs",
        metavar="DST[:OPTIONS]",
        multiple=True,
        help="An empty folder in memory.",
    ),
    click.option("-h", "--hostname", metavar="NAME", help="The container's host name."),
    click.option("--entrypoint", metavar="PROGRAM", help="In place of the image's entrypoint."),
    click.option(
        "--network",
        "--net",
        "network",
        type=click.Choice(["host", "none"]),
        default="host",
        help="host (default) for this machine's, none for no network but lo.",
    ),
    click.option("--read-only", is_flag=True, help="Let nothing be written but what is mounted."),
    click.option("--cpus", metavar="N", type=float, help="Use N processors at most, as 1.5."),
    click.option("-m", "--memory", metavar="SIZE", help="Use this much memory at most, as 512m."),
    click.option("--pids-limit", metavar="N", type=int, help="Have N processes at most."),
    click.option("--cap-add", metavar="CAP", multiple=True, help="Add a capability, or ALL."),
    click.option("--cap-drop", metavar="CAP", multiple=True, help="Drop a capability, or ALL."),
    click.option(
        "--security-opt",
        "security",
        metavar="OPTION",
        multiple=True,
        help="seccomp=FILE, seccomp=unconfined, no-new-privileges[=false] or apparmor=NAME.",
    ),
    click.option("--privileged", is_flag=True, help="Refused: add what is needed by --cap-add."),
    click.option(
        "--platform",
        "platform_name",
        metavar="OS/ARCH[/VARIANT]",
        help="The platform of the image. Default: this machine's.",
    ),
    click.option(
        "--pull",
        type=click.Choice(["always", "missing", "never"]),
        default="missing",
        help="When to ask the registry for an image that is named without a transport.",
    ),
    click.option(
        "--soci-index-digest",
        metavar="DIGEST",
        help="The SOCI index to use; found by itself by default.",
    ),
    click.option(
        "--runtime", type=click.Choice(NAMES), help="What starts it. Default: what works."
    ),
)


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[_F], _F]:
    """A decorator that gives a command options, in this order."""

    def add(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def run_flags(command: _F) -> _F:
    """All of them; `run_request` reads them."""
    return with_options((*ENVIRONMENT_OPTIONS, *_OPTIONS))(command)


def run_request(
    flags: Mapping[str, Any], words: Sequence[str], environ: Mapping[str, str]
) -> RunRequest:
    """What a command line asks for. UsageError."""
    if flags["privileged"]:
        raise UsageError(
            "--privileged is not for images that come from elsewhere while they run; give what is needed: "
            "--cap-add, --security-opt seccomp=unconfined, -v"
        )
    security = _security(flags["security"])
    options = ContainerOptions(
        command=tuple(words),
        entrypoint=flags["entrypoint"],
        env=tuple(environment_of_flags(flags, environ)),
        mounts=(*map(_volume, flags["volumes"]), *map(_tmpfs, flags["tmpfs"])),
        working_dir=flags["workdir"],
        user=flags["user"],
        hostname=flags["hostname"],
        network=flags["network"],
        terminal=flags["terminal"],
        read_only=flags["read_only"],
        limits=_limits(flags),
        no_new_privileges=security.get("no_new_privileges", True),
        apparmor=security.get("apparmor"),
    )
    return RunRequest(
        options,
        name=None if flags["name"] is None else check_name(flags["name"]),
        labels=tuple(_label(text) for text in flags["labels"]),
        stop_signal=flags["stop_signal"] and parse_signal(flags["stop_signal"]).name,
        cap_add=flags["cap_add"],
        cap_drop=flags["cap_drop"],
        seccomp=security.get("seccomp"),
        runtime=flags["runtime"],
        keep=not flags["remove"],
        stdin=flags["interactive"],
    )


def environment_of_flags(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[str]:
    """The variables of --env-file and then -e, "NAME=VALUE". UsageError."""
    for path in flags["env_files"]:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise UsageError(f"--env-file: {path}: {reason}") from error
        for line in lines:
            if line.strip() and not line.lstrip().startswith("#"):
                yield from _variable("--env-file", line.lstrip(), environ)
    for text in flags["env"]:
        yield from _variable("-e", text, environ)


def _variable(flag: str, text: str, environ: Mapping[str, str]) -> Iterator[str]:
    name, equals, _ = text.partition("=")
    if not name or any(c.isspace() for c in name):
        raise UsageError(f"{flag}: {quote(text)} is no NAME=VALUE")
    if equals:
        yield text
    elif name in environ:
        yield f"{name}={environ[name]}"


def _volume(text: str) -> Mount:
    source, colon, rest = text.partition(":")
    target, _, words = rest.partition(":")
    if not colon or not target.startswith("/") or target == "/":
        raise UsageError(f"-v: {quote(text)} is no SRC:DST, DST a path in the container")
    if "/" not in source and not source.startswith("."):
        raise UsageError(
            f"-v: {quote(source)} is the name of a volume; give a folder of this machine, as ./{source}"
        )
    options = {word for word in words.split(",") if word}
    unknown = sorted(options - _PROPAGATION - {"ro", "rw"})
    if unknown:
        raise UsageError(f"-v: {quote(unknown[0])} is no option of a volume; it knows ro and rw")
    path = Path(source).absolute()
    try:
        if not path.exists():
            path.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"-v: {path}: {error.strerror}") from error
    more = ["ro"] if "ro" in options else []
    if more and seccomp.version_of(os.uname().release) >= _RECURSIVE:
        more.append("rro")  # and so is what is mounted below
    return Mount(target, path, ("rbind", *(sorted(options & _PROPAGATION) or ["rprivate"]), *more))


def _tmpfs(text: str) -> Mount:
    target, _, words = text.partition(":")
    if not target.startswith("/") or target == "/":
        raise UsageError(f"--tmpfs: {quote(target)} is no path in the container")
    return Mount(target, None, (*_TMPFS, *(word for word in words.split(",") if word)))


def _limits(flags: Mapping[str, Any]) -> Limits:
    cpus, pids, memory = flags["cpus"], flags["pids_limit"], flags["memory"]
    if cpus is not None and not 0.01 <= cpus <= 10_000:
        raise UsageError("--cpus: at least 0.01 of a processor")
    size = None
    if memory is not None:
        found = _SIZE.fullmatch(memory.strip())
        if not found:
            raise UsageError(f"-m: {quote(memory)} is no size, as 512m or 2g")
        size = int(float(found[1]) * 1024 ** _UNITS.index(found[2].lower() or " "))
        if size < _LEAST_MEMORY:
            raise UsageError("-m: at least 6m")
    return Limits(cpus, size, None if pids is None or pids <= 0 else pids)


def _security(texts: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, value = re.split(r"[=:]", text, maxsplit=1) if re.search("[=:]", text) else (text, "")
        if name == "no-new-privileges" and value in ("", "true", "false"):
            found["no_new_privileges"] = value != "false"
        elif name == "apparmor" and value:
            found["apparmor"] = None if value == "unconfined" else value
        elif name == "seccomp" and value:
            found["seccomp"] = {} if value == "unconfined" else _profile(Path(value))
        else:
            raise UsageError(
                f"--security-opt: {quote(text)} is none of seccomp=FILE, seccomp=unconfined, "
                "no-new-privileges and apparmor=NAME"
            )
    return found


def _profile(path: Path) -> dict[str, Any]:
    try:
        return seccomp.parse_profile(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"--security-opt: {path}: {error.strerror}") from error


def _label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise UsageError(f"--label: {quote(text)} is no NAME=VALUE")
    return name, value
