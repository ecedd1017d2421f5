"""The embedded registry, and an image in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli.trial_registry import RegistryServer
from tests.commands.registries.machine import (
    Server,
    copy,
)
from tests.support.commands import Soci


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    log: list[tuple[str, str, int, int, int]] = []

    def observe(method: str, path: str, status: int, sent: int, received: int) -> None:
        log.append((method, path, status, sent, received))

    with RegistryServer(tmp_path / "registry", observer=observe) as running:
        yield Server(running, log)


@pytest.fixture
def app(soci: Soci, server: Server, image: Path) -> str:
    """The name of an image of two layers in the registry."""
    name = f"{server.host}/team/app:1"
    copy(soci, image, name)
    server.forget()
    return name
