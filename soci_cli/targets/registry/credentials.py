"""Credentials of registries: Docker's config.json, credential helpers, and podman's auth.json.

What docker, nerdctl, podman and skopeo stored is found, and what is stored here they find. Helpers
are run here and not through oras, which takes a failing helper for one that has nothing, waits for
it without end, and can neither store nor erase.

No message holds what is in these files or what a helper printed: either may be a secret.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import ConfigError, UsageError
from soci_cli.new_file import replacing
from soci_cli.oci.canonical import loads
from soci_cli.oci.references import DOCKER_HUB, parse_reference
from soci_cli.targets._disk import disk_errors
from soci_cli.targets.registry.options import Credentials
from soci_cli.text import quote

_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_DOCKER_HUB_HOSTS = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")
_TOKEN_USER = "<token>"  # the user name that says: the secret is an identity token
_NOT_FOUND = b"credentials not found in native keychain"
_HELPER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HELPER_SECONDS = 120.0  # the user may have to unlock a keychain
_MAX_FILE = 4 << 20


@dataclass(frozen=True)
class _Config:
    """A config.json or auth.json as it was read; `document` is empty where there is no file."""

    path: Path
    document: Mapping[str, object]

    def table(self, key: str) -> dict[str, object]:
        value = self.document.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ConfigError(f"{self.path}: {key}: expected an object")
        return value


@dataclass(frozen=True)
class _Helper:
    """A program `docker-credential-NAME`, and the file that says so."""

    name: str
    config: Path

    @property
    def program(self) -> str:
        return f"docker-credential-{self.name}"


def registry_domain(server: str) -> str:
    """The registry that SERVER of a command line means, as in a Reference.

    Takes `example.com:5000` and URLs such as `https://index.docker.io/v1/`; every name of Docker
    Hub is `docker.io`. Raises UsageError for what no image name can mean.
    """
    host, _, path = re.sub("^https?://", "", server).partition("/")
    if host.lower() in _DOCKER_HUB_HOSTS:
        host = DOCKER_HUB
    try:
        is_registry = parse_reference(f"{host}/name").domain == host
    except UsageError:
        is_registry = False
    if not is_registry or path.strip("/") not in ("", "v1", "v2"):
        raise UsageError(
            f"not a registry: {quote(server)}; expected HOST[:PORT], such as example.com:5000"
        )
    return host


def find_credentials(
    domain: str, repository: str, environ: Mapping[str, str]
) -> Credentials | None:
    """What is stored for a repository of the registry `domain`; None when there is nothing.

    The order is that of docker and podman: an entry for a part of the registry, the longest first;
    a credential helper; an entry for the registry. Raises ConfigError for a broken file and for a
    helper that is missing or fails.
    """
    for config in (_docker_config(environ), _podman_config(environ)):
        if config is None:
            continue
        entries = _entries(config, domain, repository)
        for key in (key for key, path in entries if path):
            if found := _decode(config, key):
                return found
        helper = _helper(config, domain)
        if helper and (found := _get(helper, _server_key(domain), environ)):
            return found
        for key in (key for key, path in entries if not path):
            if found := _decode(config, key):
                return found
    return None


def credential_helper(domain: str, environ: Mapping[str, str]) -> str:
    """The helper program that keeps the credentials of `domain`; "" when config.json does."""
    helper = _helper(_own_config(environ), domain)
    return helper.program if helper else ""


def store_credentials(domain: str, credentials: Credentials, environ: Mapping[str, str]) -> str:
    """Store what find_credentials shall find; says where it went: a helper or a file.

    Everything else in config.json stays. Raises ConfigError for a broken file or helper,
    StorageError when the file cannot be written.
    """
    config = _own_config(environ)
    key = _server_key(domain)
    helper = _helper(config, domain)
    if helper is None:
        _write(config, {**config.table("auths"), key: _encode(credentials)})
        return str(config.path)
    secret = {
        "ServerURL": key,
        "Username": _TOKEN_USER if credentials.identity_token else credentials.username,
        "Secret": credentials.identity_token or credentials.password,
    }
    _run(helper, "store", json.dumps(secret).encode(), environ)
    _remove_entries(config, domain)  # an older password in clear text is of no use any more
    return helper.program


def erase_credentials(domain: str, environ: Mapping[str, str]) -> bool:
    """Forget the credentials of a registry, in the helper and in config.json.

    False when there were none. Raises ConfigError and StorageError as store_credentials does.
    """
    config = _own_config(environ)
    key = _server_key(domain)
    helper = _helper(config, domain)
    in_helper = helper is not None and _get(helper, key, environ) is not None
    if helper is not None and in_helper:
        _run(helper, "erase", key.encode(), environ)
    in_file = _remove_entries(config, domain)
    return in_helper or in_file


# Files


def _docker_config(environ: Mapping[str, str]) -> _Config | None:
    folder = environ.get("DOCKER_CONFIG", "")
    if folder:
        return _read(Path(folder, "config.json"))
    home = environ.get("HOME", "")
    return _read(Path(home, ".docker", "config.json")) if home else None


def _own_config(environ: Mapping[str, str]) -> _Config:
    config = _docker_config(environ)
    if config is None:
        raise ConfigError("no place for credentials: set DOCKER_CONFIG, or HOME")
    return config


def _podman_config(environ: Mapping[str, str]) -> _Config | None:
    if environ.get("REGISTRY_AUTH_FILE"):
        return _read(Path(environ["REGISTRY_AUTH_FILE"]))
    folder = environ.get("XDG_RUNTIME_DIR", "")
    return _read(Path(folder, "containers", "auth.json")) if folder else None


def _read(path: Path) -> _Config:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return _Config(path, {})
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not data.strip():
        return _Config(path, {})
    document = loads(data, str(path), _MAX_FILE, kind=ConfigError)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return _Config(path, document)


def _write(config: _Config, auths: Mapping[str, object]) -> None:
    """Replace `auths` in the file: written aside, and readable by its owner only."""
    document = {**config.document, "auths": auths}
    data = json.dumps(document, indent="\t", ensure_ascii=False).encode()
    with disk_errors("write", config.path):
        path = config.path.resolve()  # of a symbolic link, its target is replaced
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, 0o600) as file:
            if path.exists():
                old = path.stat()
                os.fchmod(file.fileno(), old.st_mode & 0o600)
                with suppress(PermissionError):  # root may work on behalf of somebody
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
            file.write(data)


def _remove_entries(config: _Config, domain: str) -> bool:
    """Take a registry's own entries out of the file; whether one of them said something."""
    auths = config.table("auths")
    mine = [key for key, path in _entries(config, domain, "") if not path]
    if not mine:
        return False
    _write(config, {key: entry for key, entry in auths.items() if key not in mine})
    return any(auths[key] for key in mine)


