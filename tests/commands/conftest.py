"""Fixtures of the command tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Soci
from tests.support.images import make_image


@pytest.fixture
def soci(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Soci:
    """The command line, with a store of its own."""
    return Soci(capfdbinary, tmp_path / "store")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A layout with an image of two small layers."""
    return make_image(tmp_path / "image").root
