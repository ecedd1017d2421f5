"""What the test of the benchmark needs."""

from tests.integration.conftest import need_skopeo

__all__ = ["need_skopeo"]