# Entries of `auths`


def _server_key(domain: str) -> str:
    """The name under which docker keeps a registry."""
    return _DOCKER_HUB_KEY if domain in _DOCKER_HUB_HOSTS else domain


def _entries(config: _Config, domain: str, repository: str) -> list[tuple[str, str]]:
    """The keys of `auths` that cover a repository, the best first, each with its path.

    The path is empty for a key that names the registry as a whole.
    """
    wanted = _split_key(_server_key(domain))[0]
    best = _server_key(domain)
    found = []
    for key in config.table("auths"):
        host, path = _split_key(key)
        if host == wanted and (not path or f"{repository}/".startswith(f"{path}/")):
            found.append((key, path))
    return sorted(found, key=lambda item: (-len(item[1]), item[0] != best))


def _split_key(key: str) -> tuple[str, str]:
    """Host and path of a key, as podman reads it: the path of a URL, such as /v1/, says nothing."""
    without_scheme = re.sub("^https?://", "", key)
    host, _, path = without_scheme.partition("/")
    if without_scheme != key or path in ("v1/", "v2/"):
        path = ""
    host = host.lower().removesuffix(":443")
    return DOCKER_HUB if host in _DOCKER_HUB_HOSTS else host, path.strip("/")


def _encode(credentials: Credentials) -> dict[str, str]:
    # As docker: beside an identity token the password is not kept.
    password = "" if credentials.identity_token else credentials.password
    pair = f"{credentials.username}:{password}".encode()
    entry = {"auth": base64.b64encode(pair).decode()}
    if credentials.identity_token:
        entry["identitytoken"] = credentials.identity_token
    return entry


