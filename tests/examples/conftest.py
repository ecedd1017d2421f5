"""The fixtures of this package."""

from __future__ import annotations

from tests.servers.fixtures import (
    docker_registry,
    docker_registry_htpasswd,
    need_docker_registry,
)

__all__ = ["docker_registry", "docker_registry_htpasswd", "need_docker_registry"]
