"""Logging in to registries: Basic, and tokens by scope."""

from __future__ import annotations

import base64
import json
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from soci_cli.errors import RegistryError
from soci_cli.targets.copy import read_blob
from soci_cli.targets.registry.client import Client, check_login
from soci_cli.targets.registry.options import Credentials
from tests.support.images import noise
from tests.support.places import copy, describe, push_image
from tests.support.servers.actions import Reply, error_reply, html_reply
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.support.servers.fixtures import PASSWORD, USER
from tests.support.servers.token_server import TokenServer
from tests.targets.registry.tools import (
    LOGIN,
    fails,
    options,
    push,
    registries,
    small_chunks,
    source_at,
    target_at,
)

WRONG = Credentials(USER, "SECRET but wrong")
LAYER = noise(0, 5000)


def test_basic(docker_registry_htpasswd: DockerRegistry) -> None:
    host = docker_registry_htpasswd.host
    with FaultProxy(host) as proxy:
        root = push(proxy.host, "basic:1", credentials={proxy.host: LOGIN})
        refused = [seen for seen in proxy.log if seen.status == 401]
        assert len(refused) == 1, "what was accepted once is sent at once"
    with fails("401", f"log in with: soci login {host}"):
        source_at(host, "basic:1").resolve()
    with fails("401", "check the credentials"):
        source_at(host, "basic:1", credentials={host: WRONG}).resolve()
    assert source_at(host, "basic:1", credentials={host: LOGIN}).resolve() == root


