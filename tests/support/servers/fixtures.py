"""Fixtures of registries and of containerd, for all tests. Where the programs are missing they skip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine import need
from tests.support.servers.ca import Ca, make_ca
from tests.support.servers.containerd import DEBIAN, VERSIONS, ContainerdServer, Programs, programs
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.token_server import TokenServer

USER = "alice"
PASSWORD = "correct horse: battery"
USERS = {USER: PASSWORD}


@pytest.fixture(scope="session")
def need_docker_registry() -> str:
    return need("docker-registry")


@pytest.fixture(scope="session", params=VERSIONS)
def containerd_programs(request: pytest.FixtureRequest, need_root: None) -> Programs:
    """containerd and ctr, in each version in turn."""
    return need_containerd(request.param)


@pytest.fixture(scope="session")
def need_debian_containerd(need_root: None) -> None:
    """Skips where there is none, or no root to start it."""
    need_containerd(DEBIAN)


def need_containerd(version: str) -> Programs:
    found = programs(version)
    if found is None:
        pytest.skip(f"containerd ({version}) is not installed; see tests/install-tools.sh")
    return found


@pytest.fixture(scope="session")
def containerd(
    containerd_programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ContainerdServer]:
    """A containerd for everybody; use a namespace of your own in it."""
    with ContainerdServer(tmp_path_factory.mktemp("containerd"), containerd_programs) as server:
        yield server


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return make_ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def docker_registry(
    need_docker_registry: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerRegistry]:
    """A registry for everybody, without TLS; use a repository of your own in it."""
    with DockerRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="session")
def docker_registry_htpasswd(
    need_docker_registry: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerRegistry]:
    """A registry for USERS, with Basic authentication."""
    with DockerRegistry(tmp_path_factory.mktemp("htpasswd"), htpasswd=USERS) as registry:
        yield registry


@pytest.fixture(scope="session")
def docker_registry_tls(
    need_docker_registry: str, tmp_path_factory: pytest.TempPathFactory, ca: Ca
) -> Iterator[DockerRegistry]:
    """A registry for everybody, its certificate by `ca` for 127.0.0.1, localhost and registry.test."""
    pair = ca.issue("127.0.0.1", "localhost", "registry.test")
    with DockerRegistry(tmp_path_factory.mktemp("tls"), tls=pair) as registry:
        yield registry


@pytest.fixture
def token_server(tmp_path: Path) -> Iterator[TokenServer]:
    """A token server for USERS; everybody may pull."""
    with TokenServer(tmp_path / "token-server", USERS) as server:
        yield server


@pytest.fixture
def docker_registry_token(
    need_docker_registry: str, tmp_path: Path, token_server: TokenServer
) -> Iterator[DockerRegistry]:
    """A new registry that takes the tokens of `token_server`."""
    with DockerRegistry(tmp_path / "token-registry", token=token_server) as registry:
        yield registry
