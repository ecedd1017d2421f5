"""Comparing two checkouts: which rows count as worse, and what a report's rows are."""

from __future__ import annotations

import pytest

from tests.bench.compare import Row, rows_of


@pytest.mark.parametrize(
    ("unit", "old", "new", "worse"),
    [
        ("s", [1.0, 1.05, 1.1], [1.3, 1.3, 1.3], True),
        ("s", [1.0, 1.05, 1.1], [1.12, 1.13, 1.12], False),  # less than a tenth
        ("s", [1.0, 1.2, 1.6], [1.5, 1.5, 1.5], False),  # the old one's own range is wider
        ("s", [1.0, 1.0, 1.0], [0.5, 0.5, 0.5], False),
        ("MB/s", [100, 101, 102], [80, 81, 82], True),
        ("MB/s", [100, 101, 102], [150, 150, 150], False),
        ("MB", [60, 60, 61], [90, 91, 90], True),
    ],
)
def test_worse_is_beyond_a_tenth_and_the_old_range(
    unit: str, old: list[float], new: list[float], worse: bool
) -> None:
    assert Row("any", unit, old, new).is_worse is worse


def test_rows_of_all_parts() -> None:
    report = {
        "builds": [{"name": "soci few", "rounds": [{"seconds": 1.5, "peak": 60_000_000}]}],
        "registries": [{"key": "pull", "seconds": [0.5], "peaks": [50_000_000]}],
        "reading": [{"key": "cold", "unit": "MB/s", "values": [400.0]}],
    }
    assert list(rows_of(report)) == [
        ("soci few", "s", 1.5),
        ("soci few, memory", "MB", 60.0),
        ("pull", "s", 0.5),
        ("pull, memory", "MB", 50.0),
        ("cold", "MB/s", 400.0),
    ]
