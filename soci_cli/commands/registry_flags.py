"""The flags of commands that talk to registries."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from soci_cli.errors import UsageError
from soci_cli.targets.registry.options import (
    DEFAULT_DOWNLOADS,
    DEFAULT_UPLOADS,
    Credentials,
    RegistryOptions,
)

_F = TypeVar("_F", bound=Callable[..., Any])

_MAX_PASSWORD = 1 << 20
_PATH = click.Path(path_type=Path)

# By the field of RegistryFlags that they set.
_REGISTRY_OPTIONS = {
    "plain_http": click.option(
        "--plain-http", is_flag=True, help="Talk to the registry without TLS."
    ),
    "skip_verify": click.option(
        "-k", "--skip-verify", is_flag=True, help="Do not check the registry's certificate."
    ),
    "tls_ca": click.option(
        "--tlscacert",
        "tls_ca",
        metavar="FILE",
        type=_PATH,
        help="Authorities to trust in place of the system's.",
    ),
    "tls_cert": click.option(
        "--tlscert", "tls_cert", metavar="FILE", type=_PATH, help="Client certificate to show."
    ),
    "tls_key": click.option(
        "--tlskey", "tls_key", metavar="FILE", type=_PATH, help="Key of --tlscert."
    ),
    "hosts_dirs": click.option(
        "--hosts-dir",
        "hosts_dirs",
        metavar="DIR",
        multiple=True,
        help="Folder of hosts.toml files; may be repeated.",
    ),
}
_TRANSFER_OPTIONS = {
    "user": click.option(
        "-u", "--user", metavar="USER[:PASSWORD]", help="Who to be to the registry."
    ),
    "password_stdin": click.option(
        "--password-stdin", is_flag=True, help="Read the password of --user from stdin."
    ),
    "max_downloads": click.option(
        "--max-concurrent-downloads",
        "max_downloads",
        metavar="N",
        type=click.IntRange(min=1),
        help=f"Blobs to download at a time; {DEFAULT_DOWNLOADS} by default.",
    ),
    "max_uploads": click.option(
        "--max-concurrent-uploads",
        "max_uploads",
        metavar="N",
        type=click.IntRange(min=0),
        help=f"Blobs to upload at a time; {DEFAULT_UPLOADS} by default, or for 0.",
    ),
}


@dataclass(frozen=True)
class RegistryFlags:
    """What the flags of one command say; None where a flag was not given.

    `user` may hold a password after a colon.
    """

    plain_http: bool = False
    skip_verify: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    hosts_dirs: tuple[str, ...] = ()
    user: str | None = field(default=None, repr=False)
    password_stdin: bool = False
    max_downloads: int | None = None
    max_uploads: int | None = None

    def options(
        self, domains: Sequence[str] = (), redirect_hosts: tuple[str, ...] = ()
    ) -> RegistryOptions:
        """The options of a command whose images are in the registries `domains`.

        `redirect_hosts` is the setting of that name.

        --user is for the only registry of the command; its password may be read from stdin or
        asked for here. Raises UsageError when there are several registries or none, and when
        the password is missing.
        """
        hosts_dirs = tuple(
            Path(part) for value in self.hosts_dirs for part in value.split(",") if part
        )
        return RegistryOptions(
            credentials=self._credentials(set(domains)),
            plain_http=self.plain_http,
            skip_verify=self.skip_verify,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            hosts_dirs=hosts_dirs or None,
            redirect_hosts=redirect_hosts,
            max_downloads=self.max_downloads or DEFAULT_DOWNLOADS,
            max_uploads=self.max_uploads or DEFAULT_UPLOADS,
        )

    def _credentials(self, domains: set[str]) -> dict[str, Credentials]:
        if self.user is None:
            if self.password_stdin:
                raise UsageError("--password-stdin needs --user")
            return {}
        if not domains:
            raise UsageError("--user is for a registry, but no place of this command is in one")
        if len(domains) > 1:
            names = " and ".join(sorted(domains))
            raise UsageError(
                f"--user is for one registry, not for {names}; use soci login for each"
            )
        name, colon, password = self.user.partition(":")
        if not name:
            raise UsageError("--user: the user name is empty")
        if self.password_stdin:
            if colon:
                raise UsageError("--password-stdin: --user has a password already")
            password = password_from_stdin()
        elif not colon:
            password = ask_password("give --user USER with --password-stdin, or use soci login")
        return {domains.pop(): make_credentials(name, password)}


def registry_flags(command: _F) -> _F:
    """How to reach a registry; the command gets a keyword argument `registry: RegistryFlags`."""
    return _with_flags(command, _REGISTRY_OPTIONS)


def transfer_flags(command: _F) -> _F:
    """As registry_flags, and who to be there and how many blobs to move at a time."""
    return _with_flags(command, {**_TRANSFER_OPTIONS, **_REGISTRY_OPTIONS})


def _with_flags(command: _F, options: Mapping[str, Callable[[Any], Any]]) -> _F:
    @functools.wraps(command)
    def with_registry(*args: Any, **values: Any) -> Any:
        flags = RegistryFlags(**{name: values.pop(name) for name in options})
        return command(*args, registry=flags, **values)

    wrapped: Any = with_registry
    for option in reversed(list(options.values())):  # click shows the last one that was added first
        wrapped = option(wrapped)
    return cast(_F, wrapped)


def make_credentials(username: str, password: str) -> Credentials:
    """Credentials as typed. UsageError for an empty password and for what is no text."""
    if not password:
        raise UsageError("the password is empty")
    try:
        (username + password).encode()
    except UnicodeEncodeError:
        # From None: the cause has the password in it.
        raise UsageError("user name and password must be UTF-8 text") from None
    return Credentials(username, password)


def password_from_stdin() -> str:
    """All of stdin without the newline at its end."""
    data = sys.stdin.buffer.read(_MAX_PASSWORD + 1)
    if len(data) > _MAX_PASSWORD:
        raise UsageError("--password-stdin: stdin is too long for a password")
    for newline in (b"\r\n", b"\n", b"\r"):
        if data.endswith(newline):
            data = data[: -len(newline)]
            break
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("--password-stdin: stdin is not UTF-8 text") from None


def ask_password(otherwise: str) -> str:
    """A password typed on the terminal, not shown. UsageError with advice where there is none."""
    _need_terminal("password", otherwise)
    password: str = click.prompt("Password", hide_input=True, err=True)
    return password


def ask_username(otherwise: str) -> str:
    """A user name typed on the terminal. UsageError with advice where there is none."""
    _need_terminal("user name", otherwise)
    username: str = click.prompt("Username", err=True)
    return username


def _need_terminal(what: str, otherwise: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"no terminal to ask for the {what}; {otherwise}")
