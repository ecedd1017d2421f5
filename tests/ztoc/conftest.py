"""Fixtures of the zTOC tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from soci_cli.ztoc.inflate import backend


@pytest.fixture(params=["zlib-ng", "zlib"])
def zlib_choice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Inflates with each library in turn."""
    choice = str(request.param)
    monkeypatch.setenv("SOCI_ZLIB", choice)
    backend.cache_clear()
    assert backend().name.rpartition(" ")[0] == choice
    yield choice
    backend.cache_clear()


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before
