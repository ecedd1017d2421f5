"""How many random cases tests try: SOCI_TESTS_SCALE multiplies all their numbers."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SCALE = float(os.environ.get("SOCI_TESTS_SCALE", "1"))

# A busy machine is slow, one fixture serves all examples, and layers are large on purpose.
_UNCHECKED = (
    HealthCheck.too_slow,
    HealthCheck.function_scoped_fixture,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
)


def scaled(count: int) -> int:
    """As many as `count`, for a scale of 1; at least one."""
    return max(1, round(count * SCALE))


def examples(count: int) -> settings:
    """The decorator of a hypothesis test with so many examples, however long each takes."""
    return settings(max_examples=scaled(count), deadline=None, suppress_health_check=_UNCHECKED)
