"""Real registries and broken ones, on loopback, and containerd, to test clients against."""

from __future__ import annotations

from tests.support.servers.ca import Ca, KeyPair, make_ca
from tests.support.servers.containerd import ContainerdServer
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.support.servers.forward_proxy import ForwardProxy
from tests.support.servers.token_server import TokenServer

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
