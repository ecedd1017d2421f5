"""The real registry answers, keeps what it is given, and wants the logins that it was told to want."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from tests.support.servers.ca import Ca, KeyPair, make_ca
from tests.support.servers.client import LOGIN, pull, push_blob, push_image, session
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.fixtures import USER


def test_push_and_pull(docker_registry: DockerRegistry) -> None:
    repository = f"{docker_registry.url}/v2/push/pull"
    manifest = push_image(session(), repository, "latest", b"layer")
    assert pull(session(), repository, "latest") == manifest


def test_storage_outlives_the_process(need_docker_registry: str, tmp_path: Path) -> None:
    with DockerRegistry(tmp_path) as registry:
        digest = push_blob(session(), f"{registry.url}/v2/kept", b"kept")
        first = registry.host
    with pytest.raises(requests.ConnectionError):
        session().get(f"http://{first}/v2/")
    with DockerRegistry(tmp_path, delete=False) as registry:
        url = f"{registry.url}/v2/kept/blobs/{digest}"
        assert session().get(url).content == b"kept"
        assert session().delete(url).status_code == 405


def test_htpasswd(docker_registry_htpasswd: DockerRegistry) -> None:
    url = f"{docker_registry_htpasswd.url}/v2/"
    refused = session().get(url)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic realm=")
    assert session(auth=(USER, "wrong")).get(url).status_code == 401
    assert session(auth=LOGIN).get(url).status_code == 200


def test_tls(docker_registry_tls: DockerRegistry, ca: Ca, tmp_path: Path) -> None:
    repository = f"{docker_registry_tls.url}/v2/tls"
    manifest = push_image(session(verify=str(ca.cert)), repository, "latest", b"layer")
    assert pull(session(verify=str(ca.cert)), repository, "latest") == manifest
    with pytest.raises(requests.exceptions.SSLError):
        session(verify=str(make_ca(tmp_path).cert)).get(repository)


def test_client_certificate(need_docker_registry: str, ca: Ca, tmp_path: Path) -> None:
    pair = ca.issue("127.0.0.1")
    with DockerRegistry(tmp_path, tls=pair, client_ca=ca.cert) as registry:
        url = f"{registry.url}/v2/"
        with pytest.raises(requests.ConnectionError):
            session(verify=str(ca.cert)).get(url)
        mine = tuple(map(str, ca.issue_client("alice")))
        assert session(verify=str(ca.cert), cert=mine).get(url).status_code == 200


def test_start_that_fails_shows_the_log(need_docker_registry: str, tmp_path: Path) -> None:
    nothing = KeyPair(tmp_path / "no.pem", tmp_path / "no.key")
    with pytest.raises(AssertionError, match=r"did not start(?s:.*)no\.pem"):
        DockerRegistry(tmp_path, tls=nothing)
