"""docker-registry takes the tokens of the token server, as long as they last and for what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.servers.ca import Ca
from tests.support.servers.client import LOGIN, pull, push_blob, push_image, session
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.fixtures import PASSWORD, USER, USERS
from tests.support.servers.token_server import SERVICE, TokenRequest, TokenServer

READ = "repository:team/app:pull"
WRITE = "repository:team/app:pull,push"


def get_token(server: TokenServer, *scopes: str, **more: Any) -> requests.Response:
    http = session(auth=more.pop("auth", None), **more)
    return http.get(server.realm, params={"service": SERVICE, "scope": scopes})


def bearer(answer: requests.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def test_push_pull_and_mount(
    docker_registry_token: DockerRegistry, token_server: TokenServer
) -> None:
    base = f"{docker_registry_token.url}/v2"
    refused = session().get(f"{base}/team/app/manifests/latest")
    assert refused.status_code == 401
    challenge = dict(re.findall(r'(\w+)="([^"]*)"', refused.headers["WWW-Authenticate"]))
    assert challenge == {"realm": token_server.realm, "service": SERVICE, "scope": READ}

    write = bearer(get_token(token_server, WRITE, auth=LOGIN))
    manifest = push_image(session(), f"{base}/team/app", "latest", b"layer", write)
    digest = push_blob(session(), f"{base}/team/app", b"layer", write)

    assert pull(session(), f"{base}/team/app", "latest", bearer(get_token(token_server, READ)))
    anonymous = bearer(get_token(token_server, WRITE))
    assert pull(session(), f"{base}/team/app", "latest", anonymous) == manifest
    refused = session().post(f"{base}/team/app/blobs/uploads/", headers=anonymous)
    assert refused.status_code == 401
    assert 'error="insufficient_scope"' in refused.headers["WWW-Authenticate"]

    both = bearer(get_token(token_server, READ, "repository:my/copy:pull,push", auth=LOGIN))
    mount = f"{base}/my/copy/blobs/uploads/?mount={digest}&from=team/app"
    assert session().post(mount, headers=both).status_code == 201
    assert session().head(f"{base}/my/copy/blobs/{digest}", headers=both).status_code == 200


def test_mount_needs_pull_on_the_source(
    docker_registry_token: DockerRegistry, token_server: TokenServer
) -> None:
    base = f"{docker_registry_token.url}/v2"
    write = bearer(get_token(token_server, WRITE, auth=LOGIN))
    digest = push_blob(session(), f"{base}/team/app", b"layer", write)
    token_server.withheld.add("team/app")
    both = bearer(get_token(token_server, READ, "repository:my/copy:pull,push", auth=LOGIN))
    mount = f"{base}/my/copy/blobs/uploads/?mount={digest}&from=team/app"
    refused = session().post(mount, headers=both)
    assert refused.status_code == 401
    assert "team/app" in refused.headers["WWW-Authenticate"]


def test_lifetime(docker_registry_token: DockerRegistry, token_server: TokenServer) -> None:
    url = f"{docker_registry_token.url}/v2/"
    for lifetime, status in (300, 200), (2, 200), (0, 401):
        token_server.lifetime = lifetime
        token = get_token(token_server)
        assert token.json()["expires_in"] == 300
        answer = session().get(url, headers=bearer(token))
        assert answer.status_code == status, lifetime
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    token_server.reported_lifetime = None
    assert "expires_in" not in get_token(token_server).json()


def test_oauth(docker_registry_token: DockerRegistry, token_server: TokenServer) -> None:
    form = {"service": SERVICE, "scope": f"{READ} {WRITE}", "client_id": "test"}
    login = {"grant_type": "password", "username": USER, "password": PASSWORD}
    answer = session().post(token_server.realm, data={**form, **login, "access_type": "offline"})
    refresh = answer.json()["refresh_token"]
    for token in refresh, token_server.identity_token(USER):
        more = {"grant_type": "refresh_token", "refresh_token": token}
        answer = session().post(token_server.realm, data={**form, **more})
        url = f"{docker_registry_token.url}/v2/team/app/blobs/uploads/"
        assert session().post(url, headers=bearer(answer)).status_code == 202
    query = {"service": SERVICE, "offline_token": "true"}
    assert session(auth=LOGIN).get(token_server.realm, params=query).json()["refresh_token"]
    assert "refresh_token" not in session().get(token_server.realm, params=query).json()
    token_server.revoke_identity_tokens()
    refused = session().post(token_server.realm, data={**form, **more})
    assert refused.status_code == 401
    assert refused.json()["error"] == "invalid_grant"
    scopes = (READ, WRITE)
    assert token_server.log == [
        TokenRequest("POST", USER, SERVICE, scopes, "password", True, 200),
        TokenRequest("POST", "", SERVICE, scopes, "refresh_token", False, 200),
        TokenRequest("POST", "", SERVICE, scopes, "refresh_token", False, 200),
        TokenRequest("GET", USER, SERVICE, (), "", True, 200),
        TokenRequest("GET", None, SERVICE, (), "", True, 200),
        TokenRequest("POST", "", SERVICE, scopes, "refresh_token", False, 401),
    ]


def test_refusals(token_server: TokenServer) -> None:
    assert get_token(token_server, READ, auth=(USER, "wrong")).status_code == 401
    token_server.refuse(500, times=1)
    token_server.refuse(403, method="POST")
    assert get_token(token_server, READ).status_code == 500
    assert get_token(token_server, READ).status_code == 200
    assert session().post(token_server.realm).status_code == 403
    token_server.accept()
    assert session().post(token_server.realm).status_code == 400
    token_server.allow_anonymous_pull = False
    assert get_token(token_server, READ).status_code == 401
    assert get_token(token_server, READ, auth=LOGIN).status_code == 200
    assert [request.user for request in token_server.log] == [USER, *[None] * 5, USER]


def test_tls(ca: Ca, tmp_path: Path) -> None:
    with TokenServer(tmp_path / "tokens", USERS, tls=ca.issue("127.0.0.1")) as server:
        assert server.realm.startswith("https://")
        assert get_token(server, READ, verify=str(ca.cert)).status_code == 200
        with pytest.raises(requests.exceptions.SSLError):
            get_token(server, READ)
