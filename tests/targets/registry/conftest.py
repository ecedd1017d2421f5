"""The registries and the token server that the tests of the client talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli.trial_registry import RegistryServer


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[RegistryServer]:
    """The project's own registry, new, with the Referrers API and uploads that can be resumed."""
    with RegistryServer(tmp_path / "embedded") as server:
        yield server
