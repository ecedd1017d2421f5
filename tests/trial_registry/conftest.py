"""A registry over a temporary layout, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli.trial_registry import RegistryServer
from tests.trial_registry.client import Client


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the layout that the registry serves."""
    return tmp_path / "layout"


@pytest.fixture
def server(root: Path) -> Iterator[RegistryServer]:
    with RegistryServer(root) as running:
        yield running
    if root.exists():
        assert not list(root.glob(".ingest-*"))


@pytest.fixture
def client(server: RegistryServer) -> Client:
    return Client(server.address)