def _decode(config: _Config, key: str) -> Credentials | None:
    """The credentials of one entry; None when it is empty, as beside a helper."""
    where = f"{config.path}: auths[{quote(key)}]"
    entry = config.table("auths")[key]
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: expected an object")
    auth, username, password, token = (
        _text(entry, name, where) for name in ("auth", "username", "password", "identitytoken")
    )
    if auth:
        try:
            pair = base64.b64decode(re.sub(r"\s", "", auth), validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            pair = ""
        username, colon, password = pair.partition(":")
        if not colon:
            raise ConfigError(
                f"{where}: auth: expected base64 of USER:PASSWORD; log in again with soci login"
            )
        password = password.strip("\0")
    if not (username or password or token):
        return None
    return Credentials(username, password, token)


def _text(entry: Mapping[str, object], key: str, where: str) -> str:
    value = entry.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {key}: expected a string")
    return value


# Helpers


def _helper(config: _Config, domain: str) -> _Helper | None:
    """The helper that a file names for a registry, or else for all."""
    wanted = _split_key(_server_key(domain))[0]
    name = config.document.get("credsStore")
    for key, value in config.table("credHelpers").items():
        if _split_key(key) == (wanted, ""):
            name = value
    if name is None or name == "":
        return None
    if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
        raise ConfigError(f"{config.path}: credHelpers or credsStore: not the name of a helper")
    return _Helper(name, config.path)


def _get(helper: _Helper, key: str, environ: Mapping[str, str]) -> Credentials | None:
    answer = _run(helper, "get", key.encode(), environ)
    if answer is None:
        return None
    what = f"{helper.program} gave no JSON; {_advice(helper, key)}"
    document = loads(answer, what, kind=ConfigError)
    values = document if isinstance(document, dict) else {}
    username, secret = values.get("Username"), values.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise ConfigError(f"{helper.program} gave no Username and Secret; {_advice(helper, key)}")
    if username == _TOKEN_USER:
        return Credentials("", "", secret)
    return Credentials(username, secret) if username or secret else None


def _run(helper: _Helper, action: str, data: bytes, environ: Mapping[str, str]) -> bytes | None:
    """What the helper prints; None when it says that it has no such credentials.

    The protocol: https://github.com/docker/docker-credential-helpers#development
    """
    program = shutil.which(helper.program, path=environ.get("PATH", os.defpath))
    if program is None:
        raise ConfigError(
            f"credential helper {helper.program} is not installed, but {helper.config} names it; "
            "install it or take it out of that file"
        )
    try:
        done = subprocess.run(
            [program, action],
            input=data,
            capture_output=True,
            env=dict(environ),
            timeout=_HELPER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{helper.program} {action} gave no answer in {_HELPER_SECONDS:g} seconds"
        ) from None
    except OSError as error:
        raise ConfigError(f"{program} cannot be run: {error.strerror}") from error
    if done.returncode == 0:
        return done.stdout
    if action == "get" and done.stdout.strip() == _NOT_FOUND:
        return None
    raise ConfigError(
        f"{helper.program} {action} failed with status {done.returncode}; run it by hand to see why"
    )


def _advice(helper: _Helper, key: str) -> str:
    return f"try: echo {key} | {helper.program} get"
