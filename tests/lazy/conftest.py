"""Fetching with a cache, and threads that read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soci_cli.lazy import Fetching
from tests.lazy.tools import fetching_at


@pytest.fixture
def fetching(tmp_path: Path) -> Iterator[Fetching]:
    with fetching_at(tmp_path / "cache") as made:
        yield made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    made = ThreadPoolExecutor(16)
    yield made
    made.shutdown()
