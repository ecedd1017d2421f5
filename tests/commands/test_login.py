"""`soci login`, `soci logout`, and the flags of all commands that talk to registries."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from soci_cli.commands.registry_flags import RegistryFlags, registry_flags, transfer_flags
from soci_cli.errors import SociError, UsageError
from soci_cli.targets.registry.options import Credentials, RegistryOptions
from tests.support.commands import SOCI, Done, Soci, environment, process
from tests.support.machine import need
from tests.support.servers.ca import Ca, make_ca
from tests.support.servers.docker_registry import DockerRegistry

USERS = {"alice": "correct horse: battery"}
PASSWORD = USERS["alice"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Docker's config.json is."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".docker" / "config.json"


class Checks:
    """Stands in for the registry."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Credentials, RegistryOptions]] = []
        self.error: SociError | None = None

    def __call__(self, domain: str, credentials: Credentials, options: RegistryOptions) -> None:
        self.calls.append((domain, credentials, options))
        if self.error:
            raise self.error


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    checks = Checks()
    monkeypatch.setattr("soci_cli.targets.registry.client.check_login", checks)
    return checks


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def stored(config: Path) -> dict[str, str]:
    """USER:PASSWORD by registry."""
    entries = json.loads(config.read_text())["auths"]
    return {key: base64.b64decode(entry["auth"]).decode() for key, entry in entries.items()}


def test_login_and_logout(soci: Soci, config: Path, checks: Checks) -> None:
    done = soci("login", "-u", "alice", "-p", "word", "example.com").good()
    assert done.text == "Login Succeeded\n"
    seen, unencrypted = done.err.splitlines()
    assert "warning" in seen
    assert "--password-stdin" in seen
    assert "unencrypted" in unencrypted
    assert str(config) in unencrypted
    assert checks.calls == [("example.com", Credentials("alice", "word"), RegistryOptions())]
    assert stored(config) == {"example.com": "alice:word"}
    removed = "Removed login credentials for example.com\n"
    assert soci("logout", "https://example.com").good().text == removed
    assert soci("logout", "example.com").good().text == "Not logged in to example.com\n"


def test_docker_hub_is_the_default(soci: Soci, config: Path, checks: Checks) -> None:
    soci("login", "-u", "alice", "-p", "word").good()
    assert checks.calls[0][0] == "docker.io"
    assert stored(config) == {"https://index.docker.io/v1/": "alice:word"}
    assert soci("logout").good().text == "Removed login credentials for docker.io\n"


