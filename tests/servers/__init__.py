"""Real registries and broken ones, on loopback, and containerd, to test clients against."""

from __future__ import annotations

from tests.servers.ca import Ca, KeyPair, make_ca
from tests.servers.containerd import ContainerdServer
from tests.servers.docker_registry import DockerRegistry
from tests.servers.fault_proxy import Fault, FaultProxy
from tests.servers.forward_proxy import ForwardProxy
from tests.servers.token_server import TokenServer

__all__ = [
    "Ca",
    "ContainerdServer",
    "DockerRegistry",
    "Fault",
    "FaultProxy",
    "ForwardProxy",
    "KeyPair",
    "TokenServer",
    "make_ca",
]