def test_docker_config(docker_registry_htpasswd: DockerRegistry, tmp_path: Path) -> None:
    host = docker_registry_htpasswd.host
    push(host, "config:1", credentials={host: LOGIN})
    pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": pair}}}))
    where = registries({"DOCKER_CONFIG": str(tmp_path)})
    assert source_at(where, f"{host}/config:1").resolve()
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {host: "test"}}))
    helper = tmp_path / "docker-credential-test"
    answer = json.dumps({"Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\necho '{answer}'\n")
    helper.chmod(0o755)
    where = registries({"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert source_at(where, f"{host}/config:1").resolve()
    helper.write_text("#!/bin/sh\necho SECRET >&2; exit 1\n")
    where = registries({"DOCKER_CONFIG": str(tmp_path), "PATH": f"{tmp_path}:/bin:/usr/bin"})
    with fails("docker-credential-test get failed"):
        source_at(where, f"{host}/config:1").resolve()


def test_check_login(
    docker_registry_htpasswd: DockerRegistry, docker_registry_token: DockerRegistry
) -> None:
    for registry in docker_registry_htpasswd, docker_registry_token:
        check_login(registry.host, LOGIN, options(), {})
        with fails("401", kind=RegistryError):
            check_login(registry.host, WRONG, options(), {})
    with (
        FaultProxy("127.0.0.1:1", Fault(html_reply(404))) as page,
        fails("is this a registry?", kind=RegistryError),
    ):
        check_login(page.host, LOGIN, options(), {})


# Tokens


def test_tokens_are_kept_by_scope(
    docker_registry_token: DockerRegistry, token_server: TokenServer
) -> None:
    host = docker_registry_token.host
    where = registries(credentials={host: LOGIN})
    with target_at(where, f"{host}/team/app:1") as target:
        target.tag(push_image(target, layers=4))
    pull, write = "repository:team/app:pull", "repository:team/app:pull,push"
    assert [one.scopes for one in token_server.log] == [(pull,), (write,)]
    assert {one.user for one in token_server.log} == {USER}
    source_at(where, f"{host}/team/app:1").resolve()
    assert len(token_server.log) == 2
    with target_at(where, f"{host}/team/other:1") as target:
        target.exists(describe(b""))
    assert token_server.log[2].scopes == ("repository:team/other:pull",)


def test_anonymous_pull(docker_registry_token: DockerRegistry, token_server: TokenServer) -> None:
    host = docker_registry_token.host
    root = push(host, "open:1", credentials={host: LOGIN})
    assert source_at(host, "open:1").resolve() == root
    assert token_server.log[-1].user is None
    with fails("401", f"log in with: soci login {host}"):
        push(host, "open:2")
    token_server.allow_anonymous_pull = False
    with fails("401 Unauthorized", "soci login"):
        source_at(host, "open:1").resolve()
    with fails("401 Unauthorized", "soci login"):
        source_at(host, "open:1", credentials={host: WRONG}).resolve()


def test_denied_scope(docker_registry_token: DockerRegistry, token_server: TokenServer) -> None:
    token_server.withheld.add("private")
    with fails("401", "check the credentials"):
        push(
            docker_registry_token.host, "private:1", credentials={docker_registry_token.host: LOGIN}
        )
    assert len(token_server.log) < 8


def test_tokens_renewed_before_they_end(
    docker_registry_token: DockerRegistry, token_server: TokenServer
) -> None:
    token_server.reported_lifetime = 1
    with FaultProxy(docker_registry_token.host) as proxy:
        source = source_at(proxy.host, "none:1", credentials={proxy.host: LOGIN})
        source.exists(describe(b"1"))
        source.exists(describe(b"2"))
        assert len(token_server.log) == 1
        time.sleep(0.8)
        source.exists(describe(b"3"))
        assert len(token_server.log) == 2
        assert [seen.status for seen in proxy.log] == [401, 404, 404, 404]


def test_tokens_renewed_after_they_ended(
    docker_registry_token: DockerRegistry, token_server: TokenServer
) -> None:
    """The token server promises more than the registry accepts."""
    token_server.lifetime = 1
    with FaultProxy(docker_registry_token.host) as proxy:
        source = source_at(proxy.host, "none:1", credentials={proxy.host: LOGIN})
        source.exists(describe(b"1"))
        deadline = time.monotonic() + 5
        while len(token_server.log) == 1 and time.monotonic() < deadline:
            time.sleep(0.2)
            assert not source.exists(describe(b"2"))
        assert len(token_server.log) == 2
        assert [seen.status for seen in proxy.log[-2:]] == [401, 404]


def test_token_that_ends_in_the_middle_of_a_push(
    docker_registry_token: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every few requests the registry wants a new token, also in the middle of a layer."""

    def expired(exchange: Exchange) -> None:
        answer = exchange.ask(without={"authorization"})
        exchange.answer(answer.status, answer.headers, answer.body)

    with (
        small_chunks(monkeypatch, 1000),
        FaultProxy(docker_registry_token.host) as proxy,
        target_at(proxy.host, "ends:1", credentials={proxy.host: LOGIN}) as target,
    ):
        proxy.add(*(Fault(expired, skip=skip, times=1) for skip in range(5, 40, 3)))
        root = push_image(target, size=5000)
        target.tag(root)
        assert len([seen for seen in proxy.log if seen.status == 401]) >= 6
        assert {seen.method for seen in proxy.log if seen.status == 401} > {"PATCH"}
    assert source_at(docker_registry_token.host, "ends:1").resolve() == root


def test_token_refused_by_403(docker_registry_token: DockerRegistry) -> None:
    """Some registries say 403 for a token that has ended."""
    host = docker_registry_token.host
    push(host, "forbidden:1", credentials={host: LOGIN})
    with FaultProxy(host, Fault(error_reply(403, "DENIED"), skip=2, times=1)) as proxy:
        source = source_at(proxy.host, "forbidden:1", credentials={proxy.host: LOGIN})
        source.resolve()
        assert read_blob(source, describe(LAYER)) == LAYER
        assert [seen.status for seen in proxy.log] == [401, 200, 403, 200]


def test_identity_tokens(docker_registry_token: DockerRegistry, token_server: TokenServer) -> None:
    host = docker_registry_token.host
    token = token_server.identity_token(USER)
    root = push(host, "identity:1", credentials={host: Credentials("", "", token)})
    assert {one.grant_type for one in token_server.log} == {"refresh_token"}
    assert source_at(host, "identity:1").resolve() == root
    token_server.revoke_identity_tokens()
    with fails("401", "refused by the token server", "log in again") as said:
        push(host, "identity:2", credentials={host: Credentials("", "", token)})
    assert token not in said()


def test_identity_token_that_is_repeated_is_not_shown(
    docker_registry_token: DockerRegistry,
) -> None:
    def echo(exchange: Exchange) -> None:
        sent = b"".join(exchange.body()).decode()
        error_reply(400, "INVALID", f"what is {sent}?")(exchange)

    with FaultProxy("127.0.0.1:1", Fault(echo)) as tokens:
        challenge = f'Bearer realm="{tokens.url}/token",service="x"'
        reply = Reply(401, {"WWW-Authenticate": challenge})
        with FaultProxy(docker_registry_token.host, Fault(reply)) as proxy, fails("400"):
            credentials = {proxy.host: Credentials("", "", "SECRET_of_a_test")}
            source_at(proxy.host, "x:1", credentials=credentials).resolve()


def test_mount_across_repositories(
    docker_registry_token: DockerRegistry, token_server: TokenServer
) -> None:
    host = docker_registry_token.host
    where = registries(credentials={host: LOGIN})
    root = push(host, "team/from:1", credentials={host: LOGIN})
    with FaultProxy(host) as proxy:
        where = registries(credentials={proxy.host: LOGIN})
        for repo, mounts in ("team/to", 201), ("team/denied", 401):
            if mounts == 401:
                token_server.withheld.add("team/from")
            source = source_at(where, f"{proxy.host}/team/from:1")
            if mounts == 201:
                source.resolve()
                scopes = "repository:team/to:pull,push", "repository:team/from:pull"
            with target_at(where, f"{proxy.host}/{repo}:1") as target:
                if mounts == 201:
                    assert copy(source, target) == root
                    assert scopes in [one.scopes for one in token_server.log]
                else:
                    assert not target.mount(describe(LAYER), source)
            assert {seen.status for seen in proxy.seen("POST", f"/{repo}/.*mount=")} >= {mounts}


def test_many_threads_ask_for_one_token(
    docker_registry_token: DockerRegistry, token_server: TokenServer
) -> None:
    source = source_at(docker_registry_token.host, "threads:1")
    threads = [
        threading.Thread(target=source.exists, args=(describe(bytes([number])),))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(token_server.log) == 1


def test_token_servers_that_recover(
    docker_registry_token: DockerRegistry, token_server: TokenServer
) -> None:
    host = docker_registry_token.host
    root = push(host, "recover:1", credentials={host: LOGIN})
    for status in 429, 500, 503:
        token_server.refuse(status, times=2)
        assert source_at(host, "recover:1").resolve() == root
    token_server.refuse(500)
    with fails("/token", "500", "refused by the token server"):
        source_at(host, "recover:1").resolve()


ANSWERS: list[tuple[Reply, str]] = [
    (html_reply(200), "is no token: "),
    (html_reply(404), "404"),
    (Reply(200, body=b""), "is no token: "),
    (Reply(200, body=b"[1]"), "is no token"),
    (Reply(200, body=b"{}"), "has no token in it"),
    (Reply(200, body=b'{"token": ""}'), "has no token in it"),
    (Reply(200, body=b'{"token": 5}'), "has no token in it"),
    (Reply(200, body=b'{"token": "SECRET\\r\\nX-Evil: 1"}'), "has no token in it"),
    (Reply(200, body=b'{"token": "\\u00e9SECRET"}'), "has no token in it"),
    (Reply(200, body=b"[" * 100_000), "is no token: "),
    (Reply(200, body=b'{"token": "' + b"x" * (2 << 20) + b'"}'), "larger than"),
    (Reply(302, {"Location": "http://host.invalid/?sig=SECRET"}), "302"),
    (error_reply(429, "TOOMANYREQUESTS", "calm down", Retry_After="3600"), "3600 seconds"),
]


@pytest.mark.parametrize(("reply", "said"), ANSWERS, ids=lambda value: repr(value)[:50])
def test_token_servers_that_answer_nonsense(reply: Reply, said: str) -> None:
    with FaultProxy("127.0.0.1:1", Fault(reply)) as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/token?x=SECRET"'}
        with (
            FaultProxy("127.0.0.1:1", Fault(Reply(401, challenge))) as registry,
            fails(said, kind=RegistryError),
        ):
            source_at(registry.host, "x:1", credentials={registry.host: LOGIN}).resolve()
        assert len(tokens.log) == 1
        assert all("authorization" in seen.headers for seen in tokens.log)


LIFETIMES: list[object] = [None, 0, -5, 1e308, True, "60", [], 10**50]


@pytest.mark.parametrize("life", LIFETIMES, ids=repr)
def test_odd_lifetimes(life: object) -> None:
    body = json.dumps({"access_token": "abc", "expires_in": life}).encode()
    with FaultProxy("127.0.0.1:1", Fault(Reply(200, body=body))) as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}"'}
        with FaultProxy(
            "127.0.0.1:1", Fault(Reply(401, challenge), times=1), Fault(Reply(200))
        ) as registry:
            source = source_at(registry.host, "x:1")
            assert source.exists(describe(b"")) is True
            assert registry.log[1].headers["authorization"] == "Bearer abc"


REALMS = [
    "",
    "ftp://host.invalid/?SECRET",
    "http://[::1/x",
    "http://user:SECRET@127.0.0.1:99999/",
    "http://:80/",
    "http://host.invalid/token?sig=SECRET",
    "javascript:alert(1)",
    "x" * 5000,
]


@pytest.mark.parametrize("realm", REALMS, ids=lambda value: value[:20])
def test_realms_that_lead_nowhere(realm: str) -> None:
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}
    with FaultProxy("127.0.0.1:1", Fault(Reply(401, challenge))) as registry, fails():
        source_at(registry.host, "x:1", credentials={registry.host: LOGIN}).resolve()


def test_no_password_in_plain_text_from_https(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("registry.invalid", options(), {})
    call = partial(client._token_document, client.endpoints_for("pull")[0])
    with fails("in plain text", kind=RegistryError):
        call("GET", "http://tokens.invalid/token", {"Authorization": "Basic eHg6eHg="}, [])
    with fails("in plain text", kind=RegistryError):
        call("POST", "http://tokens.invalid/token", {}, [("refresh_token", "SECRET")])


def test_netrc_is_not_read(
    docker_registry: DockerRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password SECRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with FaultProxy(docker_registry.host) as proxy:
        assert not source_at(proxy.host, "x:1").exists(describe(b""))
        assert "authorization" not in proxy.log[0].headers