@pytest.mark.parametrize(
    ("given", "password"),
    [(b"word\n", "word"), (b"word\r\n", "word"), (b"word", "word"), (b" a\n\n", " a\n")],
)
def test_password_from_stdin(
    given: bytes,
    password: str,
    soci: Soci,
    config: Path,
    checks: Checks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_stdin(monkeypatch, given)
    soci("login", "--username", "alice", "--password-stdin", "example.com").good()
    assert checks.calls[0][1] == Credentials("alice", password)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--password-stdin"], "needs --username"),
        (["-u", "alice", "-p", "x", "--password-stdin"], "contradict"),
        (["-u", "", "-p", "x"], "user name is empty"),
        (["-u", "a:b", "-p", "x"], "colon"),
        (["-u", "alice", "-p", ""], "password is empty"),
        (["-u", "alice", "-p", "\udcff"], "UTF-8"),
        (["-u", "alice", "--password-stdin"], "password is empty"),
        (["-u", "alice"], "no terminal to ask for the password"),
        ([], "no terminal to ask for the user name"),
        (["-u", "alice", "-p", "x", "name"], "not a registry"),
    ],
)
def test_usage(
    arguments: list[str],
    part: str,
    soci: Soci,
    config: Path,
    checks: Checks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_stdin(monkeypatch, b"\n")
    soci("login", *arguments).bad(2, part)
    assert not checks.calls
    assert not config.exists()


def test_stdin_that_is_no_password(
    soci: Soci, config: Path, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_stdin(monkeypatch, b"\xff\n")
    soci("login", "-u", "alice", "--password-stdin").bad(2, "not UTF-8")
    give_stdin(monkeypatch, b"x" * (2 << 20))
    soci("login", "-u", "alice", "--password-stdin").bad(2, "too long")


def test_refused_credentials_are_not_stored(
    soci: Soci, config: Path, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.error = SociError("example.com refuses")
    give_stdin(monkeypatch, b"word")
    soci("login", "-u", "alice", "--password-stdin", "example.com").bad(1, "example.com refuses")
    assert not config.exists()


def test_broken_config_is_found_first(soci: Soci, config: Path, checks: Checks) -> None:
    config.parent.mkdir()
    config.write_text("{")
    soci("login", "-u", "alice", "-p", "x", "example.com").bad(1, str(config), "not valid JSON")
    soci("logout", "example.com").bad(1, str(config), "not valid JSON")
    assert not checks.calls


def test_no_warning_with_a_helper(
    soci: Soci, config: Path, checks: Checks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\ncat > {tmp_path}/kept.json\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    config.parent.mkdir()
    config.write_text('{"credsStore": "test"}')
    give_stdin(monkeypatch, b"word")
    done = soci("login", "-u", "alice", "--password-stdin", "example.com").good()
    assert done.err == ""
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept == {"ServerURL": "example.com", "Username": "alice", "Secret": "word"}


def test_flags_of_login(soci: Soci, config: Path, checks: Checks) -> None:
    flags = ["--plain-http", "-k", "--tlscacert", "a", "--tlscert", "b", "--tlskey", "c"]
    folders = ["--hosts-dir", "x,y", "--hosts-dir", "z"]
    soci("login", "-u", "alice", "-p", "word", *flags, *folders, "example.com").good()
    assert checks.calls[0][2] == RegistryOptions(
        plain_http=True,
        skip_verify=True,
        tls_ca=Path("a"),
        tls_cert=Path("b"),
        tls_key=Path("c"),
        hosts_dirs=(Path("x"), Path("y"), Path("z")),
    )


# On a terminal


def on_terminal(*arguments: str, home: Path, answers: list[tuple[bytes, bytes]]) -> tuple[int, str]:
    """Runs a command at a terminal; each answer is typed once the text before it has come."""
    main, side = pty.openpty()
    started = subprocess.Popen(
        [*SOCI, *arguments],
        stdin=side,
        stdout=side,
        stderr=side,
        cwd=home,
        env=environment(home),
        start_new_session=True,
    )
    os.close(side)
    seen = b""
    waiting = list(answers)
    while True:
        ready, _, _ = select.select([main], [], [], 60)
        try:
            piece = os.read(main, 65536) if ready else b""
        except OSError:  # the other side was closed
            piece = b""
        if not piece:
            break
        seen += piece
        if waiting and waiting[0][0] in seen:
            os.write(main, waiting.pop(0)[1])
    os.close(main)
    return started.wait(timeout=60), seen.decode()


# Real registries


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    need("docker-registry")
    with DockerRegistry(tmp_path_factory.mktemp("htpasswd"), htpasswd=USERS) as registry:
        yield registry


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return make_ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def strict_registry(tmp_path_factory: pytest.TempPathFactory, ca: Ca) -> Iterator[DockerRegistry]:
    """A registry with TLS that asks for a certificate of its clients."""
    need("docker-registry")
    folder = tmp_path_factory.mktemp("strict")
    pair = ca.issue("127.0.0.1")
    with DockerRegistry(folder, htpasswd=USERS, tls=pair, client_ca=ca.cert) as registry:
        yield registry


def login(
    host: str, *flags: str | Path, home: Path, password: str = PASSWORD, user: str = "alice"
) -> Done:
    stdin = f"{password}\n".encode()
    arguments = ("login", "-u", user, "--password-stdin", *flags, host)
    return process(*arguments, home=home, stdin=stdin, env={"DOCKER_CONFIG": str(home / "docker")})


def test_real_login(registry: DockerRegistry, tmp_path: Path) -> None:
    config = tmp_path / "docker" / "config.json"
    login(registry.host, home=tmp_path, password="wrong").bad(1, registry.host)
    assert not config.exists()
    assert login(registry.host, home=tmp_path).good().text == "Login Succeeded\n"
    assert stored(config) == {registry.host: f"alice:{PASSWORD}"}
    login(registry.host, home=tmp_path, user="bob").bad(1, registry.host)
    assert stored(config) == {registry.host: f"alice:{PASSWORD}"}


def test_real_login_for_skopeo_and_by_skopeo(registry: DockerRegistry, tmp_path: Path) -> None:
    skopeo = need("skopeo")
    login(registry.host, home=tmp_path).good()
    env = environment(tmp_path, DOCKER_CONFIG=str(tmp_path / "docker"))
    command = [skopeo, "list-tags", "--tls-verify=false", f"docker://{registry.host}/none"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert "unauthorized" not in done.stderr
    assert "404" in done.stderr
    auth = tmp_path / "auth.json"
    command = [skopeo, "login", "--tls-verify=false", "--authfile", str(auth), registry.host]
    subprocess.run(
        [*command, "-u", "alice", "--password-stdin"], input=PASSWORD.encode(), check=True
    )
    from soci_cli.targets.registry.credentials import find_credentials

    found = find_credentials(registry.host, "app", {"REGISTRY_AUTH_FILE": str(auth)})
    assert found == Credentials("alice", PASSWORD)


def test_real_login_with_client_certificate(
    strict_registry: DockerRegistry, ca: Ca, tmp_path: Path
) -> None:
    host = strict_registry.host
    cert, key = ca.issue_client("alice")
    mine = ("--tlscert", cert, "--tlskey", key)
    login(host, *mine, "--tlscacert", ca.cert, home=tmp_path).good()
    login(host, *mine, "-k", home=tmp_path).good()
    login(host, "--tlscacert", ca.cert, home=tmp_path).bad(1, host)
    login(host, "--tlscacert", ca.cert, "--tlscert", cert, home=tmp_path).bad(2, "--tlskey")
    login(host, "--tlscacert", tmp_path / "none", home=tmp_path).bad(1, "no such file")
    other = make_ca(tmp_path / "other")
    login(host, *mine, "--tlscacert", other.cert, home=tmp_path).bad(1, host)


def test_real_login_with_a_hosts_dir(
    strict_registry: DockerRegistry, ca: Ca, tmp_path: Path
) -> None:
    host = strict_registry.host
    cert, key = ca.issue_client("alice")
    toml, docker = tmp_path / "toml" / host, tmp_path / "docker-style" / host
    toml.mkdir(parents=True)
    (toml / "hosts.toml").write_text(f"ca = '{ca.cert}'\nclient = [['{cert}', '{key}']]\n")
    docker.mkdir(parents=True)
    for source, name in [(ca.cert, "ca.crt"), (cert, "me.cert"), (key, "me.key")]:
        (docker / name).write_bytes(source.read_bytes())
    for folder in (toml, docker):
        login(host, "--hosts-dir", folder.parent, home=tmp_path).good()


def test_real_login_at_a_terminal(registry: DockerRegistry, tmp_path: Path) -> None:
    password = f"{PASSWORD}\n".encode()
    answers = [(b"Username", b"alice\n"), (b"Password", password)]
    status, seen = on_terminal("login", registry.host, home=tmp_path, answers=answers)
    assert status == 0, seen
    assert "Login Succeeded" in seen
    assert PASSWORD not in seen
    assert stored(tmp_path / ".docker" / "config.json") == {registry.host: f"alice:{PASSWORD}"}
    status, seen = on_terminal(
        "login", "-u", "x", registry.host, home=tmp_path, answers=[(b"Password", b"\x04")]
    )
    assert status != 0
    assert "Traceback" not in seen


# The flags


def parse(*arguments: str) -> RegistryFlags:
    seen: list[RegistryFlags] = []

    @click.command()
    @click.argument("place")
    @transfer_flags
    def transfer(place: str, registry: RegistryFlags) -> None:
        assert place == "here"
        seen.append(registry)

    done = CliRunner().invoke(transfer, [*arguments, "here"])
    if done.exit_code:
        raise UsageError(done.output)
    return seen[0]


def test_both_decorators_give_the_same_class() -> None:
    @click.command()
    @registry_flags
    def reach(registry: RegistryFlags) -> None:
        assert registry == parse()

    assert CliRunner().invoke(reach).exit_code == 0
    assert CliRunner().invoke(reach, ["--user", "alice"]).exit_code == 2
    assert parse().options(["example.com"]) == RegistryOptions()


def test_numbers_of_transfers() -> None:
    flags = parse("--max-concurrent-downloads", "7", "--max-concurrent-uploads", "1")
    assert (flags.max_downloads, flags.max_uploads) == (7, 1)
    assert (flags.options().max_downloads, flags.options().max_uploads) == (7, 1)
    assert (parse().max_downloads, parse().max_uploads) == (None, None)
    for number in ("0", "-1", "x"):
        with pytest.raises(UsageError):
            parse("--max-concurrent-downloads", number)


def test_user_is_for_the_only_registry() -> None:
    flags = parse("-u", "alice:a:b")
    expected = {"example.com": Credentials("alice", "a:b")}
    assert flags.options(["example.com", "example.com"]).credentials == expected
    with pytest.raises(UsageError, match=r"not for a\.com and b\.com; use soci login for each"):
        flags.options(["a.com", "b.com"])
    with pytest.raises(UsageError, match="--user is for a registry"):
        flags.options([])
    assert "a:b" not in repr(flags)


def test_password_of_user(monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, b"word\n")
    options = parse("--user", "alice", "--password-stdin").options(["a.com"])
    assert options.credentials == {"a.com": Credentials("alice", "word")}
    for arguments, part in [
        (["--password-stdin"], "needs --user"),
        (["--user", "alice:x", "--password-stdin"], "has a password already"),
        (["--user", "alice"], "no terminal to ask for the password"),
        (["--user", ":x"], "user name is empty"),
        (["--user", "alice:"], "password is empty"),
    ]:
        with pytest.raises(UsageError, match=part):
            parse(*arguments).options(["a.com"])
