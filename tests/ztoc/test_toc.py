"""The table of contents, beside what other tests read out of it."""

from __future__ import annotations

import pytest

from soci_cli.ztoc import TableOfContents


@pytest.mark.parametrize("at", [0, 1, (1 << 20) - 4, (1 << 20) - 1, 1 << 20, (2 << 20) - 3])
def test_searching_in_steps(at: int) -> None:
    data = bytearray(2 << 20)
    data[at : at + 5] = b".wh.x"
    files = TableOfContents(bytes(data), None, 0)
    assert files.contains(b".wh.")
    assert not files.contains(b".wh.y")
