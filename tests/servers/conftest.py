"""The fixtures of this package."""

from __future__ import annotations

from tests.servers.fixtures import (
    ca,
    docker_registry,
    docker_registry_htpasswd,
    docker_registry_tls,
    docker_registry_token,
    need_docker_registry,
    token_server,
)

__all__ = [
    "ca",
    "docker_registry",
    "docker_registry_htpasswd",
    "docker_registry_tls",
    "docker_registry_token",
    "need_docker_registry",
    "token_server",
]
