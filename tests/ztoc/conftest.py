"""Fixtures of the zTOC tests."""

from __future__ import annotations

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
