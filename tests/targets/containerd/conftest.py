"""A containerd for all tests here, in which each test has a namespace of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from soci_cli.targets.containerd.client import Containerd
from tests.support.servers.containerd import ContainerdServer

_NUMBERS = itertools.count()


@pytest.fixture
def namespace() -> str:
    return f"test-{next(_NUMBERS)}"


@pytest.fixture
def client(containerd: ContainerdServer, namespace: str) -> Iterator[Containerd]:
    """A connection with a namespace of the test's own."""
    with Containerd(containerd.address, namespace) as client:
        yield client
    assert not containerd.leases(namespace), "a lease was not given back"
