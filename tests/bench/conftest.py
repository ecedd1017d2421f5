"""What the test of the benchmark needs."""

from tests.integration.conftest import need_skopeo
from tests.servers.fixtures import need_containerd, need_docker_registry

__all__ = ["need_containerd", "need_docker_registry", "need_skopeo"]
